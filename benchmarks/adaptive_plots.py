"""The figures of docs/explanation/adapting.md, drawn from benchmarks/results/adaptive.json alone.

`regimes.png`: which plan the map says wins at each batch and rate; `adaptive_table.png`: measured times of every way
over one device's, by batch; `adaptive_bandwidth_1.png` and `..._8.png`: the same by rate.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.adapting.losses import PUBLISHED_LOSS
from benchmarks.adaptive import FIXED
from benchmarks.report import RESULTS
from edgeprism.profiler.plots import draw
from edgeprism.specs.performance_map import PerformanceMap

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "explanation"
SHOWN = [*(way for way in FIXED if way != "local"), "auto", "auto, exact plans", "table"]
BUDGET = 2.5


def main() -> int:
    """Draws what the file has."""
    cases = json.loads((RESULTS / "adaptive.json").read_text())["figures"]
    found = PerformanceMap.from_json(cases["table"]["profile"]["map"])
    with tempfile.TemporaryDirectory() as folder:
        draw(
            found,
            Path(folder),
            points_lost=lambda codec, num_devices: PUBLISHED_LOSS.get(str(codec)),
            max_accuracy_drop=BUDGET,
        )
        shutil.copy(Path(folder) / "regimes.png", FOLDER / "regimes.png")
    bars(cases["table"]["rows"], "batch", "400 Mbit/s", FOLDER / "adaptive_table.png")
    if "bandwidth" in cases and "fast" in cases:
        rows = cases["bandwidth"]["rows"] | cases["fast"]["rows"]
        for batch in (1, 8):
            chosen = {key.split("/")[0]: row for key, row in rows.items() if key.endswith(f"/{batch}")}
            bars(chosen, "Mbit/s", f"batch {batch}", FOLDER / f"adaptive_bandwidth_{batch}.png")
    return 0


def bars(rows: dict[str, Any], what: str, title: str, path: Path) -> None:
    """A line for each way: its median over one device's, by row."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors
    for way, colour in zip(SHOWN, colours, strict=False):
        if not all(way in row for row in rows.values()):
            continue
        ratios = [_median(row[way]) / _median(row["local"]) for row in rows.values()]
        is_auto = way.startswith("auto")
        axes.plot(
            range(len(rows)), ratios, "o-", color=colour, label=way, linewidth=2.5 if is_auto else 1, markersize=4
        )
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set(
        xlabel=what, ylabel="time over one device's", ylim=(0.4, 2.6), title=f"ViT-B/16, float32, {title}; measured"
    )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _median(one: dict[str, Any]) -> float:
    return statistics.median(one["seconds"])


if __name__ == "__main__":
    sys.exit(main())
