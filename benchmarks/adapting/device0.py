"""Cases of `benchmarks.adaptive`, as one process on device 0 of the lab: it profiles, then runs one after the other.

python -m benchmarks.adapting.device0 FILE    FILE: a JSON object, as `benchmarks.adapting.cluster` writes it
"""

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
from edgeprism.lab.lab import Lab
from edgeprism.models.manifest import fingerprint
from edgeprism.policy.choose import describe
from edgeprism.policy.network import Network
from edgeprism.policy.predict import predict
from edgeprism.profiler.fit import errors
from edgeprism.profiler.sweep import BATCHES, sweep
from edgeprism.runtime.auto import AutoSettings
from edgeprism.runtime.engine import Engine, load
from edgeprism.runtime.maps import write
from edgeprism.runtime.profiling import Identity, Profiler, example
from edgeprism.specs.accuracy import AccuracyFile, AccuracyRecord
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import element_bytes_of
from edgeprism.specs.performance_map import PerformanceMap
from edgeprism.specs.plan import Plan

MBIT = 1e6 / 8
MAX_SPREAD = 0.1
"""Of a way's seconds in a row: others use the machine, and medians of few turns then say little."""


class Bench:
    """An engine over the cluster, one over gloo if there is a store, and the ways of running that are compared."""

    def __init__(self, given: dict[str, Any], stack: ExitStack) -> None:
        self.given, self.lab = given, None if given["rate_mbit"] is None else Lab.attach()
        if self.lab is not None:  # boards compute with all their cores
            torch.set_num_threads(1)
        self.model, self.dtype = given["model"], given["dtype"]
        self.cluster = stack.enter_context(edgeprism.Cluster.from_file(given["cluster"], require_all=True))
        self.num_devices = self.cluster.num_devices
        self.rate_mbit = given["rate_mbit"]
        self.map: PerformanceMap | None = None
        self.folder = Path(given["out"]).parent
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
        codecs = [CodecSpec.parse(name) for name in self.given["codecs"]]
        profiler = Profiler(self.engine, identity)
        reached = profiler.look_around()
        lengths = None if self.engine.spec.is_vision else (128, 32, 512)
        wanted = sweep(self.engine.spec, reached, self.num_devices, codecs, batches=batches, lengths=lengths)
        profiler.measure_powers(wanted.points[0].num_tokens)
        began_s = time.monotonic()
        profiler.run(wanted, until_s=began_s + 60 * minutes, done=_Progress("profile", wanted.num_passes))
        self.map = found = profiler.result()
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
        even = {
            name: Plan.even("sequence", self.num_devices, CodecSpec.parse(name))
            for name in ("exact", *self.given["codecs"])
        }
        ways |= {f"sequence {name}": fixed(plan) for name, plan in even.items()}
        ways["replica"] = fixed(Plan.even("replica", self.num_devices))
        budget = self.given["budget"]
        ways["auto"] = auto(self.auto(max_accuracy_drop=budget))
        ways["auto, exact plans"] = auto(self.auto())
        ways["auto, energy"] = auto(self.auto(max_accuracy_drop=budget, objective="energy"))
        ways["table"] = auto(self.auto(max_accuracy_drop=budget, policy="table"))
        for points in self.given.get("budgets", ()):
            ways[f"auto, {points:g} points"] = auto(self.auto(max_accuracy_drop=points))
        return ways

    def turns(self, names: list[str], batch: int, repeats: int, *, num_tokens: int = 0) -> dict[str, dict[str, Any]]:
        """Each way in turn, ``repeats`` times after a turn that is not counted, and up to twice as often where some
        way's quartiles are still apart; seconds, and what ran. In a turn of small batches a request that is not counted
        comes first: as where requests follow each other, and the link was probed a moment ago, not some seconds."""
        ways, inputs = self.ways(), example(self.engine, batch, num_tokens or 197)
        is_small = batch <= 4
        seconds: dict[str, list[float]] = {name: [] for name in names}
        joules: dict[str, list[float]] = {name: [] for name in names}
        traces: dict[str, Any] = {}
        for turn in range(2 * repeats + 1):
            if turn > repeats and all(_spread(some) <= MAX_SPREAD for some in seconds.values()):
                break
            for name in names:
                engine = ways[name]()
                if is_small:
                    engine(**inputs)
                began_s = time.perf_counter()
                engine(**inputs)
                took_s = time.perf_counter() - began_s
                traces[name] = engine.last_trace
                if turn:
                    seconds[name].append(took_s)
                    joules[name].append(self._joules(traces[name], took_s))
        return {
            name: {
                "seconds": seconds[name],
                "joules": statistics.median(joules[name]),
                **_said(traces[name]),
                **self._predicted(traces[name], name),
            }
            for name in names
        }

    def _joules(self, trace: Any, took_s: float) -> float:
        """Estimated: each device's watts, as the map has them, times the seconds that it was busy; all devices of the
        cluster, those that only wait included."""
        assert self.map is not None
        devices = self.map.costs.devices
        idle = took_s * sum(device.idle_w for device in devices)
        for part in trace.devices:
            costs = devices[part.device]
            busy_s = part.compute_s + part.codec_s + part.staging_s + part.wire_s
            idle += costs.busy_w * busy_s + costs.joules_per_megabyte * part.bytes_sent / 1e6
        return idle

    def _predicted(self, trace: Any, name: str) -> dict[str, Any]:
        """What the map says of a fixed plan at the rate of now, and whether just that was measured for the map."""
        if name.startswith(("auto", "table", "gloo")):
            return {}
        assert self.map is not None
        network = Network.measured(self.map.costs)
        if self.lab is not None:
            now = self.rate_mbit / self.given["rate_mbit"]
            for link in network.links:
                network = network.with_rate(link.device, link.bytes_per_s * now)
        found = predict(
            self.map.costs, self.map.model, trace.plan, batch=trace.batch, num_tokens=trace.num_tokens,
            element_bytes=element_bytes_of(self.dtype), network=network,
        )  # fmt: skip
        sends = sum(share > 0 for share in trace.plan.shares) > 1
        was_profiled = (not sends or self.rate_mbit == self.given["rate_mbit"]) and any(
            (one.plan.strategy, one.plan.codec, one.batch, one.num_tokens)
            == (trace.plan.strategy, trace.plan.codec, trace.batch, trace.num_tokens)
            for one in self.map.requests
        )
        return {"predicted_s": found.total_s, "was_profiled": was_profiled}

    def set_rate(self, rate_mbit: float) -> None:
        """Of every emulated link, and the moment that buckets need to be empty."""
        if self.lab is None:
            return
        self.lab.set_rate(None, rate_mbit)
        self.rate_mbit = rate_mbit
        time.sleep(0.2)

    def _write_accuracy(self, found: PerformanceMap) -> None:
        """The losses that were given: the weights are random."""
        records = [
            AccuracyRecord(
                model=found.fingerprint, codec=name, shares=(1 / self.num_devices,) * self.num_devices,
                dtype=found.dtype, dataset="cifar10", split="published", metric="accuracy", num_inputs=10000,
                num_alone=0, exact=0.9801, value=0.9801 - loss / 100, low=-loss / 100, high=-loss / 100,
                agreement=None, relative_bytes=0.1,
            )
            for name, loss in self.given["losses"].items()
        ]  # fmt: skip
        self.accuracy_path.write_text(json.dumps(AccuracyFile(records=tuple(records)).to_json()))


def _spread(seconds: list[float]) -> float:
    """From the lower quartile to the upper, over the median."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return (high - low) / middle


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


def compare(bench: Bench, given: dict[str, Any]) -> dict[str, Any]:
    """Every way in turn, for each rate, length and batch."""
    rows: dict[str, Any] = {}
    for rate_mbit in given.get("rates", [bench.given["rate_mbit"]]):
        bench.set_rate(rate_mbit)
        for num_tokens in given.get("lengths", [197]):
            for batch in given["batches"]:
                key = given["key"].format(rate=rate_mbit, tokens=num_tokens, batch=batch)
                print(f"\r{key}          ", end="", file=sys.stderr, flush=True)
                usual = 7 if batch == 1 else 5 if batch <= 4 else 3
                repeats = given.get("repeats", {}).get(str(batch), usual)
                rows[key] = bench.turns(given["ways"], batch, repeats, num_tokens=num_tokens)
    return {"rows": rows}


def sudden(bench: Bench, given: dict[str, Any]) -> dict[str, Any]:
    """The rate falls in the middle of a request: that one, and those after it, against one device."""
    fast, slow = given["rates"]
    assert bench.lab is not None
    inputs, runs = example(bench.engine, 1, 197), []
    way = bench.ways()["auto"]
    for _ in range(given["repeats"]):
        bench.set_rate(fast)
        engine = way()
        for _ in range(6):
            engine(**inputs)
        before = engine.last_trace
        assert before is not None
        usual_s = before.total_s
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
        runs.append(
            {
                "before": describe(before.plan),
                "before_s": usual_s,
                "requests": requests,
                "local_s": statistics.median(local),
            }
        )
    return {"runs": runs}


def trace(bench: Bench, given: dict[str, Any]) -> dict[str, Any]:
    """A closed loop while the rate changes: requests done by each way, and by an oracle that takes the best fixed plan
    of each step."""
    assert bench.lab is not None
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


CASES: dict[str, Callable[[Bench, dict[str, Any]], dict[str, Any]]] = {
    "compare": compare,
    "sudden": sudden,
    "trace": trace,
}


def main() -> None:
    """Profiles, then runs the cases of the file that the command line names."""
    given = json.loads(Path(sys.argv[1]).read_text())
    with ExitStack() as stack:
        bench = Bench(given, stack)
        batches = tuple(batch for batch in BATCHES if batch <= given["max_batch"])
        profiled = bench.profile(minutes=given["minutes"], batches=batches)
        found = []
        for name, settings in given["cases"]:
            bench.set_rate(given["rate_mbit"])
            found.append(CASES[name](bench, settings))
            print(file=sys.stderr)
    Path(given["out"]).write_text(json.dumps({"profile": profiled, "cases": found}))


if __name__ == "__main__":
    main()
