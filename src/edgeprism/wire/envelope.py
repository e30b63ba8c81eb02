"""The envelope: the parts of one frame as one run of bytes, for a wire that carries nothing but those (gloo).

u64 length of it all, u32 number of parts, u32 length of each part; then the parts, each beginning at a multiple of 64
bytes, so that the arrays in it lie as numpy and torch want them. No parts at all: a sign of life. Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprism.errors import FrameError
from edgeprism.wire.frame import Limits, Part
from edgeprism.wire.mailbox import MAX_KEPT_BYTES

Bytes = npt.NDArray[np.uint8]

_HEAD = struct.Struct("<QI")
_ALIGN = 64


@dataclass(frozen=True, slots=True)
class Envelope:
    """Where the parts lie: ``starts`` and ``lengths`` in ``num_bytes`` of all."""

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    num_bytes: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Envelope:
        """The layout of parts of these lengths."""
        sizes = [_aligned(_HEAD.size + 4 * len(lengths)), *map(_aligned, lengths)]
        *starts, end = accumulate(sizes)
        return cls(tuple(starts), tuple(lengths), end)

    @classmethod
    def read(cls, first: memoryview, limits: Limits) -> Envelope:
        """The layout that the first bytes of an envelope announce. FrameError if no frame within ``limits`` has it:
        nothing of that length is made room for."""
        if len(first) < _HEAD.size:
            raise FrameError("an envelope is cut short")
        num_bytes, num_parts = _HEAD.unpack_from(first)
        if num_parts > limits.max_arrays + 1 or _HEAD.size + 4 * num_parts > len(first):
            raise FrameError(f"an envelope of {num_parts} parts; at most {limits.max_arrays + 1} travel")
        lengths = struct.unpack_from(f"<{num_parts}I", first, _HEAD.size)
        too_long = [length for length in lengths[1:] if length > limits.max_array_bytes]
        if too_long or (lengths and lengths[0] > limits.max_header_bytes):
            raise FrameError(f"an envelope with a part of {max(lengths)} bytes, which is more than may travel")
        envelope = cls.of(lengths)
        if envelope.num_bytes != num_bytes or num_bytes > max_bytes(limits):
            raise FrameError(f"an envelope of {num_bytes} bytes; at most {max_bytes(limits)} travel")
        return envelope

    def parts(self, data: Any) -> list[Part]:
        """The parts in the bytes of an envelope, as views."""
        view = memoryview(data)
        return [view[start : start + length] for start, length in zip(self.starts, self.lengths, strict=True)]


def pack(parts: Sequence[Part], limits: Limits) -> Bytes:
    """The envelope of these parts, copied. FrameError where a receiver would refuse it."""
    envelope = Envelope.of([len(part) for part in parts])
    if envelope.num_bytes > max_bytes(limits):
        raise FrameError(f"a frame of {envelope.num_bytes} bytes; at most {max_bytes(limits)} travel: split the batch")
    data = np.empty(envelope.num_bytes, np.uint8)
    view = data.data
    struct.pack_into(f"<QI{len(parts)}I", view, 0, envelope.num_bytes, len(parts), *envelope.lengths)
    for start, part in zip(envelope.starts, parts, strict=True):
        view[start : start + len(part)] = part
    return data


def max_bytes(limits: Limits) -> int:
    """The longest envelope: no mailbox keeps a frame that is longer."""
    return min(MAX_KEPT_BYTES, limits.max_arrays * limits.max_array_bytes) + limits.max_header_bytes + 2**16


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN) * _ALIGN
