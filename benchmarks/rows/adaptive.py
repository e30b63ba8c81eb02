"""Rows of `benchmarks.adaptive`."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.rows.row import Row, reported


def adaptive(document: dict[str, Any]) -> list[Row]:
    """Plan auto on emulated devices, against one device, the published baseline and the published policy."""
    cases = document["figures"]
    return [
        *(_table_of_batches(cases["table"]) if "table" in cases else []),
        *(_at_200(cases["at_200"]) if "at_200" in cases else []),
        *(_exact_plans(cases["fast"]) if "fast" in cases else []),
        *_every_point(cases),
        *(_grid(cases["grid"]) if "grid" in cases else []),
        *(_sudden(cases["sudden"]) if "sudden" in cases else []),
        *(_trace(cases["trace"]) if "trace" in cases else []),
        *(_unequal(cases["unequal"]) if "unequal" in cases else []),
        *(row for name in ("delay", "bfloat16", "staging", "three", "four") for row in _other(name, cases)),
    ]


def _table_of_batches(case: dict[str, Any]) -> list[Row]:
    summary = case["summary"]
    over_local, over_table = summary["over local"], summary["auto over table"]

    def of(way: str) -> str:
        return ", ".join(f"{row[way]:.2f}" for row in over_local.values())

    where, batches = "emulated devices, 400 Mbit/s, ViT-B/16", ", ".join(over_local)
    made = [
        reported(f"{where}, `auto` / `local` at batch {batches}, `means` allowed", of("auto")),
        reported("the same, exact plans only", of("auto, exact plans")),
        reported("the same, full tensors over gloo without overlap (the published baseline)", of("gloo exact")),
        Row(
            what=f"the same, `auto` / the published look-up policy at batch {batches}",
            reach="≤ 1.00",
            measured=", ".join(f"{ratio:.2f}" for ratio in over_table.values()),
            met=max(over_table.values()) <= 1.0,
        ),
    ]
    joules = summary.get("joules a request of auto for energy, % less than gloo (estimated)")
    if joules:
        saved = ", ".join(f"{percent:.0f}" for percent in joules.values())
        what = f"the same, joules a request of `auto` for energy, less than full tensors over gloo, batch {batches}"
        made.append(reported(what, f"{saved} % (estimated; published 34 to 52 %)"))
    profile = case["profile"]
    what = f"predictions of the {profile['num_points']} points that were profiled, in {profile['num_passes']} passes"
    off = f"off by {profile['fit_error_median']:.1%} (median), {profile['fit_error_worst']:.0%} at most"
    return [*made, reported(what, off)]


def _at_200(case: dict[str, Any]) -> list[Row]:
    less, over_local = case["summary"]["auto less than gloo, %"], case["summary"]["over local"]
    most = {"1": 58.0, "4": 70.0, "8": 70.0, "32": 70.0}
    slowest = {"1": 0.66, "8": 0.54, "32": 0.54}
    return [
        Row(
            what=f"200 Mbit/s: `auto` less than full tensors over gloo at batch {', '.join(most)}",
            reach="≥ 58 % at 1, 70 % from 4 on",
            measured=", ".join(f"{less[batch]:.0f}" for batch in most) + " %",
            met=all(less[batch] >= percent for batch, percent in most.items()),
        ),
        Row(
            what=f"the same / `local` at batch {', '.join(slowest)}",
            reach="≤ 0.66, 0.54, 0.54",
            measured=", ".join(f"{over_local[batch]['auto']:.2f}" for batch in slowest),
            met=all(over_local[batch]["auto"] <= ratio for batch, ratio in slowest.items()),
        ),
    ]


def _exact_plans(case: dict[str, Any]) -> list[Row]:
    over_local = case["summary"]["over local"]
    at_400, at_1000 = (over_local[row]["auto, exact plans"] for row in ("400/1", "1000/1"))
    return [
        Row(
            what="`auto` on exact plans / `local` at batch 1, 400 and 1000 Mbit/s",
            reach="≤ 0.92, 0.80",
            measured=f"{at_400:.2f}, {at_1000:.2f}",
            met=at_400 <= 0.92 and at_1000 <= 0.80,
        )
    ]


def _every_point(cases: dict[str, Any]) -> list[Row]:
    """What holds wherever `auto` was measured on two equal devices, and of all predictions together."""
    over_local = {
        f"{name} {row}, {way}": ratio
        for name in ("table", "at_200", "bandwidth", "fast", "slow", "delay", "bfloat16", "staging")
        if name in cases
        for row, ratios in cases[name]["summary"]["over local"].items()
        for way, ratio in ratios.items()
        if way in ("auto", "auto, exact plans")
    }
    if "grid" in cases:
        over_local |= {f"grid {point}": ratio for point, ratio in cases["grid"]["summary"]["auto over local"].items()}
    if not over_local:
        return []
    worst = max(over_local, key=lambda point: over_local[point])
    made = [
        Row(
            what=f"`auto` / `local` at each of {len(over_local)} points of two equal devices, at worst",
            reach="≤ 1.03",
            measured=f"{over_local[worst]:.3f} ({worst})",
            met=over_local[worst] <= 1.03,
        )
    ]
    off = [
        abs(one["predicted_s"] / statistics.median(one["seconds"]) - 1)
        for case in cases.values()
        for row in case.get("rows", {}).values()
        for one in row.values()
        if "predicted_s" in one and not one["was_profiled"]
    ]
    if off:
        made.append(
            Row(
                what=f"predictions of {len(off)} points that were never profiled (rates, batches, lengths), median",
                reach="≤ 10 %",
                measured=f"{statistics.median(off):.1%} ({statistics.quantiles(off, n=20)[-1]:.0%} at the 95th part)",
                met=statistics.median(off) <= 0.10,
            )
        )
    return made


def _grid(case: dict[str, Any]) -> list[Row]:
    found = case["summary"]
    return [
        Row(
            what=f"`auto` / the best fixed plan within the budget, BERT-Base, {found['points']} points "
            "(batch x rate x length x budget): median, worst",
            reach="≤ 1.05, 1.10",
            measured=f"{found['median']:.3f}, {found['worst']:.2f}",
            met=found["median"] <= 1.05 and found["worst"] <= 1.10,
        )
    ]


def _sudden(case: dict[str, Any]) -> list[Row]:
    first, second = case["summary"].get("that request"), case["summary"].get("the second after")
    if first is None or second is None:
        return []  # one device ran in each: nothing was cut off
    return [
        Row(
            what="400 to 20 Mbit/s in the middle of a request: that one, and the second after it / `local`",
            reach="≤ 2.2, ≤ 1.05",
            measured=f"{first['median']:.2f}, {second['median']:.2f}; at worst {first['worst']:.2f}, "
            f"{second['worst']:.2f} ({case['summary'].get('runs among devices', len(case['runs']))} times)",
            met=first["worst"] <= 2.2 and second["worst"] <= 1.05,
        )
    ]


def _trace(case: dict[str, Any]) -> list[Row]:
    found = case["summary"]
    ratio, best = found["time of auto over oracle"], found["best fixed"]
    return [
        Row(
            what="a minute of rates from 5 to 800 Mbit/s, closed loop: time a request of `auto` / of an oracle",
            reach="≤ 1.10, more requests than any fixed plan",
            measured=f"{ratio:.2f} ({found['requests']['auto']} requests; the best fixed plan {best})",
            met=ratio <= 1.10 and found["requests"]["auto"] > best,
        )
    ]


def _unequal(case: dict[str, Any]) -> list[Row]:
    over_local = case["summary"]["over local"]
    at_1, at_8 = over_local["1"]["auto"], over_local["8"]["auto"] * 1.25
    return [
        Row(
            what="one core and a quarter: `auto` / the faster one at batch 1, / the ideal of both at batch 8",
            reach="≤ 1.03, 1.10",
            measured=f"{at_1:.3f}, {at_8:.3f}",
            met=at_1 <= 1.03 and at_8 <= 1.10,
        )
    ]


_OTHERS = {
    "delay": "2 ms of delay, 400 Mbit/s",
    "bfloat16": "bfloat16, 400 Mbit/s",
    "staging": "emulated staging, 400 Mbit/s",
    "three": "three devices of 0.3 of a core, 400 Mbit/s (bound 0.33)",
    "four": "four devices of 0.2 of a core, 400 Mbit/s (bound 0.25)",
}


def _other(name: str, cases: dict[str, Any]) -> list[Row]:
    if name not in cases:
        return []
    over_local = cases[name]["summary"]["over local"]
    auto = ", ".join(f"{row['auto']:.2f}" for row in over_local.values())
    gloo = ", ".join(f"{row['gloo exact']:.2f}" for row in over_local.values() if "gloo exact" in row)
    measured = auto + (f" (full tensors over gloo {gloo})" if gloo else "")
    measured += f"; one image on one device {statistics.median(cases[name]['rows']['1']['local']['seconds']):.2f} s"
    return [reported(f"{_OTHERS[name]}: `auto` / `local` at batch {', '.join(over_local)}", measured)]
