"""Integers of 1, 2, 3, 4 or 8 bits in bytes.

A byte takes codes that lie far apart, one from each of 8 / bits equal runs of the last dimension, so that packing and
unpacking work on contiguous runs. Three bits are two and one. A width that leaves part of a byte empty is filled with
zeros.
"""

from __future__ import annotations

from jaxtyping import UInt8
from torch import Tensor, cat, zeros
from torch.nn import functional as F

from edgeprism.codecs.size import PARTS_OF_BITS, packed_width


def pack_bits(codes: UInt8[Tensor, "*rows width"], bits: int) -> UInt8[Tensor, "*rows packed"]:
    """Codes below 2 ** ``bits`` in as few bytes as ``packed_width`` says."""
    if bits == 8:
        return codes
    packed, shift = [], 0
    for part in PARTS_OF_BITS[bits]:
        own = codes >> shift & (1 << part) - 1
        packed.append(_pack(own, part))
        shift += part
    return packed[0] if len(packed) == 1 else cat(packed, dim=-1)


def unpack_bits(packed: UInt8[Tensor, "*rows packed"], bits: int, width: int) -> UInt8[Tensor, "*rows width"]:
    """The codes that ``pack_bits`` was given."""
    if bits == 8:
        return packed
    codes, start, shift = zeros((), dtype=packed.dtype, device=packed.device), 0, 0
    for part in PARTS_OF_BITS[bits]:
        stop = start + packed_width(width, part)
        codes = codes | _unpack(packed[..., start:stop], part)[..., :width] << shift
        start, shift = stop, shift + part
    return codes


def _pack(codes: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    runs = F.pad(codes, (0, -codes.shape[-1] % per_byte)).chunk(per_byte, dim=-1)
    packed = runs[0]
    for index, run in enumerate(runs[1:], 1):
        packed = packed | run << index * bits
    return packed.contiguous()


def _unpack(packed: Tensor, bits: int) -> Tensor:
    return cat([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], dim=-1)
