"""What a simulated pipeline did, drawn: a bar for each micro-batch on each device, and thin ones for transfers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.simulate.pipeline import Span
from edgeprism.specs.plan import Stage

MAX_SPANS = 4000


def draw(runs: Sequence[tuple[Sequence[Stage], Sequence[Span]]], names: Sequence[str], path: Path) -> None:
    """One chart for runs that follow each other in time, each with its own stages. InputError without matplotlib, or
    where the file cannot be written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib, which is not installed; run: pip install 'edgeprism[plots]'") from None
    used = list(dict.fromkeys(stage.device for stages, _ in runs for stage in stages))
    plot = Figure(figsize=(10, 1.4 + 0.4 * len(used)), layout="constrained")
    FigureCanvasAgg(plot)
    axes = plot.subplots()
    rows = {device: len(used) - 1 - index for index, device in enumerate(used)}
    for stages, spans in runs:
        for span in spans[:MAX_SPANS]:
            colour = f"C{span.micro_batch % 10}"
            width_s = span.stop_s - span.start_s
            if span.kind == "compute":
                row = rows[stages[span.stage].device]
                axes.barh(row, width_s, left=span.start_s, height=0.6, color=colour, edgecolor="white", linewidth=0.3)
            elif width_s > 0:
                row = rows[stages[min(span.stage, len(stages) - 1)].device]
                offset = 0.4 if span.stage < len(stages) else -0.4
                axes.barh(row + offset, width_s, left=span.start_s, height=0.1, color=colour)
    axes.set_yticks(list(rows.values()), [names[device] for device in rows])
    axes.set_xlabel("seconds")
    axes.set_title("computing (wide bars, a colour a micro-batch) and what travels to it (thin bars)", fontsize=9)
    try:
        plot.savefig(path, dpi=150)
    except OSError as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror or exc}") from None
