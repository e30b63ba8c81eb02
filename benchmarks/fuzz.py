"""What can a frame do to the decoder, and to a worker? A million mutated ones into each, strangers besides.

Decoder: `decode` may raise FrameError and nothing else, and what it gives must encode to the same bytes. Socket: one
`edgeprism worker` in a process of its own gets mutated messages over CURVE from a coordinator and a peer with listed
keys, noise on its port, keys that nobody listed, and oversized messages. It must answer after every burst, answer right
requests right throughout, keep its memory, and serve a real engine in the end. `--frames` is for each of the two.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from benchmarks.fuzzing.decoder import fuzz_decoder
from benchmarks.fuzzing.target import Target
from benchmarks.report import arguments, record
from edgeprism.wire.key_file import write_key_file
from edgeprism.wire.keys import KeyPair

if TYPE_CHECKING:
    from benchmarks.fuzzing.orders import Loaded
    from benchmarks.fuzzing.session import Session

CHECK_EVERY = 25_000  # messages between two requests whose answer is compared
REACH_FRAMES, SMOKE_FRAMES = 1_000_000, 2_500
REACH_GROWTH_MB = 64.0
REACH_IDLE = 0.1  # of one core, when nothing comes any more
REACH_ANSWER_S = 2.0
REACH_LOG_BYTES_PER_S = 5000.0
ARCHITECTURES = ("GPT2LMHeadModel", "ViTForImageClassification")
REACH_DIFFERENCE = 1e-4


def main() -> int:
    """Fuzzes and writes benchmarks/results/fuzz.json; 1 where something was not reached."""
    parser = arguments(__doc__)
    parser.add_argument("--frames", type=int, default=REACH_FRAMES, metavar="N", help="into each (default: a million)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed gives other frames")
    args = parser.parse_args()
    logging.getLogger("edgeprism").setLevel(logging.ERROR)  # the worker's answers to nonsense are nonsense to us
    num_frames = min(args.frames, SMOKE_FRAMES) if args.smoke else args.frames
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgeprism-fuzz-") as name:
        folder, keys = Path(name), KeyPair.generate()
        with Target(folder, keys) as target:  # it starts while the decoder is fuzzed
            figures["decoder"] = into_decoder(num_frames, args.seed)
            figures["socket"] = into_socket(target, folder, keys, num_frames, args.seed, args.smoke)
    settings = {"frames": num_frames, "seed": args.seed, "models": ARCHITECTURES, "limit of open files": 1024}
    record("fuzz", figures, settings, args.smoke)
    missed = [f"{part}: {row}" for part in figures for row, met in figures[part]["met"].items() if not met]
    print("\n".join(f"fuzz: not reached: {row}" for row in missed), file=sys.stderr)
    return 1 if missed else 0


def into_decoder(num_frames: int, seed: int) -> dict[str, Any]:
    """Ends with BrokenRule at the first frame that breaks the rule."""
    began_s = time.perf_counter()
    seen = fuzz_decoder(num_frames, seed)
    return {
        "frames": num_frames,
        "refused": seen.refused.total(),
        "refused_for": dict(seen.refused.most_common(30)),
        "decoded_and_encoded_again": seen.decoded.total(),
        "decoded": dict(seen.decoded),
        "slowest_s": round(seen.slowest_s, 4),
        "peak_mb": round(seen.peak_bytes / 1e6, 1),
        "seconds": round(time.perf_counter() - began_s, 1),
        "met": {"another error than FrameError: none": True, "the same bytes again": True},
    }


def into_socket(target: Target, folder: Path, keys: KeyPair, num_frames: int, seed: int, smoke: bool) -> dict[str, Any]:
    """Everything that comes over the network. Ends with an error where the worker dies, hangs or computes wrong."""
    from benchmarks.fuzzing.orders import Loaded  # torch is imported here, while the worker starts
    from tests.families import example, make

    rng = random.Random(seed)
    models = [Loaded.save(make(name), example(name), target.models) for name in ARCHITECTURES]
    target.wait_until_it_listens()
    for model in models:
        with_keys(target, keys, model, rng, num_frames // 40, num_oversized=0)  # warm-up
    target.forget_peak()
    before = {"rss": target.rss_bytes, "files": target.num_open_files, "log": target.log.stat().st_size}
    began_s, cpu_s = time.perf_counter(), target.cpu_s
    num_each, num_oversized = num_frames // len(models), 1 if smoke else 3
    sessions = [with_keys(target, keys, model, rng, num_each, num_oversized=num_oversized) for model in models]
    counts = sum((session.counts for session in sessions), Counter()) + without_keys(target, rng, smoke=smoke)
    seconds, busy_s = time.perf_counter() - began_s, target.cpu_s - cpu_s
    difference = through_an_engine(target, folder, keys, models[1])
    growth, growth_peak = target.rss_bytes - before["rss"], target.peak_bytes - before["rss"]
    log_bytes = target.log.stat().st_size - before["log"]
    idle = idle_share(target, 0.5 if smoke else 5.0)
    num_files = target.num_open_files
    status = target.stop()
    return {
        "messages": counts["as coordinator"] + counts["as peer"],
        "counts": dict(counts),
        "seconds": round(seconds, 1),
        "worker_cpu_s": round(busy_s, 1),
        "slowest_answer_s": round(max(session.slowest_answer_s for session in sessions), 3),
        "rss_before_mb": round(before["rss"] / 1e6, 1),
        "rss_mb": {"every_messages": CHECK_EVERY, "values": [mb for session in sessions for mb in session.rss_mb]},
        "rss_growth_mb": round(growth / 1e6, 1),
        "rss_peak_growth_mb": round(growth_peak / 1e6, 1),
        "open_files": {"before": before["files"], "after": num_files},
        "log_bytes": log_bytes,
        "idle_share_of_a_core": round(idle, 3),
        "engine_difference": difference,
        "exit_status": status,
        "met": {
            f"memory grows by at most {REACH_GROWTH_MB:g} MB": growth_peak <= REACH_GROWTH_MB * 1e6,
            f"the log grows by at most {REACH_LOG_BYTES_PER_S:g} bytes a second": log_bytes
            <= REACH_LOG_BYTES_PER_S * max(seconds, 10),
            f"idle, it takes at most {REACH_IDLE:g} of a core": smoke
            or idle <= REACH_IDLE,  # half a second tells nothing
            f"an answer takes at most {REACH_ANSWER_S:g} s": all(
                s.slowest_answer_s <= REACH_ANSWER_S for s in sessions
            ),
            "a real engine is served, and its answer right": difference <= REACH_DIFFERENCE,
            "no file stays open": num_files <= before["files"],
            "SIGTERM ends it with status 0": status == 0,
        },
    }


def with_keys(
    target: Target, keys: KeyPair, model: Loaded, rng: random.Random, num_messages: int, *, num_oversized: int
) -> Session:
    """What a coordinator and a peer send, one model long."""
    from benchmarks.fuzzing.session import Session

    session = Session(target, keys, model, rng, num_rare=max(2, num_messages // 10_000))
    session.fuzz(num_messages, CHECK_EVERY)
    session.send_many_parts(10_000)
    for _ in range(num_oversized):
        session.send_oversized()
    session.close()
    return session


def without_keys(target: Target, rng: random.Random, *, smoke: bool) -> Counter[str]:
    """What strangers do."""
    from benchmarks.fuzzing import strangers

    counts = Counter({"connections with noise": 200 if smoke else 20_000})
    counts["bytes of noise"] = strangers.knock(target, rng, counts["connections with noise"])
    counts["connections at once that say nothing"] = strangers.crowd(
        target, 200 if smoke else 1_500, 0.2 if smoke else 5.0
    )
    counts["handshakes of unlisted keys"] = strangers.foreigner(target, 0.7 if smoke else 10.0)
    return counts


def through_an_engine(target: Target, folder: Path, keys: KeyPair, model: Any) -> float:
    """Largest difference of what two devices, the worker among them, make of real inputs to transformers' own."""
    import edgeprism

    write_key_file(folder / "fuzzer.secret", "fuzzer", keys)
    file = folder / "cluster.toml"
    file.write_text(
        f'[coordinator]\nname = "fuzzer"\npublic_key = "{keys.public}"\n'
        f'[[device]]\nname = "worker"\naddress = "127.0.0.1:{target.port}"\npublic_key = "{target.keys.public}"\n'
    )
    with (
        edgeprism.Cluster.from_file(file, require_all=True) as cluster,
        edgeprism.load(str(model.directory), cluster=cluster, plan="sequence") as engine,
    ):
        output = engine(**model.inputs)
        assert engine.last_trace is not None
        assert [device.device for device in engine.last_trace.devices] == [0, 1], engine.last_trace.summary()
        return float((output.logits - model.wanted).abs().max())


def idle_share(target: Target, seconds: float) -> float:
    """Processor time over wall time while nothing comes."""
    before_s = target.cpu_s
    time.sleep(seconds)
    return (target.cpu_s - before_s) / seconds


if __name__ == "__main__":
    sys.exit(main())
