"""Bytes of one payload, by arithmetic: what a partition puts on the wire for one peer in one block, headers aside."""

from __future__ import annotations

from edgeprism.specs.codec import CodecSpec

SCALE_BYTES = 4
"""One float32 scale for each quantised row."""
COUNT_BYTES = 2
"""One int16 for each row: how many real tokens it stands for, where padding makes that differ by sample."""


def payload_bytes(
    spec: CodecSpec, *, num_tokens: int, width: int, batch: int, element_bytes: int, padded: bool = False
) -> int:
    """Bytes that a partition of ``num_tokens`` tokens becomes.

    ``width`` counts the values of one token: the hidden size where rows travel, keys and values together (twice the
    key/value width) where those do; each of the two then has its own scale. ``element_bytes`` are those of the dtype
    that the model computes in. ``padded`` batches send their counts too. PlanError when the codec does not fit the
    partition.

    Ten means of 768 values in int8: 10 * (768 + 4) = 7720 bytes a sample.

    >>> from edgeprism.specs.codec import CodecSpec
    >>> payload_bytes(CodecSpec.parse("means:L=10+int8"), num_tokens=98, width=768, batch=1, element_bytes=4)
    7720
    """
    num_scales = 0 if spec.bits == 32 else 1 if spec.travels == "rows" else 2
    row_bytes = _values_bytes(spec, width, element_bytes) + num_scales * SCALE_BYTES + (COUNT_BYTES if padded else 0)
    return batch * spec.num_rows(num_tokens) * row_bytes


def _values_bytes(spec: CodecSpec, width: int, element_bytes: int) -> int:
    if spec.bits == 32:
        return width * element_bytes
    return width if spec.bits == 8 else (width + 1) // 2  # an odd width leaves half a byte empty
