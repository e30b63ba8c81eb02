"""Whole numbers of 1, 2, 3, 4 or 8 bits in bytes.

A byte takes codes that lie far apart, one from each of 8 / bits equal runs of the last dimension, so that packing and
unpacking work on contiguous runs. Three bits are two and one. A width that leaves part of a byte empty is filled with
zeros. Codes come and go as float32, which quantisers compute in anyway: a conversion takes as long as four sums.
"""

from __future__ import annotations

from functools import cache

from jaxtyping import Float32, UInt8
from torch import Tensor, arange, cat, device, uint8
from torch.nn import functional as F

from edgeprism.codecs.size import PARTS_OF_BITS, packed_width


def pack_bits(codes: Float32[Tensor, "*rows width"], bits: int) -> UInt8[Tensor, "*rows packed"]:
    """Whole numbers from 0 to 2 ** ``bits`` - 1 in as few bytes as ``packed_width`` says."""
    low, *high = PARTS_OF_BITS[bits]
    if not high:
        return _pack(codes, low)
    above = (codes / 2**low).floor_()
    return cat([_pack(codes.sub(above, alpha=2**low), low), _pack(above, *high)], dim=-1)


def unpack_bits(packed: UInt8[Tensor, "*rows packed"], bits: int, width: int) -> Float32[Tensor, "*rows width"]:
    """The codes that ``pack_bits`` was given."""
    if bits == 8:
        return packed.float()
    low, *high = PARTS_OF_BITS[bits]
    if not high:
        return _unpack(packed, low)[..., :width]
    border = packed_width(width, low)
    codes = _unpack(packed[..., :border], low)[..., :width]
    return codes.add(_unpack(packed[..., border:], *high)[..., :width], alpha=1 << low)


def _pack(codes: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    if missing := -codes.shape[-1] % per_byte:
        codes = F.pad(codes, (0, missing))
    packed, *runs = codes.chunk(per_byte, dim=-1)
    for index, run in enumerate(runs, 1):
        packed = packed.add(run, alpha=1 << index * bits)
    return packed.to(uint8)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    codes = packed[..., None, :] >> _shifts(bits, packed.device)
    return codes.bitwise_and_((1 << bits) - 1).float().flatten(-2)


@cache
def _shifts(bits: int, device: device) -> Tensor:
    return arange(0, 8, bits, dtype=uint8, device=device)[:, None]
