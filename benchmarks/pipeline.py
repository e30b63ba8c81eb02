"""Plan `pipeline` against one device: two processes on loopback, slow links, and emulated devices; JSON.

    python -m benchmarks.pipeline [--case two --case slow ...]

two      ViT-Base, two processes of one core, 64 images in micro-batches of 8, and one image alone
memory   what a worker that holds a stage of ViT-Large has of its own, at most, beside its weights and an idle worker
slow     ViT-Base over links of 10 Mbit/s (paced, no root): float32, rounded by hand, following the bandwidth
sixteen  sixteen emulated devices, each a tenth of a core: ViT-Large and BERT-Large (root)
huge     ViT-Huge on four emulated devices of 1.2 GB each, and on one of them (root)
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

from benchmarks.report import RESULTS, arguments, commit, record

MB = 1e6
IMAGES, MICRO_BATCH = 64, 8
WORKERS_CASES = ("two", "memory", "slow")
LAB_CASES: dict[str, dict[str, Any]] = {
    "sixteen": {"models": ["vit-large", "bert-large"], "devices": 16, "speed": 0.1, "memory_mb": None, "requests": 40},
    "huge": {"models": ["vit-huge"], "devices": 4, "speed": 0.2, "memory_mb": 1200, "requests": 12},
}
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
    from edgeprism.strategies.pipeline.partition import even, piece_macs

    directory = make_model(folder, "tiny" if is_small else "vit-base")
    with (
        edgeprism.Cluster.spawn(2) as cluster,
        edgeprism.load(directory, cluster=cluster, plan="replica") as engine,
    ):
        stages = even(piece_macs(engine.spec, engine.spec.max_tokens), [0, 1])
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
    from edgeprism.strategies.pipeline.partition import even, num_pieces, piece_macs, stage_weight_bytes

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
    stage = even(piece_macs(spec, spec.max_tokens), [0, 1])[1]
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
    from edgeprism.strategies.pipeline.partition import even, piece_macs

    directory = make_model(folder, "tiny" if is_small else "vit-base")
    ways = {"float32": ("exact", None), "bfloat16": ("bfloat16", None), "int8": ("int8", None), "int4": ("int4", None),
            "following": ("exact", "int4")}  # fmt: skip
    num, figures = (24 if is_small else 32), dict[str, Any]()
    with (
        edgeprism.Cluster.spawn(2, link_rate_mbit=10.0) as cluster,
        edgeprism.load(directory, cluster=cluster, plan="replica") as engine,
    ):
        stages = even(piece_macs(engine.spec, engine.spec.max_tokens), [0, 1])
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


def on_lab(case: str, folder: Path, *, is_small: bool) -> dict[str, Any]:
    """Emulated devices, each with a stage; against one of them."""
    from edgeprism.lab.device import LabDevice
    from edgeprism.lab.lab import Lab

    given = LAB_CASES[case]
    count, speed = (2, 0.4) if is_small else (given["devices"], given["speed"])
    names = ["tiny"] if is_small else given["models"]
    directories = {name: make_model(folder, name) for name in names}
    devices = [
        LabDevice(name=f"device{i}", rate_mbit=1000.0, speed=speed, memory_mb=given["memory_mb"]) for i in range(count)
    ]
    figures: dict[str, Any] = {}
    with Lab(devices) as lab:
        report = None if is_small else lab.check()
        figures["lab"] = None if report is None else report.to_json()
        cluster = lab.write_cluster(folder)
        lab.start_workers(folder)
        for name, directory in directories.items():
            order = {
                "model": directory, "cluster": str(cluster), "requests": 6 if is_small else given["requests"],
                "devices": count, "out": str(folder / "out.json"), "alone": given["memory_mb"] is None,
            }  # fmt: skip
            (folder / "order.json").write_text(json.dumps(order))
            argv = [sys.executable, "-m", "benchmarks.pipeline", "--on-device", str(folder / "order.json")]
            if lab.popen(0, argv).wait():
                raise SystemExit(f"pipeline: {case} failed on device 0")
            figures[name] = json.loads((folder / "out.json").read_text())
    return figures


def on_device(order: dict[str, Any]) -> None:
    """Device 0 of the lab: a stream of single samples through all stages, and through this device alone."""
    import torch

    import edgeprism
    from edgeprism.errors import EdgeprismError

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with edgeprism.Cluster.from_file(order["cluster"], require_all=True) as cluster:
        began_s = time.monotonic()
        with edgeprism.load(order["model"], cluster=cluster, plan="pipeline", max_pending=1000) as engine:
            found["load_s"] = time.monotonic() - began_s
            assert engine._holders is not None
            found["stages"] = list(map(str, engine._holders.stages))
            engine(**inputs_of(engine, 1))
            answers, done_s = [], list[float]()
            for _ in range(order["requests"]):
                answer = engine.submit(**inputs_of(engine, 1))
                answer.add_done_callback(lambda _: done_s.append(time.monotonic()))
                answers.append(answer)
            traces = []
            for number, answer in enumerate(answers):
                answer.result()
                traces.append(answer.trace)
                print(f"\r{number + 1}/{len(answers)}", end="", file=sys.stderr, flush=True)
            found["failures"] = sorted({text for trace in traces if trace for text in trace.failures})
            full = done_s[order["devices"] // 2 :]  # while the last ones drain nothing is slower
            found["period_s"] = (full[-1] - full[0]) / (len(full) - 1)
            found["compute_s"] = {
                str(part.device): statistics.median(
                    one.compute_s for trace in traces if trace for one in trace.devices if one.device == part.device
                )
                for part in (traces[-1].devices if traces[-1] else ())
            }
    try:
        with edgeprism.load(order["model"], plan="local") as engine:
            alone = []
            for _ in range(3):
                began_s = time.monotonic()
                engine(**inputs_of(engine, 1))
                alone.append(time.monotonic() - began_s)
        found["one_device_s"] = min(alone[1:])
        found["throughput over one device"] = found["one_device_s"] / found["period_s"]
    except EdgeprismError as exc:
        found["one device"] = str(exc)
    Path(order["out"]).write_text(json.dumps(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and writes benchmarks/results/pipeline.json."""
    parser = arguments(__doc__)
    parser.add_argument("--case", choices=(*WORKERS_CASES, *LAB_CASES), action="append", help="only this one")
    parser.add_argument("--on-device", metavar="FILE", help="what device 0 of the lab runs; for this script itself")
    args = parser.parse_args(argv)
    if args.on_device:
        on_device(json.loads(Path(args.on_device).read_text()))
        return 0
    import torch

    torch.set_num_threads(1)
    on_labs = (
        [] if os.geteuid() else ["sixteen"] if args.smoke else list(LAB_CASES)
    )  # a lab takes half a minute to start
    wanted = args.case or [*WORKERS_CASES, *on_labs]
    figures: dict[str, Any] = {}
    if not args.smoke and (RESULTS / "pipeline.json").exists():
        figures = json.loads((RESULTS / "pipeline.json").read_text())["figures"]
    with tempfile.TemporaryDirectory(prefix="edgeprism-pipeline-") as folder:
        for case in wanted:
            print(f"pipeline: {case}", file=sys.stderr)
            if case in WORKERS_CASES:
                found = {"two": two, "memory": memory, "slow": slow}[case](Path(folder), is_small=args.smoke)
            else:
                found = on_lab(case, Path(folder), is_small=args.smoke)
            figures[case] = {"commit": commit(), **found}
            record("pipeline", figures, {"micro_batch": MICRO_BATCH, "images": IMAGES}, smoke=args.smoke)
            print(json.dumps({case: {k: v for k, v in found.items() if k not in ("seconds", "lab")}}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
