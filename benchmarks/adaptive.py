"""Is plan `auto` right? The published study on emulated devices, repeated and compared: `make reproduce-adaptive`.

Two emulated devices of one core each (`edgeprism lab`), ViT-B/16 geometry with random weights: times and bytes do not
depend on their values. Every case begins with `edgeprism profile`'s sweep, and its ways of running take turns. `table`:
every batch at 400 Mbit/s; `bandwidth`: 20 to 1000 Mbit/s; `sudden`: the rate falls in the middle of a request; `trace`:
it changes every few seconds under a closed loop; `unequal`: one core against a quarter. The baseline is full-tensor
exchange over gloo, without overlap. Needs root. `--case` does one; what others gave stays in the file.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.adapting.cluster import run
from benchmarks.report import RESULTS, arguments, commit, record

FIXED = ["local", "gloo exact", "sequence exact", "sequence means:3.3", "sequence means:4.95", "sequence means:9.9"]
FIXED += ["sequence int8", "replica"]
WAYS = [*FIXED, "auto", "auto, exact plans", "table"]
WITHOUT_GLOO = [way for way in WAYS if way != "gloo exact"]
USUAL: dict[str, Any] = {"dtype": "float32", "gloo": "gloo:blocking", "minutes": 6, "max_batch": 32}
RATES = (400, 20, 800, 50, 5, 200, 800, 10, 100, 400, 20, 600)
STEPS = [(5 * i, rate) for i, rate in enumerate(RATES)]
ON_THE_TRACE = ["auto", "local", "replica", "sequence means:9.9", "sequence int8", "sequence exact"]


def table(settings: dict[str, Any]) -> dict[str, Any]:
    """Every batch at 400 Mbit/s."""
    given = {**settings, "batches": settings.get("batches", [1, 2, 4, 8, 16, 32]), "ways": WAYS}
    return run("table", given, speeds=(1.0, 1.0), rate_mbit=400, delay_ms=0, has_gloo=True, **_checked(settings))


def bandwidth(settings: dict[str, Any]) -> dict[str, Any]:
    """Batch 1 and 8 at many rates."""
    rates = [20.0, 50.0, 100.0, 200.0, 400.0, 700.0, 1000.0]
    given = {"rates": rates, "batches": [1, 8], **settings, "ways": WAYS, "max_batch": 8}
    return run("bandwidth", given, speeds=(1.0, 1.0), rate_mbit=400, delay_ms=0, has_gloo=True, **_checked(settings))


def sudden(settings: dict[str, Any]) -> dict[str, Any]:
    """400 to 20 Mbit/s in the middle of a request."""
    given = {"repeats": 7, **settings, "rates": [400.0, 20.0], "max_batch": 4}
    return run("sudden", given, speeds=(1.0, 1.0), rate_mbit=400, delay_ms=0, **_checked(settings))


def trace(settings: dict[str, Any]) -> dict[str, Any]:
    """A minute in which the rate changes every five seconds."""
    given = {"steps": STEPS, "seconds": 60, **settings, "batch": 1, "ways": ON_THE_TRACE, "max_batch": 4}
    return run("trace", given, speeds=(1.0, 1.0), rate_mbit=400, delay_ms=0, **_checked(settings))


def unequal(settings: dict[str, Any]) -> dict[str, Any]:
    """One core against a quarter of one."""
    given = {"batches": [1, 8], **settings, "ways": ["local", "replica", "sequence exact", "auto", "auto, exact plans"]}
    given["max_batch"] = 8
    return run("table", given, speeds=(1.0, 0.25), rate_mbit=400, delay_ms=0, **_checked(settings))


CASES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "table": table,
    "bandwidth": bandwidth,
    "sudden": sudden,
    "trace": trace,
    "unequal": unequal,
}


def main() -> int:
    """Measures, and writes benchmarks/results/adaptive.json and .csv."""
    parser = arguments(__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one (default: all)")
    args = parser.parse_args()
    if os.geteuid():
        print("adaptive: emulated devices need root", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="edgeprism-model-") as folder:
        settings = {**USUAL, "model": make_model(Path(folder), is_small=args.smoke)}
        if args.smoke:
            settings |= {"batches": [1], "max_batch": 1, "minutes": 0.2, "is_checked": False}
            record("adaptive", {"table": table(settings)}, settings, smoke=True)
            return 0
        for name in args.case or CASES:
            print(f"adaptive: {name}", file=sys.stderr)
            found = CASES[name](settings)
            cases = {**_so_far(), name: {"commit": commit(), **found, "summary": SUMMARIES[name](found)}}
            record("adaptive", cases, {**USUAL, "model": "ViT-B/16, random weights", "steps": STEPS})
            write_csv(cases, RESULTS / "adaptive.csv")
            print(json.dumps(cases[name]["summary"], indent=1))
    return 0


def make_model(folder: Path, *, is_small: bool) -> str:
    """A directory with ViT-B/16, or a tiny one."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = ViTConfig(num_labels=10, **(small if is_small else {}))
    directory = folder / ("vit-tiny" if is_small else "vit-b16")
    ViTForImageClassification(config).eval().save_pretrained(directory)
    return str(directory)


def ratios(rows: dict[str, Any], to: str = "local") -> dict[str, dict[str, float]]:
    """Median seconds of each way over those of one, by row."""
    return {
        name: {way: round(_median(one) / _median(row[to]), 3) for way, one in row.items()} for name, row in rows.items()
    }


def summary_of_table(found: dict[str, Any]) -> dict[str, Any]:
    """Ratios to one device and to gloo, and what auto chose."""
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
    fixed = {
        name: {way: one for way, one in row.items() if not way.startswith(("auto", "table", "gloo"))}
        for name, row in rows.items()
    }
    summary["auto over the best fixed plan"] = {
        name: round(_median(rows[name]["auto"]) / min(map(_median, row.values())), 3) for name, row in fixed.items()
    }
    summary["auto ran"] = {name: row["auto"]["plan"] for name, row in rows.items()}
    summary["auto ran, exact plans"] = {name: row["auto, exact plans"]["plan"] for name, row in rows.items()}
    return summary


def summary_of_sudden(found: dict[str, Any]) -> dict[str, Any]:
    """The request in which the rate fell, and those after it, over one device."""
    names = ("that request", "the first after", "the second after", "the third after")
    runs = found["runs"]
    return {
        name: {
            "median": round(statistics.median(run["requests"][i]["seconds"] / run["local_s"] for run in runs), 3),
            "worst": round(max(run["requests"][i]["seconds"] / run["local_s"] for run in runs), 3),
        }
        for i, name in enumerate(names)
    }


def summary_of_trace(found: dict[str, Any]) -> dict[str, Any]:
    """Requests done in a minute; the oracle takes in each step the fixed plan that did most there."""
    done = found["requests"]
    counts = {name: len(requests) for name, requests in done.items()}
    edges = [at_s for at_s, _ in STEPS] + [60]
    by_step: dict[str, list[float]] = {name: _by_step(requests, edges) for name, requests in done.items()}
    fixed = [name for name in done if name != "auto"]
    oracle = sum(max(by_step[name][i] for name in fixed) for i in range(len(STEPS)))
    return {
        "requests": counts,
        "by step": by_step,
        "oracle": round(oracle, 1),
        "time of auto over oracle": round(oracle / counts["auto"], 3),
        "best fixed": max(counts[name] for name in fixed),
    }


def _by_step(requests: list[list[Any]], edges: list[int]) -> list[float]:
    """Requests in each step; one that lies in two counts in parts."""
    counts = [0.0] * (len(edges) - 1)
    for began_s, ended_s, _ in requests:
        for i, (start, stop) in enumerate(itertools.pairwise(edges)):
            counts[i] += max(0.0, min(ended_s, stop) - max(began_s, start)) / (ended_s - began_s)
    return [round(count, 2) for count in counts]


SUMMARIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "table": summary_of_table,
    "bandwidth": summary_of_table,
    "sudden": summary_of_sudden,
    "trace": summary_of_trace,
    "unequal": summary_of_table,
}


def write_csv(cases: dict[str, Any], path: Path) -> None:
    """A line for each way in each row: case, row, way, plan, n, median and p95 in seconds."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["case", "row", "way", "plan", "n", "median_s", "p95_s", "bytes_sent"])
        for case, found in cases.items():
            for row, ways in found.get("rows", {}).items():
                for way, one in ways.items():
                    seconds = sorted(one["seconds"])
                    p95 = seconds[min(len(seconds) - 1, round(0.95 * (len(seconds) - 1)))]
                    values = (len(seconds), f"{_median(one):.5f}", f"{p95:.5f}", one["bytes_sent"])
                    lines.writerow([case, row, way, one["plan"], *values])


def _median(one: dict[str, Any]) -> float:
    return statistics.median(one["seconds"])


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    return {"is_checked": settings.get("is_checked", True)}


def _so_far() -> dict[str, Any]:
    try:
        cases: dict[str, Any] = json.loads((RESULTS / "adaptive.json").read_text())["figures"]
        return cases
    except OSError:
        return {}


if __name__ == "__main__":
    sys.exit(main())
