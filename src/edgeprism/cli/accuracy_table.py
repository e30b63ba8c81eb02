"""Measurements of codecs as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprism.specs.accuracy import LOWER_IS_BETTER, AccuracyRecord

_COLUMNS = ("codec", "bytes", "inputs", "metric", "one device", "codec's", "difference", "95 % interval", "agreement")


def accuracy_table(records: Sequence[AccuracyRecord]) -> str:
    """A heading, and one row a record. Shares in per cent, their differences in points; perplexities as they are."""
    first = records[0]
    shares = ", ".join(f"{share:.3g}" for share in first.shares)
    heading = f"{first.dataset}, {first.split}: {first.num_devices} devices ({shares}), {first.dtype}"
    rows = [_COLUMNS, *map(_row, records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    alone = [
        f"{record.codec}: {record.num_alone} of {record.num_inputs} inputs are too short; one device answered those"
        for record in records
        if record.num_alone and record.metric == first.metric
    ]
    return "\n".join([heading, "", *lines, *([""] if alone else []), *alone])


def _row(record: AccuracyRecord) -> tuple[str, ...]:
    factor, unit = (1.0, "") if record.metric in LOWER_IS_BETTER else (100.0, " %")
    return (
        record.codec,
        f"{record.relative_bytes:.4f}",
        str(record.num_inputs),
        record.metric,
        f"{factor * record.exact:.2f}{unit}",
        f"{factor * record.value:.2f}{unit}",
        f"{factor * record.difference:+.2f}",
        f"{factor * record.low:+.2f} to {factor * record.high:+.2f}",
        "-" if record.agreement is None else f"{100 * record.agreement:.2f} %",
    )
