"""Plan `pipeline` against one device: two processes on loopback, slow links, and emulated devices; JSON.

    python -m benchmarks.pipeline [--case two --case slow ...]

two      ViT-Base, two processes of one core, 64 images in micro-batches of 8, and one image alone
memory   what a worker that holds a stage of ViT-Large has of its own, at most, beside its weights and an idle worker
slow     ViT-Base over links of 10 Mbit/s (paced, no root): float32, rounded by hand, following the bandwidth
grid     the planner's partition against PipeDream's and the even one, 8 + 8 devices (computed, nothing is run)
sixteen, four, huge, unequal, clusters: on emulated devices, see `benchmarks.pipeline_labs` (root)
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pipeline_labs import LAB_CASES, clusters, grid, on_lab, unequal
from benchmarks.report import RESULTS, arguments, commit, record
from edgeprism.errors import LabError

MB = 1e6
IMAGES, MICRO_BATCH = 64, 8
WORKERS_CASES = ("two", "memory", "slow", "grid")
RUN_ON_LABS = (*LAB_CASES, "unequal", "clusters")
SIZES = {
    "tiny": (64, 4, 4, 128), "vit-base": (768, 12, 12, 3072), "vit-large": (1024, 24, 16, 4096),
    "vit-huge": (1280, 32, 16, 5120), "bert-large": (1024, 24, 16, 4096),
}  # fmt: skip


def make_model(folder: Path, name: str) -> str:
    """A directory with a model of that size and random weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    directory = folder / name
    if directory.exists():
        return str(directory)
    width, layers, heads, wide = SIZES[name]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": wide}
    torch.manual_seed(0)
    if name.startswith("bert"):
        model: Any = BertForSequenceClassification(BertConfig(num_labels=2, **sizes))
    else:
        patch = {"patch_size": 14} if name == "vit-huge" else {}
        model = ViTForImageClassification(ViTConfig(num_labels=10, **patch, **sizes))
    model.eval().save_pretrained(directory)
    return str(directory)


def inputs_of(engine: Any, batch: int) -> dict[str, Any]:
    """Pictures of eight bits, or texts of 128 tokens."""
    from edgeprism.runtime.profiling import example

    return example(engine, batch, 128)


def two(folder: Path, *, is_small: bool) -> dict[str, Any]:
    """Two processes of one core against one, in turns."""
    import edgeprism
    from edgeprism.specs.plan import Plan
    from edgeprism.strategies.pipeline.partition import even

    directory = make_model(folder, "tiny" if is_small else "vit-base")
    with (
        edgeprism.Cluster.spawn(2) as cluster,
        edgeprism.load(directory, cluster=cluster, plan="replica") as engine,
    ):
        stages = even(engine.spec, engine.spec.max_tokens, [0, 1])
        plans = {
            "local": Plan.local(),
            "pipeline": Plan.pipeline(stages, 2, micro_batch=MICRO_BATCH),
            "replica": Plan.even("replica", 2),
        }
        many, one = inputs_of(engine, IMAGES), inputs_of(engine, 1)
        seconds: dict[str, dict[str, list[float]]] = {"many": {}, "one": {}}
        for turn in range(3 if is_small else 6):
            for size, inputs in (("many", many), ("one", one)):
                for name, plan in plans.items():
                    engine.use(plan)
                    for _ in range(1 if size == "many" else 8):
                        took_s = _timed(engine, inputs, MICRO_BATCH if name != "replica" and size == "many" else IMAGES)
                        if turn:
                            seconds[size].setdefault(name, []).append(took_s)
    medians = {size: {name: statistics.median(all_s) for name, all_s in one.items()} for size, one in seconds.items()}
    return {
        "seconds": seconds,
        "throughput over one device": medians["many"]["local"] / medians["many"]["pipeline"],
        "replica over one device": medians["many"]["local"] / medians["many"]["replica"],
        "one image over one device": medians["one"]["pipeline"] / medians["one"]["local"],
    }


def _timed(engine: Any, inputs: dict[str, Any], size: int) -> float:
    """All of them; in requests of ``size`` where they run on one device, as micro-batches do."""
    from edgeprism.strategies.replica.forward import batch_of, samples_of

    batch = batch_of(inputs)
    is_whole = engine._plan.strategy != "local"
    began_s = time.perf_counter()
    for start in range(0, batch, batch if is_whole else size):
        stop = batch if is_whole else min(batch, start + size)
        engine(**(samples_of(inputs, start, stop, batch) if batch > 1 else inputs))
    return time.perf_counter() - began_s


def memory(folder: Path, *, is_small: bool) -> dict[str, Any]:
    """Private memory of a worker: idle, and at most while it loads and runs a stage."""
    import edgeprism
    from edgeprism.specs.plan import Plan
    from edgeprism.strategies.pipeline.partition import even, num_pieces, stage_weight_bytes

    small, large = make_model(folder, "tiny"), make_model(folder, "tiny" if is_small else "vit-large")
    figures: dict[str, Any] = {}
    for name, directory in (("idle", small), ("stage", large)):
        with edgeprism.Cluster.spawn(2) as cluster:
            (pid,) = _workers()
            watch = _Watch(pid)
            with edgeprism.load(directory, cluster=cluster, plan="pipeline") as engine:
                spec = engine.spec
                for _ in range(3):
                    for answer in [engine.submit(**inputs_of(engine, 1)) for _ in range(12)]:
                        answer.result()
            figures[name] = watch.stop()
    stage = even(spec, spec.max_tokens, [0, 1])[1]
    weights = stage_weight_bytes(spec, stage.start, stage.stop, 4)
    assert stage.stop == num_pieces(spec) and isinstance(Plan.local(), Plan)
    queues = 5 * spec.max_tokens * spec.hidden_size * 4
    allowed = 1.25 * weights + figures["idle"] + queues
    return {
        "idle worker, MB": figures["idle"] / MB,
        "at most, MB": figures["stage"] / MB,
        "weights, MB": weights / MB,
        "allowed, MB": allowed / MB,
        "over what is allowed": figures["stage"] / allowed,
    }


def _workers() -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False).stdout
    pids = [int(pid) for pid in found.split()]
    return [pid for pid in pids if b"edgeprism.runtime.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class _Watch:
    """The most private memory that a process has had, looked at 50 times a second. Pages of files that it maps are the
    kernel's to take back, and do not count."""

    def __init__(self, pid: int) -> None:
        self._path, self._most, self._ends = Path(f"/proc/{pid}/smaps_rollup"), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ends.wait(0.02):
            try:
                text = self._path.read_text()
            except OSError:
                return
            self._most = max(self._most, 1024.0 * sum(map(int, re.findall(r"Anonymous: *(\d+)", text))))

    def stop(self) -> float:
        self._ends.set()
        self._thread.join()
        return self._most


def slow(folder: Path, *, is_small: bool) -> dict[str, Any]:
    """Links of 10 Mbit/s: throughput of each way, and how far its outputs are off."""
    import torch

    import edgeprism
    from edgeprism.specs.codec import CodecSpec
    from edgeprism.specs.plan import Plan
    from edgeprism.strategies.pipeline.partition import even

    directory = make_model(folder, "tiny" if is_small else "vit-base")
    ways = {"float32": ("exact", None), "bfloat16": ("bfloat16", None), "int8": ("int8", None), "int4": ("int4", None),
            "following": ("exact", "int4")}  # fmt: skip
    num, figures = (24 if is_small else 32), dict[str, Any]()
    with (
        edgeprism.Cluster.spawn(2, link_rate_mbit=10.0) as cluster,
        edgeprism.load(directory, cluster=cluster, plan="replica") as engine,
    ):
        stages = even(engine.spec, engine.spec.max_tokens, [0, 1])
        inputs = inputs_of(engine, num)
        engine.use("local")
        right = torch.cat([engine(pixel_values=one[None]).logits for one in inputs["pixel_values"]])
        for name, (codec, narrowest) in ways.items():
            last = None if narrowest is None else CodecSpec.parse(narrowest)
            engine.use(Plan.pipeline(stages, 2, CodecSpec.parse(codec), narrowest=last))
            engine(pixel_values=inputs["pixel_values"][:2])
            repeats = 4 if name == "following" else 1  # the width is found in the first, and stays
            for _ in range(repeats):
                began_s = time.perf_counter()
                output = engine(**inputs)
                took_s = time.perf_counter() - began_s
            trace = engine.last_trace
            assert trace is not None and not trace.failures, trace
            figures[name] = {
                "images per second": num / took_s,
                "largest difference of logits": float((output.logits - right).abs().max() / right.abs().max()),
                "same answer": float((output.logits.argmax(-1) == right.argmax(-1)).float().mean()),
                "bytes an image": trace.devices[0].bytes_sent / num,
            }
    following, plain = figures["following"]["images per second"], figures["float32"]["images per second"]
    return {**figures, "following over float32": following / plain, "images": num}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and writes benchmarks/results/pipeline.json."""
    parser = arguments(__doc__)
    parser.add_argument("--case", choices=(*WORKERS_CASES, *RUN_ON_LABS), action="append", help="only this one")
    parser.add_argument("--model", action="append", help="of a case on emulated devices: only this one")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    on_labs = [] if os.geteuid() else ["sixteen"] if args.smoke else list(RUN_ON_LABS)  # a lab takes half a minute
    wanted = args.case or [*WORKERS_CASES, *on_labs]
    figures: dict[str, Any] = {}
    missing: list[str] = []
    if not args.smoke and (RESULTS / "pipeline.json").exists():
        figures = json.loads((RESULTS / "pipeline.json").read_text())["figures"]
    with tempfile.TemporaryDirectory(prefix="edgeprism-pipeline-") as folder:
        for case in wanted:
            print(f"pipeline: {case}", file=sys.stderr)
            found = _measured(case, Path(folder), args.model, is_small=args.smoke)
            if found is None:
                missing.append(case)
                continue
            before = figures.get(case, {}) if args.model else {}
            figures[case] = {**before, "commit": commit(), **found}
            record("pipeline", figures, {"micro_batch": MICRO_BATCH, "images": IMAGES}, smoke=args.smoke)
            print(json.dumps({case: {k: v for k, v in found.items() if k not in ("seconds", "lab")}}, indent=1))
    if missing:
        print(f"pipeline: the lab would not start for {', '.join(missing)}; name each by --case", file=sys.stderr)
    return 1 if missing else 0


def _measured(case: str, folder: Path, only: list[str] | None, *, is_small: bool) -> dict[str, Any] | None:
    """None where the lab's own check refused it each time."""
    here = {"two": two, "memory": memory, "slow": slow}
    if case in here:
        return here[case](folder, is_small=is_small)
    if case == "grid":
        return grid(is_small=is_small)
    try:
        if case in LAB_CASES:
            return on_lab(case, folder, make_model, only=only, is_small=is_small)
        return {"unequal": unequal, "clusters": clusters}[case](folder, make_model, is_small=is_small)
    except LabError:
        return None


if __name__ == "__main__":
    sys.exit(main())
