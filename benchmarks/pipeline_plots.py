"""The figure of docs/explanation/pipeline.md, drawn from benchmarks/results/pipeline.json alone.

Left: how many times longer the published partitions take than the best one, by speed ratio and rate (computed). Middle:
throughput of sixteen emulated devices over one. Right: throughput of emulated clusters beside what was simulated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS

OUT = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "pipeline.png"
PUBLISHED = {"vit-large": 10.59, "vit-huge": 11.88, "bert-large": 12.78}
"""EdgePipe on sixteen MinnowBoards over one (arXiv 2110.14895)."""
OTHERS = ("PipeDream", "even", "proportional")


def main() -> int:
    """Draws what the file has."""
    from matplotlib import pyplot

    cases = json.loads((RESULTS / "pipeline.json").read_text())["figures"]
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    partitions(axes[0], cases["grid"]["speed ratio/memory ratio/Mbit/s"])
    scaling(axes[1], cases["sixteen"])
    simulated(axes[2], cases["clusters"]["clusters"])
    figure.savefig(OUT, dpi=130)
    pyplot.close(figure)
    return 0


def partitions(axes: Any, cells: dict[str, dict[str, float | None]]) -> None:
    """A line for each partition and rate, by speed ratio; of the smaller memory, which changes nothing."""
    rates = sorted({int(key.split("/")[2]) for key in cells})
    ratios = sorted({int(key.split("/")[0]) for key in cells})
    for name, style in zip(OTHERS, ("-", ":", "--"), strict=True):
        for rate, colour in zip(rates, ("tab:red", "tab:orange", "tab:blue"), strict=True):
            times = [cells[f"{ratio}/1/{rate}"][name] for ratio in ratios]
            axes.plot(ratios, times, style, color=colour, marker="o", markersize=3, label=f"{name}, {rate} Mbit/s")
    axes.set(
        xlabel="how much faster eight of sixteen devices are", ylabel="time over the best partition's",
        title="partitions of ViT-Large (computed)", xticks=ratios,
    )  # fmt: skip
    axes.legend(fontsize=6, handlelength=4)
    axes.grid(alpha=0.3)


def scaling(axes: Any, found: dict[str, Any]) -> None:
    """Bars, ours beside what was printed."""
    names = [name for name in PUBLISHED if name in found]
    ours = [found[name]["streams"]["best"]["throughput over one device"] for name in names]
    places = range(len(names))
    axes.bar([place - 0.2 for place in places], ours, 0.38, label="measured here", color="tab:blue")
    axes.bar(
        [place + 0.2 for place in places], [PUBLISHED[name] for name in names], 0.38, label="EdgePipe, as published",
        color="tab:gray",
    )  # fmt: skip
    axes.axhline(16, color="black", linewidth=0.8)
    axes.set_xticks(list(places), names)
    axes.set(ylabel="throughput over one device's", title="sixteen emulated devices", ylim=(0, 17))
    axes.legend(fontsize=7, loc="lower right")


def simulated(axes: Any, clusters: list[dict[str, Any]]) -> None:
    """A point for each cluster, and the lines that are a tenth off."""
    measured, told = [[1 / one[key] for one in clusters] for key in ("measured_s", "simulated_s")]
    most = 1.1 * max(measured + told)
    axes.plot([0, most], [0, most], color="black", linewidth=0.8)
    for part in (0.9, 1.1):
        axes.plot([0, most], [0, part * most], color="black", linewidth=0.6, linestyle=":")
    axes.plot(told, measured, "o", color="tab:blue")
    axes.set(
        xlabel="simulated, images/s", ylabel="measured, images/s", title="simulator and lab (dotted: 10 % off)",
        xlim=(0, most), ylim=(0, most),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
