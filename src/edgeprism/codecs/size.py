"""Bytes of one payload, by arithmetic: what a partition puts on the wire for one peer in one block, headers aside."""

from __future__ import annotations

from edgeprism.specs.codec import CodecSpec

SCALE_BYTES = 4
"""One float32 scale for each quantised row (keys and values: one each); with calibrated spreads, none."""

PARTS_OF_BITS = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,), 1: (1,)}
"""How the bits of a code are spread over bytes."""


def payload_bytes(spec: CodecSpec, *, num_tokens: int, width: int, batch: int, element_bytes: int) -> int:
    """Bytes that a partition of ``num_tokens`` tokens becomes.

    ``width`` counts the values of one token: the hidden size where rows travel, keys and values together (twice the
    key/value width) where those do; each of the two then has its own scale. ``element_bytes`` are those of the dtype
    that the model computes in. Counts do not travel: every device works them out from the mask of the request.
    PlanError when the codec does not fit the partition.

    Ten means of 768 values in int8: 10 * (768 + 4) = 7720 bytes a sample.

    >>> from edgeprism.specs.codec import CodecSpec
    >>> payload_bytes(CodecSpec.parse("means:L=10+int8"), num_tokens=98, width=768, batch=1, element_bytes=4)
    7720
    """
    num_groups = 1 if spec.travels == "rows" else 2
    group_bytes = _group_bytes(spec, width // num_groups, element_bytes)
    return batch * spec.num_rows(num_tokens) * num_groups * group_bytes


def _group_bytes(spec: CodecSpec, width: int, element_bytes: int) -> int:
    """A row, or its keys, or its values, with the scale that they have in common."""
    if spec.group is not None:
        return -(-width // spec.group)
    if spec.bits == 32:
        return width * element_bytes
    if spec.bits == 16:
        return 2 * width
    scale_bytes = 0 if spec.is_delta and spec.is_rotated else SCALE_BYTES
    return scale_bytes + packed_width(width, spec.bits)


def packed_width(width: int, bits: int) -> int:
    """Bytes that ``width`` codes of 8, 4, 3, 2 or 1 bits become: three bits are packed as two and one.

    >>> packed_width(10, 3)
    5
    """
    return sum(-(-width * part // 8) for part in PARTS_OF_BITS[bits])
