"""Is plan `auto` right? The published study on emulated devices, repeated and compared: `make reproduce-adaptive`.

Emulated devices of one core each (`edgeprism lab`) unless a case says otherwise, ViT-B/16 geometry with random
weights: times and bytes do not depend on their values. Cases that share a cluster run on one that is profiled once, as
`edgeprism profile` does it, and their ways of running take turns:

    table       every batch at 400 Mbit/s               at_200      batch 1 to 32 at 200 Mbit/s
    bandwidth   20 to 100 Mbit/s; fast 200 to 1000      slow        1 to 10 Mbit/s
    sudden      the rate falls in mid-request           trace       it changes every few seconds
    grid        BERT-Base: batch x rate x length x accuracy budget
    unequal     one core against a quarter, 200 Mbit/s  delay       2 ms on every link
    bfloat16    in bfloat16                             staging     with emulated copies to an accelerator
    three, four devices, each of 0.3 or 0.2 of a core

The baseline is full-tensor exchange over gloo, without overlap. Needs root; `--cluster FILE` runs `table` on boards
instead, without gloo, and writes adaptive_boards.json. `--case` does one; what others gave stays in the file.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.adapting.cluster import Emulated, run, run_on_boards
from benchmarks.adapting.losses import PUBLISHED_LOSS, measured_loss
from benchmarks.report import RESULTS, arguments, commit, record
from edgeprism.errors import LabError
from edgeprism.specs.staging import PUBLISHED as PUBLISHED_STAGING

MEANS = ["means:3.3", "means:4.95", "means:9.9"]
CODECS = [*MEANS, "int8", "kv:int8", "int4"]
FIXED = ["local", "gloo exact", "sequence exact", *(f"sequence {codec}" for codec in MEANS), "sequence int8", "replica"]
WAYS = [*FIXED, "auto", "auto, exact plans", "table"]
FEWER = ["local", "gloo exact", "sequence exact", "sequence means:9.9", "sequence int8", "replica"]
FEWER += ["auto", "auto, exact plans"]
WITHOUT_GLOO = [way for way in FEWER if way != "gloo exact"]
LAB_STARTS = 5
"""How often a lab that fails its own check, as on a busy machine, is started anew."""
BUDGET = 2.5
"""Points: the published `means:9.9` is within it."""
RATES = (400, 20, 800, 50, 5, 200, 800, 10, 100, 400, 20, 600)
STEPS = [(5 * i, rate) for i, rate in enumerate(RATES)]
ON_THE_TRACE = ["auto", "local", "replica", "sequence means:9.9", "sequence int8", "sequence exact"]

GRID_CODECS = ["int8", "rot+int4", "int4", "means:4.95", "means:9.9"]
GRID_FIXED = ["local", "sequence exact", *(f"sequence {codec}" for codec in GRID_CODECS), "replica"]
BUDGETS = (0.0, 1.0, 5.0)
GRID_WAYS = [*GRID_FIXED, *(f"auto, {points:g} points" for points in BUDGETS)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """``measure``: what device 0 does (`benchmarks.adapting.device0`), and with what."""

    emulated: Emulated
    given: dict[str, Any]
    summary: Callable[[dict[str, Any]], dict[str, Any]]
    measure: str = "compare"
    profile: dict[str, Any] = field(default_factory=dict)
    """Codecs to profile, the accuracy budget, what codecs cost: the same for all cases of a cluster."""


def ratios(rows: dict[str, Any], to: str = "local") -> dict[str, dict[str, float]]:
    """Median seconds of each way over those of one, by row."""
    return {
        name: {way: round(_median(one) / _median(row[to]), 3) for way, one in row.items()} for name, row in rows.items()
    }


def summary_of_rows(found: dict[str, Any]) -> dict[str, Any]:
    """Ratios to one device, to gloo, to the published policy and to the best fixed plan; what auto chose; how far
    predictions were off where the profiler had not measured; joules."""
    rows = found["rows"]
    summary: dict[str, Any] = {"over local": ratios(rows)}
    if all("gloo exact" in row for row in rows.values()):
        summary["auto less than gloo, %"] = {
            name: round(100 * (1 - _median(row["auto"]) / _median(row["gloo exact"])), 1) for name, row in rows.items()
        }
    if all("table" in row for row in rows.values()):
        summary["auto over table"] = {
            name: round(_median(row["auto"]) / _median(row["table"]), 3) for name, row in rows.items()
        }
    summary["auto over the best fixed plan"] = {
        name: round(_median(row["auto"]) / min(_median(one) for way, one in row.items() if _is_fixed(way)), 3)
        for name, row in rows.items()
    }
    for way in ("auto", "auto, exact plans"):
        if not all(way in row for row in rows.values()):
            continue
        summary[f"{way}: ran"] = {name: row[way]["plan"] for name, row in rows.items()}
    if all("auto, energy" in row for row in rows.values()):
        summary["joules a request of auto for energy, % less than gloo (estimated)"] = {
            name: round(100 * (1 - row["auto, energy"]["joules"] / row["gloo exact"]["joules"]), 1)
            for name, row in rows.items()
        }
    return summary | prediction_errors(rows)


def prediction_errors(rows: dict[str, Any]) -> dict[str, Any]:
    """Of fixed plans at points that the profiler had not measured: predicted over measured, less 1."""
    off = sorted(
        abs(one["predicted_s"] / _median(one) - 1)
        for row in rows.values()
        for one in row.values()
        if "predicted_s" in one and not one["was_profiled"]
    )
    if not off:
        return {}
    return {
        "predictions where nothing was profiled": {
            "n": len(off), "median": round(statistics.median(off), 4), "worst": round(off[-1], 3),
        }
    }  # fmt: skip


def summary_of_grid(found: dict[str, Any]) -> dict[str, Any]:
    """`auto` over the best fixed plan that keeps the budget, at each point."""
    over_best, over_local, losses = {}, {}, {"exact": 0.0, **measured_loss()}
    for name, row in found["rows"].items():
        for points in BUDGETS:
            allowed = [
                way
                for way in GRID_FIXED
                if not way.startswith("sequence") or losses.get(way.partition(" ")[2], 101) <= points
            ]
            took_s = _median(row[f"auto, {points:g} points"])
            over_best[f"{name}/{points:g}"] = round(took_s / min(_median(row[way]) for way in allowed), 3)
            over_local[f"{name}/{points:g}"] = round(took_s / _median(row["local"]), 3)
    return {
        "points": len(over_best),
        "auto over the best fixed plan": over_best,
        "median": round(statistics.median(over_best.values()), 3),
        "worst": max(over_best.values()),
        "auto over local": over_local,
        **prediction_errors(found["rows"]),
    }


def summary_of_sudden(found: dict[str, Any]) -> dict[str, Any]:
    """The request in which the rate fell, and those after it, over one device."""
    names = ("that request", "the first after", "the second after", "the third after")
    runs = [run for run in found["runs"] if run["before"] != "local"]  # else nothing was cut off
    summary: dict[str, Any] = {"runs among devices": len(runs)}
    for i, name in enumerate(names if runs else ()):
        ratios = [run["requests"][i]["seconds"] / run["local_s"] for run in runs]
        summary[name] = {"median": round(statistics.median(ratios), 3), "worst": round(max(ratios), 3)}
    return summary


def summary_of_trace(found: dict[str, Any]) -> dict[str, Any]:
    """Requests done in a minute; the oracle takes in each step the fixed plan that did most there."""
    done = found["requests"]
    edges = [at_s for at_s, _ in STEPS] + [60]
    by_step: dict[str, list[float]] = {name: _by_step(requests, edges) for name, requests in done.items()}
    within = {name: sum(steps) for name, steps in by_step.items()}  # of the minute, parts of requests included
    fixed = [name for name in done if name != "auto"]
    oracle = sum(max(by_step[name][i] for name in fixed) for i in range(len(STEPS)))
    return {
        "requests": {name: round(count, 1) for name, count in within.items()},
        "by step": by_step,
        "oracle": round(oracle, 1),
        "time of auto over oracle": round(oracle / within["auto"], 3),
        "best fixed": round(max(within[name] for name in fixed), 1),
    }


def _by_step(requests: list[list[Any]], edges: list[int]) -> list[float]:
    """Requests in each step; one that lies in two counts in parts."""
    counts = [0.0] * (len(edges) - 1)
    for began_s, ended_s, _ in requests:
        for i, (start, stop) in enumerate(itertools.pairwise(edges)):
            counts[i] += max(0.0, min(ended_s, stop) - max(began_s, start)) / (ended_s - began_s)
    return [round(count, 2) for count in counts]


USUAL = Emulated()
CHANGING = Emulated(frames_at_once=1)
"""For rates below 200 Mbit/s on links that start at 400."""


def _compare(emulated: Emulated, ways: list[str], batches: list[int], **given: Any) -> Case:
    settings = {"ways": ways, "batches": batches, "key": "{batch}", **given}
    return Case(emulated=emulated, given=settings, summary=summary_of_rows, profile={"max_batch": max(batches)})


CASES: dict[str, Case] = {
    "table": _compare(USUAL, [*WAYS, "auto, energy"], [1, 2, 4, 8, 16, 32]),
    "sudden": Case(
        emulated=CHANGING, measure="sudden", given={"repeats": 7, "rates": [400.0, 20.0]}, summary=summary_of_sudden
    ),
    "trace": Case(
        emulated=CHANGING,
        measure="trace",
        given={"steps": STEPS, "seconds": 60, "batch": 1, "ways": ON_THE_TRACE},
        summary=summary_of_trace,
    ),
    "slow": _compare(
        CHANGING, ["local", "auto", "auto, exact plans"], [1, 8], rates=[1.0, 2.0, 5.0, 10.0], key="{rate:g}/{batch}"
    ),
    "at_200": _compare(USUAL, ["local", "gloo exact", "auto"], [1, 4, 8, 32], rates=[200.0]),
    "bandwidth": _compare(CHANGING, WAYS, [1, 8], rates=[20.0, 50.0, 100.0], key="{rate:g}/{batch}"),
    "fast": _compare(USUAL, WAYS, [1, 8], rates=[200.0, 400.0, 700.0, 1000.0], key="{rate:g}/{batch}"),
    "grid": Case(
        emulated=Emulated(model="bert", frames_at_once=1),
        given={
            "ways": GRID_WAYS, "rates": [20.0, 100.0, 400.0], "lengths": [64, 197, 384], "batches": [1, 4],
            "key": "{rate:g}/{tokens}/{batch}", "repeats": {"1": 5, "4": 3},
        },
        summary=summary_of_grid,
        profile={"max_batch": 8, "codecs": GRID_CODECS, "budgets": BUDGETS},
    ),
    "unequal": _compare(
        Emulated(speeds=(1.0, 0.25), rate_mbit=200.0),
        ["local", "replica", "sequence exact", "auto", "auto, exact plans"],
        [1, 8],
    ),
    "delay": _compare(Emulated(delay_ms=2.0), FEWER, [1, 8]),
    "bfloat16": _compare(Emulated(dtype="bfloat16"), FEWER, [1, 8]),
    "staging": _compare(Emulated(staging=PUBLISHED_STAGING), FEWER, [1, 8]),
    "three": _compare(Emulated(speeds=(0.3,) * 3), WITHOUT_GLOO, [1, 8]),
    "four": _compare(Emulated(speeds=(0.2,) * 4), WITHOUT_GLOO, [1, 8]),
}  # fmt: skip


def main() -> int:
    """Measures, and writes benchmarks/results/adaptive.json and .csv."""
    parser = arguments(__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one (default: all)")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="boards instead of emulated devices")
    args = parser.parse_args()
    if args.cluster is not None:
        return on_boards(args.cluster, is_small=args.smoke)
    if os.geteuid():
        print("adaptive: emulated devices need root", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="edgeprism-model-") as folder:
        if args.smoke:
            small = _compare(USUAL, WAYS, [1])
            document = measure({"table": small}, Path(folder), is_small=True)
            record("adaptive", document, {}, smoke=True)
            return 0
        names = [name for name in CASES if name in (args.case or CASES)]  # the first of a cluster keeps its profile
        missing: list[str] = []
        for emulated in dict.fromkeys(CASES[name].emulated for name in names):
            wanted = {name: CASES[name] for name in names if CASES[name].emulated == emulated}
            print(f"adaptive: {', '.join(wanted)}", file=sys.stderr)
            found = _measured(wanted, Path(folder))
            if found is None:
                missing += wanted
                continue
            cases = {**_so_far(), **found}
            record("adaptive", cases, {"models": "ViT-B/16 and BERT-Base, random weights", "steps": STEPS})
            write_csv(cases, RESULTS / "adaptive.csv")
            for name in wanted:
                print(json.dumps({name: cases[name]["summary"]}, indent=1))
    if missing:
        print(f"adaptive: the lab would not start for {', '.join(missing)}; name each by --case", file=sys.stderr)
    return 1 if missing else 0


def _measured(cases: dict[str, Case], folder: Path) -> dict[str, Any] | None:
    """None where the lab's own check refused it each time."""
    for attempt in range(1, LAB_STARTS + 1):
        try:
            return measure(cases, folder)
        except LabError as exc:
            print(f"adaptive: start {attempt} of {LAB_STARTS}: {exc}", file=sys.stderr)
            time.sleep(5.0)
    return None


def on_boards(cluster: Path, *, is_small: bool) -> int:
    """The table on the devices of a cluster file."""
    ways = [way for way in WAYS if way != "gloo exact"]
    case = _compare(USUAL, ways, [1] if is_small else [1, 2, 4, 8, 16, 32])
    with tempfile.TemporaryDirectory(prefix="edgeprism-model-") as folder:
        document = measure({"table": case}, Path(folder), is_small=is_small, boards=cluster)
    record("adaptive_boards", document, {"cluster": cluster.name}, smoke=is_small)
    if not is_small:
        write_csv(document, RESULTS / "adaptive_boards.csv")
    print(json.dumps(document["table"]["summary"], indent=1))
    return 0


def measure(
    cases: dict[str, Case], folder: Path, *, is_small: bool = False, boards: Path | None = None
) -> dict[str, Any]:
    """All cases of one cluster, or of ``boards``. The first one keeps what the profiler said; the others name it."""
    first, *others = cases
    emulated = cases[first].emulated
    profiles = [case.profile for case in cases.values()]
    settings: dict[str, Any] = {
        "model": make_model(folder, emulated.model, is_small=is_small),
        "gloo": "gloo:blocking",
        "minutes": 0.2 if is_small else 6,
        "codecs": CODECS,
        "budget": BUDGET,
        "dtype": emulated.dtype,
        "losses": PUBLISHED_LOSS if emulated.model == "vit" else measured_loss(),
        **profiles[0],
        "max_batch": max([profile.get("max_batch", 4) for profile in profiles]),
    }
    wanted = [(case.measure, case.given) for case in cases.values()]
    if boards is None:
        found = run(emulated, wanted, settings, is_checked=not is_small)
    else:
        found = run_on_boards(boards, wanted, settings)
    made: dict[str, Any] = {}
    for (name, case), rows in zip(cases.items(), found["cases"], strict=True):
        made[name] = {"commit": commit(), **rows, "summary": case.summary(rows)}
    made[first] |= {key: found[key] for key in ("profile", "lab", "relay_cpu_s")}
    for name in others:
        made[name]["profile of"] = first
    return made


def make_model(folder: Path, kind: str, *, is_small: bool) -> str:
    """A directory with ViT-B/16 or BERT-Base, or a tiny one."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    given = small if is_small else {}
    directory = folder / (f"{kind}-tiny" if is_small else f"{kind}-base")
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(num_labels=2, **given))
    else:
        model = ViTForImageClassification(ViTConfig(num_labels=10, **given))
    model.eval().save_pretrained(directory)
    return str(directory)


def write_csv(cases: dict[str, Any], path: Path) -> None:
    """A line for each way in each row: case, row, way, plan, n, median, quartiles and p95 in seconds."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["case", "row", "way", "plan", "n", "median_s", "p25_s", "p75_s", "p95_s", "bytes_sent"])
        for case, found in cases.items():
            for row, ways in found.get("rows", {}).items():
                for way, one in ways.items():
                    low, _, high = statistics.quantiles(one["seconds"], n=4, method="inclusive")
                    p95 = statistics.quantiles(one["seconds"], n=20, method="inclusive")[-1]
                    times = (f"{value:.5f}" for value in (_median(one), low, high, p95))
                    lines.writerow([case, row, way, one["plan"], len(one["seconds"]), *times, one["bytes_sent"]])


def _is_fixed(way: str) -> bool:
    return not way.startswith(("auto", "table", "gloo"))


def _median(one: dict[str, Any]) -> float:
    return statistics.median(one["seconds"])


def _so_far() -> dict[str, Any]:
    try:
        cases: dict[str, Any] = json.loads((RESULTS / "adaptive.json").read_text())["figures"]
        return cases
    except OSError:
        return {}


if __name__ == "__main__":
    sys.exit(main())
