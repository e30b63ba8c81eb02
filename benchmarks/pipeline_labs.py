"""Cases of `benchmarks.pipeline` on emulated devices (root), and what the planner says of clusters of sixteen.

sixteen   sixteen devices of a tenth of a core: ViT-Large, BERT-Large and ViT-Huge against one of them
four      ViT-Huge on four such devices, to compare with
huge      ViT-Huge on four devices of 1.2 GB each, and on one of them
unequal   one cell of the grid on 8 + 8 devices: the best partition against PipeDream's and the even one
clusters  ten clusters, streams through stages of theirs against what the simulator says
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprism.errors import LabError
from edgeprism.lab.device import LabDevice
from edgeprism.lab.lab import Lab
from edgeprism.planner.baselines import BASELINES
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.throughput import fastest
from edgeprism.runtime.heap import keep_freed
from edgeprism.simulate.pipeline import simulate
from edgeprism.simulate.published import published
from edgeprism.specs.codec import EXACT
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan, Stage
from edgeprism.strategies.pipeline.partition import cut_bytes, num_pieces, piece_values, piece_work

Stages = tuple[Stage, ...]
TEXT_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Devices:
    """One cluster of the lab."""

    speeds: tuple[float, ...]
    rate_mbit: float = 400.0
    """What a tenth of a core can still take in, four frames at a time."""
    memory_mb: int | None = None
    is_paired: bool = False
    """Two neighbours on a core, the next two on the other: so no core has all the heavy stages, which alternate."""

    @property
    def by_speed(self) -> tuple[float, ...]:
        """Seconds of what takes a whole core one."""
        return tuple(1 / speed for speed in self.speeds)


TENTHS = Devices(speeds=(0.1,) * 16, is_paired=True)
LAB_CASES: dict[str, dict[str, Any]] = {
    "sixteen": {"devices": TENTHS, "models": ["vit-large", "bert-large", "vit-huge"], "requests": 48, "alone": True},
    "four": {"devices": Devices(speeds=(0.1,) * 4), "models": ["vit-huge"], "requests": 14, "alone": False},
    "huge": {"devices": Devices(speeds=(0.2,) * 4, memory_mb=1200), "models": ["vit-huge"], "requests": 12,
             "alone": True},
}  # fmt: skip
UNEQUAL = Devices(speeds=(0.12,) * 8 + (0.06,) * 8)
NUM_CLUSTERS, CLUSTER_REQUESTS = 10, 40
LAB_STARTS = 5
ALONE_TIMES = 3
CORE_S_PER_BYTE = 4e-9
"""Of a whole core, for what is sent or received: what some runs of `clusters` found, which scatter from 0 to 46e-9."""
IDLE_MB = 300
"""What a worker takes before it holds anything."""
SMALL = Devices(speeds=(0.4, 0.4))

SPEED_RATIOS, MEMORY_RATIOS, RATES_MBIT = (1, 2, 4, 8), (1, 4), (20, 100, 1000)
PUBLISHED_BEST = 4.16
"""EdgePipe over PipeDream's partition, 8 + 8 unequal devices (arXiv 2110.14895)."""


def grid(*, is_small: bool) -> dict[str, Any]:
    """By the published profile of ViT-Large on a MinnowBoard: 8 of these and 8 that are faster, with more memory; the
    best partition's samples a second over those of PipeDream's and of the even one."""
    rows: dict[str, Any] = {}
    for speed_ratio in SPEED_RATIOS[:2] if is_small else SPEED_RATIOS:
        for memory_ratio in MEMORY_RATIOS[:1] if is_small else MEMORY_RATIOS:
            for rate_mbit in RATES_MBIT[:1] if is_small else RATES_MBIT:
                pipeline = _of_published(speed_ratio, memory_ratio, rate_mbit)
                best_s = pipeline.period_s(fastest(pipeline))
                rows[f"{speed_ratio}/{memory_ratio}/{rate_mbit}"] = {
                    name: _over(pipeline, make(pipeline, range(pipeline.num_devices)), best_s)
                    for name, make in BASELINES.items()
                }
                print(f"\rgrid {len(rows)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    known = [value for row in rows.values() for value in row.values() if value is not None]
    over_pipedream = {key: row["PipeDream"] for key, row in rows.items() if row["PipeDream"] is not None}
    nearest = min(over_pipedream, key=lambda key: abs(over_pipedream[key] - PUBLISHED_BEST))
    return {
        "speed ratio/memory ratio/Mbit/s": rows,
        "least": min(known),
        "most over PipeDream": max(over_pipedream.values()),
        "published": PUBLISHED_BEST,
        "nearest cell": {nearest: over_pipedream[nearest]},
    }


def _of_published(speed_ratio: int, memory_ratio: int, rate_mbit: int) -> Pipeline:
    system = published("published:vit-large:minnowboard=8,rcc-ve=8")
    slow = replace(system.devices[0], bytes_per_s=rate_mbit * 1e6 / 8)
    fast = replace(
        slow,
        name="faster",
        piece_s=tuple(seconds / speed_ratio for seconds in slow.piece_s),
        memory_bytes=memory_ratio * slow.memory_bytes,
    )
    return replace(system, devices=(fast, slow)).pipeline()


def _over(pipeline: Pipeline, stages: Stages, best_s: float) -> float | None:
    """How many times as long its period is; None where it does not fit."""
    return round(pipeline.period_s(stages) / best_s, 3) if pipeline.fits(stages) else None


def pipeline_on(
    devices: Devices, model: ModelSpec, sample_s: Sequence[float], core_s_per_byte: float = CORE_S_PER_BYTE
) -> Pipeline:  # fmt: skip
    """What the planner is told of emulated devices; ``sample_s``: of one sample on each; ``core_s_per_byte``: of a
    whole core, for what is sent and received."""
    num_tokens = model.max_tokens if model.is_vision else TEXT_TOKENS
    macs, count = piece_work(model, num_tokens), len(devices.speeds)
    rate = devices.rate_mbit * 1e6 / 8
    return Pipeline(
        piece_s=tuple(tuple(whole_s * one / sum(macs) for one in macs) for whole_s in sample_s),
        cut_bytes=cut_bytes(model, EXACT, num_tokens=num_tokens, batch=1, element_bytes=4),
        weight_bytes=tuple(4 * values for values in piece_values(model)),
        work_bytes=(0,) * num_pieces(model),
        memory_bytes=(math.inf if devices.memory_mb is None else 1e6 * (devices.memory_mb - IDLE_MB),) * count,
        latency_s=tuple(tuple(0.0 if i == j else 1e-4 for j in range(count)) for i in range(count)),
        bytes_per_s=((rate,) * count,) * count,
        s_per_byte=tuple(core_s_per_byte / speed for speed in devices.speeds),
    )


def on_lab(
    case: str, folder: Path, make_model: Any, *, only: Sequence[str] | None, is_small: bool
) -> dict[str, Any]:  # fmt: skip
    """Each model, or ``only`` some of them, on devices that each hold one stage."""
    given = LAB_CASES[case]
    devices = SMALL if is_small else given["devices"]
    figures: dict[str, Any] = {"devices": devices.speeds, "rate_mbit": devices.rate_mbit}
    with _Lab(devices, folder, is_checked=not is_small) as lab:
        figures["lab"] = lab.report
        for name in ["tiny"] if is_small else [name for name in given["models"] if name in (only or given["models"])]:
            directory = make_model(folder, name)
            spec = ModelSpec.from_directory(Path(directory))
            stages = fastest(pipeline_on(devices, spec, devices.by_speed))
            order = {"model": directory, "stages": {"best": _text(stages)}, "requests": given["requests"]}
            figures[name] = lab.run({**order, "requests": 6} if is_small else order, is_alone=given["alone"])
    return figures


def unequal(folder: Path, make_model: Any, *, is_small: bool) -> dict[str, Any]:
    """The best partition, PipeDream's and the even one, measured in turn and predicted."""
    devices = SMALL if is_small else UNEQUAL
    directory = make_model(folder, "tiny" if is_small else "vit-large")
    spec = ModelSpec.from_directory(Path(directory))
    pipeline = pipeline_on(devices, spec, devices.by_speed)
    partitions = {"best": fastest(pipeline)}
    partitions |= {name: make(pipeline, range(pipeline.num_devices)) for name, make in BASELINES.items()}
    with _Lab(devices, folder, is_checked=not is_small) as lab:
        order = {"model": directory, "stages": {name: _text(stages) for name, stages in partitions.items()}}
        found = lab.run({**order, "requests": 6 if is_small else 40}, is_alone=False)
    best_s = pipeline.period_s(partitions["best"])
    found["predicted over the best"] = {
        name: round(pipeline.period_s(stages) / best_s, 3) for name, stages in partitions.items()
    }
    found["measured over the best"] = {
        name: round(one["period_s"] / found["streams"]["best"]["period_s"], 3) for name, one in found["streams"].items()
    }
    return {"devices": devices.speeds, "rate_mbit": devices.rate_mbit, "lab": lab.report, **found}


def clusters(folder: Path, make_model: Any, *, is_small: bool) -> dict[str, Any]:
    """Measured period over the simulated one, for clusters of two to four devices at several rates. What a device takes
    for a sample is measured while all compute whole ones (`replica`), since cores of one machine slow each other; what
    it takes for a byte, on a partition other than the simulated one. A cluster that the lab's own check refuses each
    time is told, and left out."""
    rows, refused = [], []
    directory = make_model(folder, "tiny" if is_small else "vit-base")
    spec = ModelSpec.from_directory(Path(directory))
    for number in range(1 if is_small else NUM_CLUSTERS):
        devices = SMALL if is_small else _some_devices(number)
        pipeline = pipeline_on(devices, spec, devices.by_speed)
        rng = random.Random(100 + number)
        stages = BASELINES[rng.choice(list(BASELINES))](pipeline, range(pipeline.num_devices))
        others = BASELINES["even"](pipeline, range(pipeline.num_devices)[::-1])
        plans = {"replica": None, "other": _text(others), "pipeline": _text(stages)}
        order = {"model": directory, "stages": plans, "requests": 6 if is_small else CLUSTER_REQUESTS}
        try:
            with _Lab(devices, folder, is_checked=not is_small, models=Path(directory).parent) as lab:
                streams = lab.run(order, is_alone=False)["streams"]
        except LabError:
            refused.append({"speeds": devices.speeds, "rate_mbit": devices.rate_mbit})
            continue
        sample_s = _sample_s(devices, streams["replica"]["compute_s"])
        core_s_per_byte = _core_s_per_byte(devices, spec, sample_s, others, streams["other"]["compute_s"])
        told = pipeline_on(devices, spec, sample_s, core_s_per_byte)
        simulated_s = simulate(told, stages, CLUSTER_REQUESTS).period_s
        measured_s = streams["pipeline"]["period_s"]
        rows.append(
            {
                "speeds": devices.speeds, "rate_mbit": devices.rate_mbit, "stages": _text(stages), "sample_s": sample_s,
                "core_s_per_byte": core_s_per_byte,
                "measured_s": measured_s, "simulated_s": simulated_s, "ratio": measured_s / simulated_s,
                "streams": streams,
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr)
    off = [abs(row["ratio"] - 1) for row in rows]
    if not off:
        raise LabError("the lab refused every cluster")
    return {"clusters": rows, "refused": refused, "median off": statistics.median(off), "worst off": max(off)}


def _sample_s(devices: Devices, compute_s: dict[str, float]) -> list[float]:
    """Of each device; one that was given no sample is as slow as its speed makes it beside the others."""
    one_core_s = statistics.median(seconds * devices.speeds[int(device)] for device, seconds in compute_s.items())
    return [compute_s.get(str(device), one_core_s / speed) for device, speed in enumerate(devices.speeds)]


def _core_s_per_byte(
    devices: Devices, model: ModelSpec, sample_s: Sequence[float], stages: Stages, compute_s: dict[str, float]
) -> float:
    """What stages took longer than their part of a sample, for each byte that they were sent or sent: the middle."""
    of_pieces, of_bytes = pipeline_on(devices, model, sample_s, 0.0), pipeline_on(devices, model, sample_s, 1.0)
    found = []
    for stage in stages:
        pieces_s, core_s = of_pieces.compute_s(stage), of_bytes.compute_s(stage) - of_pieces.compute_s(stage)
        found.append((compute_s[str(stage.device)] - pieces_s) / core_s)
    return max(0.0, statistics.median(found))


def _some_devices(number: int) -> Devices:
    """Two to four, placed in turn on two cores; those that share one have at most 0.6 of it (with more, labs often fail
    their check). Links from where they are the bottleneck to where they do not matter."""
    rng = random.Random(number)
    speeds = [0.0] * rng.choice([2, 3, 4])
    for core in range(2):
        mine = range(core, len(speeds), 2)
        if len(mine) == 1:
            speeds[core] = round(rng.uniform(0.3, 0.7), 2)
        else:
            first = round(rng.uniform(0.15, 0.45), 2)
            speeds[core], speeds[core + 2] = first, round(rng.uniform(0.15, 0.6 - first), 2)
    return Devices(speeds=tuple(speeds), rate_mbit=(20.0, 50.0, 100.0, 400.0, 1000.0)[number % 5])


class _Lab:
    """A lab with workers, and orders for its device 0. LabError where its own check refuses it each time."""

    def __init__(self, devices: Devices, folder: Path, *, is_checked: bool, models: Path | None = None) -> None:
        self._devices, self._is_checked, self._models = devices, is_checked, models
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self.report: dict[str, Any] | None = None

    def __enter__(self) -> _Lab:
        for attempt in range(1, LAB_STARTS + 1):
            try:
                self._lab = self._started()
                break
            except LabError as exc:
                print(f"pipeline: start {attempt} of {LAB_STARTS}: {exc}", file=sys.stderr)
                if attempt == LAB_STARTS:
                    raise
                time.sleep(5.0)
        return self

    def __exit__(self, *failure: Any) -> None:
        self._lab.__exit__(*failure)

    def _started(self) -> Lab:
        cores = sorted(os.sched_getaffinity(0))
        lab = Lab(
            [
                LabDevice(
                    name=f"device{i}", rate_mbit=self._devices.rate_mbit, speed=speed,
                    memory_mb=self._devices.memory_mb, core=cores[i // 2 % 2] if self._devices.is_paired else None,
                )
                for i, speed in enumerate(self._devices.speeds)
            ]
        )  # fmt: skip
        with ExitStack() as stack:
            stack.enter_context(lab)
            if self._is_checked:
                report = lab.check()
                self.report = report.to_json()
                report.require()
            self._cluster = lab.write_cluster(self._folder)
            lab.start_workers(self._folder, self._models)
            stack.pop_all()  # it stays up
        return lab

    def run(self, order: dict[str, Any], *, is_alone: bool) -> dict[str, Any]:
        place, out = self._folder / "order.json", self._folder / "out.json"
        out.unlink(missing_ok=True)
        place.write_text(json.dumps({**order, "cluster": str(self._cluster), "out": str(out), "alone": is_alone}))
        if self._lab.popen(0, [sys.executable, "-m", "benchmarks.pipeline_labs", str(place)]).wait():
            raise SystemExit("pipeline: failed on device 0; what it said is above")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def _text(stages: Stages) -> str:
    return ",".join(map(str, stages))


def on_device(order: dict[str, Any]) -> dict[str, Any]:
    """Device 0 of the lab: streams of single samples through stages, each on devices that hold their own only, or over
    devices that all hold the whole model (no stages); and, before and after each, this device alone."""
    import torch

    import edgeprism
    from edgeprism.runtime.profiling import example

    torch.set_num_threads(1)
    found: dict[str, Any] = {"streams": {}}
    with (
        edgeprism.Cluster.from_file(order["cluster"], require_all=True) as cluster,
        _Alone(order["model"] if order["alone"] else None) as alone,
    ):
        for name, text in order["stages"].items():
            alone_s = alone.measure()
            num = cluster.num_devices
            plan = "replica" if text is None else Plan.pipeline(text, num)
            began_s = time.monotonic()
            with edgeprism.load(order["model"], cluster=cluster, plan=plan, max_pending=1000) as engine:
                loaded_s = time.monotonic() - began_s
                inputs = example(engine, 1, TEXT_TOKENS)
                found["streams"][name] = {"stages": text, "load_s": loaded_s, **_stream(engine, inputs, order)}
            if alone_s := [*alone_s, *alone.measure()]:
                one_s = statistics.median(alone_s)
                over = {"one_device_s": one_s, "throughput over one device": one_s / found["streams"][name]["period_s"]}
                found["streams"][name] |= over
    return {**found, "one device": alone.error} if alone.error else found


class _Alone:
    """This device with the whole model, which it holds beside its stage; or why it cannot. Measured before and after
    each stream, since machines get faster and slower."""

    def __init__(self, model: str | None) -> None:
        self._model, self._stack = model, ExitStack()
        self._engine: Any = None
        self.error = ""

    def __enter__(self) -> _Alone:
        import edgeprism
        from edgeprism.errors import EdgeprismError

        if self._model is not None:
            try:
                self._engine = self._stack.enter_context(edgeprism.load(self._model, plan="local"))
            except EdgeprismError as exc:
                self.error = str(exc)
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.close()

    def measure(self) -> list[float]:
        """Seconds of some requests, one after the other; none where there is nothing to measure."""
        from edgeprism.runtime.profiling import example

        seconds: list[float] = []
        if self._engine is not None:
            inputs = example(self._engine, 1, TEXT_TOKENS)
            self._engine(**inputs)
            for _ in range(ALONE_TIMES):
                began_s = time.monotonic()
                self._engine(**inputs)
                seconds.append(time.monotonic() - began_s)
        return seconds


def _stream(engine: Any, inputs: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
    """Seconds between two that are done while all stages are busy, and what each device computed."""
    engine(**inputs)
    done_s: list[float] = []
    answers = []
    for _ in range(order["requests"]):
        answer = engine.submit(**inputs)
        answer.add_done_callback(lambda _: done_s.append(time.monotonic()))
        answers.append(answer)
    for number, answer in enumerate(answers):
        answer.result()
        print(f"\r{number + 1}/{len(answers)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    traces = [answer.trace for answer in answers]
    parts = [part for trace in traces for part in trace.devices]
    first = min(len(traces[0].plan.stages), len(done_s) // 3)  # the last ones are not slower, while stages before drain
    return {
        "period_s": (done_s[-1] - done_s[first]) / (len(done_s) - 1 - first),
        "failures": sorted({text for trace in traces for text in trace.failures}),
        "compute_s": {
            str(device): statistics.median(compute_s)
            for device in sorted({part.device for part in parts})
            if (compute_s := [part.compute_s for part in parts if part.device == device and part.compute_s])
        },
    }


def main(argv: Sequence[str]) -> int:
    """What device 0 of the lab runs, with the memory settings that workers have."""
    keep_freed()
    order = json.loads(Path(argv[0]).read_text())
    Path(order["out"]).write_text(json.dumps(on_device(order)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
