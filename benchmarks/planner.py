"""Are the planner's partitions the best there are, and how long does it take? Numbers in, numbers out: nothing is run.

Random small pipelines against every partition that there is; 16 devices that all differ with 97 cut points, in a
process of its own, so that its memory can be told.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, permutations
from pathlib import Path
from typing import Any

from benchmarks.report import arguments, record
from edgeprism.errors import PlanError
from edgeprism.planner import baselines
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.quickest import quickest
from edgeprism.planner.throughput import fastest
from edgeprism.specs.plan import Stage

Stages = tuple[Stage, ...]
REPEATS = 5


def main() -> int:
    """Writes benchmarks/results/planner.json."""
    parser = arguments(__doc__)
    parser.add_argument("--memory", choices=("tight", "ample"), help="only this large one; prints its figures")
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(large_figures(args.memory, repeats=1 if args.smoke else REPEATS)))
        return 0
    count = 20 if args.smoke else 1000
    figures: dict[str, Any] = {"small": against_all(count)}
    for memory in ("tight", "ample"):
        argv = [sys.executable, "-m", "benchmarks.planner", "--memory", memory, *(["--smoke"] if args.smoke else [])]
        figures[memory] = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    record("planner", figures, {"count": count, "devices": 16, "cuts": 97}, smoke=args.smoke)
    print(json.dumps(figures, indent=1))
    return 0


def against_all(count: int) -> dict[str, int]:
    """How many random small pipelines there were, how many had an answer, and how many answers were not the best."""
    num_feasible, num_worse = 0, 0
    for seed in range(count):
        print(f"\r{seed + 1}/{count}", end="", file=sys.stderr, flush=True)
        pipeline = some(seed)
        for search, measure in ((fastest, pipeline.period_s), (quickest, pipeline.request_s)):
            best_s = least(pipeline, measure)
            try:
                found_s = measure(search(pipeline))
            except PlanError:
                found_s = math.inf
            num_feasible += best_s < math.inf
            num_worse += not (found_s == best_s or math.isclose(found_s, best_s, rel_tol=1e-9))
    print(file=sys.stderr)
    return {"pipelines": count, "answers": num_feasible, "not the best": num_worse}


def large_figures(memory: str, *, repeats: int) -> dict[str, Any]:
    """Seconds, peak memory, and the published partitions beside the best."""
    pipeline = large()
    if memory == "ample":
        pipeline = dataclasses.replace(pipeline, memory_bytes=(math.inf,) * pipeline.num_devices)
    base_mb = peak_mb()
    seconds: dict[str, list[float]] = {"throughput": [], "latency": []}
    for _ in range(repeats):
        for name, search in (("throughput", fastest), ("latency", quickest)):
            began_s = time.perf_counter()
            stages = search(pipeline)
            seconds[name].append(time.perf_counter() - began_s)
            if name == "throughput":
                best_s = pipeline.period_s(stages)
    devices = tuple(range(pipeline.num_devices))
    return {
        "seconds": {name: round(statistics.median(each), 3) for name, each in seconds.items()},
        "peak_mb": peak_mb(),
        "before_mb": base_mb,
        "period of the published partitions over the best": {
            name: round(pipeline.period_s(make(pipeline, devices)) / best_s, 2)
            for name, make in baselines.BASELINES.items()
        },
    }


def peak_mb() -> int:
    """The most memory that this process has had, since it was this program: ``ru_maxrss`` counts its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return round(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1.024e-3)


def some(seed: int) -> Pipeline:
    """A small one: devices of many speeds and memories, links of many rates, sums that round."""
    rng = random.Random(seed)
    devices, pieces = rng.randint(1, 4), rng.randint(1, 4)
    speeds = [rng.choice([1.0, 1.0, 2.0, 4.0, 0.3]) for _ in range(devices)]
    work = [rng.choice([0.1, 0.2, 0.7]) for _ in range(pieces)]
    weights = tuple(rng.choice([10, 20, 40]) for _ in range(pieces))
    return Pipeline(
        piece_s=tuple(tuple(one / speed * rng.uniform(0.9, 1.1) for one in work) for speed in speeds),
        cut_bytes=tuple(rng.choice([1, 5, 20]) for _ in range(pieces + 1)),
        weight_bytes=weights,
        work_bytes=tuple(rng.choice([0, 3]) for _ in range(pieces)),
        memory_bytes=tuple(rng.choice([math.inf, 60.0, 100.0, 150.0]) for _ in range(devices)),
        latency_s=tuple(tuple(rng.choice([0.0, 0.01]) for _ in range(devices)) for _ in range(devices)),
        bytes_per_s=tuple(tuple(rng.choice([10.0, 50.0, 1000.0]) for _ in range(devices)) for _ in range(devices)),
        queue_length=rng.choice([0, 1]),
        home=rng.randrange(devices),
        s_per_byte=rng.choice([(), tuple(rng.choice([0.0, 0.01, 0.1]) for _ in range(devices))]),
    )


def large(devices: int = 16, pieces: int = 96) -> Pipeline:
    """All devices different, all links too, memory for an eighth of the model each."""
    rng = random.Random(1)
    speeds = [rng.uniform(0.5, 4.0) for _ in range(devices)]
    work = [0.02, 0.01, 0.03, 0.03] * (pieces // 4)
    return Pipeline(
        piece_s=tuple(tuple(one / speed for one in work) for speed in speeds),
        cut_bytes=(600_000, *[800_000, 400_000, 1_600_000, 400_000] * (pieces // 4)),
        weight_bytes=(4_000_000,) * pieces,
        work_bytes=(2_000_000,) * pieces,
        memory_bytes=tuple(rng.uniform(40e6, 90e6) for _ in range(devices)),
        latency_s=((1e-3,) * devices,) * devices,
        bytes_per_s=tuple(tuple(rng.uniform(10e6, 125e6) for _ in range(devices)) for _ in range(devices)),
    )


def every_partition(pipeline: Pipeline) -> Iterator[Stages]:
    """On every sequence of devices, cut everywhere; relays included."""
    for count in range(1, pipeline.num_devices + 1):
        for devices in permutations(range(pipeline.num_devices), count):
            for cuts in combinations_with_replacement(range(pipeline.num_pieces + 1), count - 1):
                bounds = [0, *cuts, pipeline.num_pieces]
                yield tuple(
                    Stage(device=device, start=start, stop=stop)
                    for device, start, stop in zip(devices, bounds, bounds[1:], strict=False)
                )


def least(pipeline: Pipeline, measure: Callable[[Stages], float]) -> float:
    """Of every partition that fits; infinite where none does."""
    best = math.inf
    for stages in every_partition(pipeline):
        if measure(stages) < best:
            try:
                pipeline.check(stages)
            except PlanError:
                continue
            best = measure(stages)
    return best


if __name__ == "__main__":
    sys.exit(main())
