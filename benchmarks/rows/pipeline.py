"""Rows of `benchmarks.planner` and `benchmarks.pipeline`."""

from __future__ import annotations

from typing import Any

from benchmarks.rows.row import Row


def planner(document: dict[str, Any]) -> list[Row]:
    """Partitions of a pipeline."""
    small, large = document["figures"]["small"], [document["figures"][name] for name in ("tight", "ample")]
    throughput = max(one["seconds"]["throughput"] for one in large)
    latency, memory = max(one["seconds"]["latency"] for one in large), max(one["peak_mb"] for one in large)
    return [
        Row(
            what=f"partitions of {small['pipelines']} random small pipelines against every partition that there is",
            reach="equal",
            measured=f"{small['not the best']} of {small['answers']} answers not the best",
            met=small["not the best"] == 0,
        ),
        Row(
            what="the same for 16 devices that all differ, 97 cut points: for throughput, for one request, peak memory",
            reach="< 1 s, < 5 s, 300 MB",
            measured=f"{throughput:.2f} s, {latency:.1f} s, {memory:.0f} MB",
            met=throughput < 1 and latency < 5 and memory <= 300,
        ),
    ]


def pipeline(document: dict[str, Any]) -> list[Row]:
    """Layers split over devices."""
    figures, rows = document["figures"], list[Row]()
    if "two" in figures:
        two = figures["two"]
        many, one = two["throughput over one device"], two["one image over one device"]
        rows += [
            Row(
                what="`pipeline`, ViT-Base, two processes of one core, 64 images in micro-batches of 8 / one device",
                reach="≥ 1.74 (PipeEdge 1.69)",
                measured=f"{many:.2f} (`replica` {two['replica over one device']:.2f})",
                met=many >= 1.74,
            ),
            Row(
                what="the same, one image alone: time / one device's",
                reach="≤ 1.03 (PipeEdge 1.10)",
                measured=f"{one:.2f}",
                met=one <= 1.03,
            ),
        ]
    if "slow" in figures:
        slow = figures["slow"]
        rows.append(
            Row(
                what="the same at 10 Mbit/s, rows that follow the bandwidth: throughput / float32 rows",
                reach="≥ 3",
                measured=f"{slow['following over float32']:.1f} (logits off by "
                f"{100 * slow['following']['largest difference of logits']:.0f} % of the largest, same answer "
                f"{100 * slow['following']['same answer']:.0f} %)",
                met=slow["following over float32"] >= 3,
            )
        )
    if "memory" in figures:
        memory = figures["memory"]
        rows.append(
            Row(
                what="half of ViT-Large: a worker's private memory / 1.25 of its weights, an idle worker, queues",
                reach="≤ 1",
                measured=f"{memory['over what is allowed']:.2f} ({memory['at most, MB']:.0f} MB)",
                met=memory["over what is allowed"] <= 1,
            )
        )
    rows += _on_labs(figures)
    return rows


def _on_labs(figures: dict[str, Any]) -> list[Row]:
    """Emulated devices, and what the planner says of some that are not here."""
    rows: list[Row] = []
    reach = {"vit-large": (12.0, "10.59"), "vit-huge": (13.0, "11.88"), "bert-large": (13.0, "12.78")}
    for name, (least, printed) in reach.items():
        if name in figures.get("sixteen", {}):
            times = figures["sixteen"][name]["streams"]["best"]["throughput over one device"]
            rows.append(
                Row(
                    what=f"sixteen emulated devices, each a tenth of a core, {name}: throughput / one of them",
                    reach=f"≥ {least:g} (published {printed})",
                    measured=f"{times:.1f}",
                    met=times >= least,
                )
            )
    if "four" in figures and "vit-huge" in figures.get("sixteen", {}):
        times = _period_s(figures["four"]["vit-huge"]) / _period_s(figures["sixteen"]["vit-huge"])
        rows.append(
            Row(
                what="ViT-Huge on sixteen of them: throughput / four of them",
                reach="≥ 3.93 (published 3.93)",
                measured=f"{times:.2f}",
                met=times >= 3.93,
            )
        )
    if "huge" in figures:
        huge = figures["huge"]["vit-huge"]
        rows.append(
            Row(
                what="ViT-Huge on four emulated devices of 1.2 GB each; on one of them",
                reach="runs; refused with what is missing",
                measured=f"an image every {_period_s(huge):.1f} s; {huge.get('one device', 'ran')}",
                met=not huge["streams"]["best"]["failures"] and "missing" in huge.get("one device", ""),
            )
        )
    if "grid" in figures:
        grid = figures["grid"]
        nearest = ", ".join(f"{value:.2f} at {key}" for key, value in grid["nearest cell"].items())
        rows.append(
            Row(
                what="8 + 8 unequal devices, 24 cells (speed/memory/Mbit/s), predicted: best / other partitions",
                reach="≥ 1.0",
                measured=f"least {grid['least']:.2f}; over PipeDream's at most {grid['most over PipeDream']:.2f}, "
                f"nearest to the published {grid['published']}: {nearest}",
                met=grid["least"] >= 1,
            )
        )
    if "unequal" in figures:
        found = figures["unequal"]["measured over the best"]
        least = min(found.values())
        rows.append(
            Row(
                what="8 + 8 emulated devices (0.12 and 0.06 of a core), "
                f"{figures['unequal']['rate_mbit']:g} Mbit/s, ViT-Large: best / other partitions",
                reach="≥ 0.97",
                measured=", ".join(f"{name} {value:.2f}" for name, value in found.items() if name != "best"),
                met=least >= 0.97,
            )
        )
    if "clusters" in figures:
        clusters = figures["clusters"]
        rows.append(
            Row(
                what=f"simulated against measured throughput, {len(clusters['clusters'])} emulated clusters, worst",
                reach="within 10 %",
                measured=f"{100 * clusters['worst off']:.0f} % (median {100 * clusters['median off']:.0f} %)",
                met=clusters["worst off"] <= 0.1,
            )
        )
    return rows


def _period_s(found: dict[str, Any]) -> float:
    return float(found["streams"]["best"]["period_s"])
