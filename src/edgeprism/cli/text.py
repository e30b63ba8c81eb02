"""Numbers and tables for people."""

from __future__ import annotations

from collections.abc import Sequence


def bytes_text(num_bytes: int | float) -> str:
    """Bytes with a decimal unit: 30.7 kB."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if num_bytes < 1000 * factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e12:.1f} TB"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns to the right, each as wide as it has to be."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heading, *rows)]
