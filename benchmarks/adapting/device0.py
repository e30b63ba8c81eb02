"""One case of `benchmarks.adaptive`, as a process on device 0 of the lab: python -m benchmarks.adapting.device0."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import edgeprism
from benchmarks.adapting.losses import PUBLISHED_LOSS
from edgeprism.lab.lab import Lab
from edgeprism.models.manifest import fingerprint
from edgeprism.policy.choose import describe
from edgeprism.profiler.fit import errors
from edgeprism.profiler.sweep import BATCHES, sweep
from edgeprism.runtime.auto import AutoSettings
from edgeprism.runtime.engine import Engine, load
from edgeprism.runtime.maps import write
from edgeprism.runtime.profiling import Identity, Profiler, example
from edgeprism.specs.accuracy import AccuracyFile, AccuracyRecord
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.performance_map import PerformanceMap
from edgeprism.specs.plan import Plan

CODECS = ("means:3.3", "means:4.95", "means:9.9", "int8", "kv:int8", "int4")
BUDGET = 2.5
MBIT = 1e6 / 8


class Bench:
    """An engine over the cluster, one over gloo if there is a store, and the ways of running that are compared."""

    def __init__(self, given: dict[str, Any], stack: ExitStack) -> None:
        torch.set_num_threads(1)
        self.given, self.lab = given, Lab.attach()
        self.model, self.dtype = given["model"], given["dtype"]
        self.cluster = stack.enter_context(edgeprism.Cluster.from_file(given["cluster"], require_all=True))
        self.num_devices = self.cluster.num_devices
        self.folder = Path(given["cluster"]).parent
        self.engine = stack.enter_context(
            load(self.model, cluster=self.cluster, plan="local", dtype=self.dtype)
        )  # fmt: skip
        self.gloo: dict[str, Engine] = {}
        if given["store"]:
            # one transport at a time: both forms need the same store
            cluster = stack.enter_context(
                edgeprism.Cluster.gloo(
                    given["store"], self.num_devices, transport=given["gloo"], insecure=True, require_all=True
                )
            )
            self.gloo["gloo exact"] = stack.enter_context(
                load(self.model, cluster=cluster, plan="sequence", dtype=self.dtype)
            )
        self.map_path = self.folder / "map.json"
        self.accuracy_path = self.folder / "accuracy.json"

    def profile(self, *, minutes: float, batches: tuple[int, ...]) -> dict[str, Any]:
        """Makes the map that the policies choose by."""
        identity = Identity(
            fingerprint=fingerprint(Path(self.model)), cluster=self.cluster.key, names=self.cluster.names
        )
        codecs = [CodecSpec.parse(name) for name in CODECS]
        profiler = Profiler(self.engine, identity)
        reached = profiler.look_around()
        wanted = sweep(self.engine.spec, reached, self.num_devices, codecs, batches=batches)
        profiler.measure_powers(wanted.points[0].num_tokens)
        began_s = time.monotonic()
        profiler.run(wanted, until_s=began_s + 60 * minutes, done=_Progress("profile", wanted.num_passes))
        found = profiler.result()
        write(self.map_path, found)
        self._write_accuracy(found)
        off = [abs(error) for error in errors(found.costs, found.model, found.dtype, found.requests)]
        return {
            "seconds": time.monotonic() - began_s,
            "num_points": len(found.requests),
            "num_passes": wanted.num_passes,
            "skipped": list(found.skipped),
            "links": [link.to_bytes_per_s / MBIT for link in found.links],
            "fit_error_median": statistics.median(off),
            "fit_error_worst": max(off),
            "map": found.to_json(),
        }

    def auto(self, **settings: Any) -> AutoSettings:
        """Settings of `auto` with this run's map and accuracy file."""
        return AutoSettings(performance_map=self.map_path, accuracy_file=self.accuracy_path, **settings)

    def ways(self) -> dict[str, Callable[[], Engine]]:
        """By name, what makes an engine ready for one way of running."""
        engine = self.engine

        def fixed(plan: Plan) -> Callable[[], Engine]:
            def use() -> Engine:
                engine.use(plan)
                return engine

            return use

        def auto(settings: AutoSettings) -> Callable[[], Engine]:
            def use() -> Engine:
                engine.use("auto", auto=settings)
                return engine

            return use

        ways: dict[str, Callable[[], Engine]] = {"local": fixed(Plan.local())}
        ways |= {name: (lambda one=one: one) for name, one in self.gloo.items()}
        even = {name: Plan.even("sequence", self.num_devices, CodecSpec.parse(name)) for name in ("exact", *CODECS)}
        ways |= {f"sequence {name}": fixed(plan) for name, plan in even.items()}
        ways["replica"] = fixed(Plan.even("replica", self.num_devices))
        ways["auto"] = auto(self.auto(max_accuracy_drop=BUDGET))
        ways["auto, exact plans"] = auto(self.auto())
        ways["auto, energy"] = auto(self.auto(max_accuracy_drop=BUDGET, objective="energy"))
        ways["table"] = auto(self.auto(max_accuracy_drop=BUDGET, policy="table"))
        return ways

    def turns(self, names: list[str], batch: int, repeats: int, *, num_tokens: int = 0) -> dict[str, dict[str, Any]]:
        """Each way in turn, ``repeats`` times after two that are not counted; seconds, and what ran."""
        ways, inputs = self.ways(), example(self.engine, batch, num_tokens or 197)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        traces: dict[str, Any] = {}
        for turn in range(repeats + 2):
            for name in names:
                engine = ways[name]()
                began_s = time.perf_counter()
                engine(**inputs)
                if turn >= 2:
                    seconds[name].append(time.perf_counter() - began_s)
                traces[name] = engine.last_trace
        return {name: {"seconds": seconds[name], **_said(traces[name])} for name in names}

    def set_rate(self, rate_mbit: float) -> None:
        """Of every link, and the moment that buckets need to be empty."""
        self.lab.set_rate(None, rate_mbit)
        time.sleep(0.2)

    def _write_accuracy(self, found: PerformanceMap) -> None:
        """The published losses, for models with random weights."""
        records = [
            AccuracyRecord(
                model=found.fingerprint, codec=name, shares=(1 / self.num_devices,) * self.num_devices,
                dtype=found.dtype, dataset="cifar10", split="published", metric="accuracy", num_inputs=10000,
                num_alone=0, exact=0.9801, value=0.9801 - loss / 100, low=-loss / 100, high=-loss / 100,
                agreement=None, relative_bytes=0.1,
            )
            for name, loss in PUBLISHED_LOSS.items()
        ]  # fmt: skip
        self.accuracy_path.write_text(json.dumps(AccuracyFile(records=tuple(records)).to_json()))


def _said(trace: Any) -> dict[str, Any]:
    """What the last trace of a way says."""
    return {
        "plan": describe(trace.plan),
        "bytes_sent": trace.bytes_sent,
        "failures": list(trace.failures),
        "devices": [
            {
                "device": part.device, "compute_s": part.compute_s, "codec_s": part.codec_s,
                "staging_s": part.staging_s, "wire_s": part.wire_s, "wait_s": part.wait_s,
            }
            for part in trace.devices
        ],
    }  # fmt: skip


class _Progress:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0

    def __call__(self, num: int) -> None:
        self._done += num
        print(f"\r{self._what} {self._done}/{self._total}", end="", file=sys.stderr, flush=True)


def table(bench: Bench) -> dict[str, Any]:
    """The published table: every batch, every way, at one rate."""
    given = bench.given
    rows = {}
    for batch in given["batches"]:
        print(f"\rbatch {batch}", end="", file=sys.stderr, flush=True)
        rows[str(batch)] = bench.turns(given["ways"], batch, 7 if batch == 1 else 5 if batch <= 4 else 3)
    return {"rows": rows}


def bandwidth(bench: Bench) -> dict[str, Any]:
    """The published figure: some batches at many rates."""
    given = bench.given
    rows: dict[str, Any] = {}
    for rate_mbit in given["rates"]:
        bench.set_rate(rate_mbit)
        for batch in given["batches"]:
            print(f"\r{rate_mbit} Mbit/s, batch {batch}   ", end="", file=sys.stderr, flush=True)
            rows[f"{rate_mbit:g}/{batch}"] = bench.turns(given["ways"], batch, 5 if batch == 1 else 3)
    return {"rows": rows}


def sudden(bench: Bench) -> dict[str, Any]:
    """The rate falls in the middle of a request: that one, and those after it, against one device."""
    fast, slow = bench.given["rates"]
    inputs, runs = example(bench.engine, 1, 197), []
    way = bench.ways()["auto"]
    for _ in range(bench.given["repeats"]):
        bench.set_rate(fast)
        engine = way()
        for _ in range(6):
            engine(**inputs)
        usual_s = engine.last_trace.total_s  # type: ignore[union-attr]
        timer = bench.lab.replay([(usual_s / 2, slow)])
        requests = []
        for _ in range(5):
            began_s = time.perf_counter()
            engine(**inputs)
            trace = engine.last_trace
            assert trace is not None
            requests.append({"seconds": time.perf_counter() - began_s, **_said(trace)})
        timer.join()
        bench.engine.use(Plan.local())
        local = []
        for _ in range(5):
            began_s = time.perf_counter()
            bench.engine(**inputs)
            local.append(time.perf_counter() - began_s)
        runs.append({"before_s": usual_s, "requests": requests, "local_s": statistics.median(local)})
    return {"runs": runs}


def trace(bench: Bench) -> dict[str, Any]:
    """A closed loop while the rate changes: requests done by each way, and by an oracle that takes the best fixed plan
    of each step."""
    given = bench.given
    inputs = example(bench.engine, given["batch"], 197)
    steps = [tuple(step) for step in given["steps"]]
    done: dict[str, Any] = {}
    for name in given["ways"]:
        bench.set_rate(steps[0][1])
        engine = bench.ways()[name]()
        for _ in range(4):
            engine(**inputs)
        replaying = bench.lab.replay(steps)
        began_s, requests = time.perf_counter(), []
        while (now_s := time.perf_counter() - began_s) < given["seconds"]:
            engine(**inputs)
            assert engine.last_trace is not None
            requests.append([now_s, time.perf_counter() - began_s, describe(engine.last_trace.plan)])
        replaying.join()
        done[name] = requests
        print(f"\r{name}: {len(requests)} requests   ", end="", file=sys.stderr, flush=True)
    return {"requests": done}


CASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "table": table,
    "bandwidth": bandwidth,
    "sudden": sudden,
    "trace": trace,
}


def main() -> None:
    """Runs the case that the command line names; profiles first."""
    case, given = sys.argv[1], json.loads(sys.argv[2])
    with ExitStack() as stack:
        bench = Bench(given, stack)
        batches = tuple(batch for batch in BATCHES if batch <= given["max_batch"])
        profiled = bench.profile(minutes=given["minutes"], batches=batches)
        bench.ways()
        found = CASES[case](bench)
    print(file=sys.stderr)
    Path(given["out"]).write_text(json.dumps({"profile": profiled, **found}))


if __name__ == "__main__":
    main()
