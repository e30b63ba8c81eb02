"""Whole numbers of 1, 2, 3, 4 or 8 bits in bytes.

A byte takes codes that lie far apart, one from each of 8 / bits equal runs of the last dimension, so that packing and
unpacking work on contiguous runs. Three bits are two and one. A width that leaves part of a byte empty is filled with
zeros. Codes come and go as float32, which quantisers compute in anyway: a conversion takes as long as four sums.
"""

from __future__ import annotations

from jaxtyping import Float32, UInt8
from torch import Tensor, cat, float32, uint8
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
    codes = packed.new_empty((*packed.shape[:-1], width), dtype=float32)
    start, worth = 0, 1
    for part in PARTS_OF_BITS[bits]:
        stop = start + packed_width(width, part)
        _unpack(packed[..., start:stop], part, codes, worth)
        start, worth = stop, worth << part
    return codes


def _pack(codes: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    missing = -codes.shape[-1] % per_byte
    runs = (F.pad(codes, (0, missing)) if missing else codes).chunk(per_byte, dim=-1)
    packed = runs[0]
    for index, run in enumerate(runs[1:], 1):
        packed = packed.add(run, alpha=1 << index * bits)
    return packed.to(uint8)


def _unpack(packed: Tensor, bits: int, codes: Tensor, worth: int) -> None:
    """Writes to ``codes`` those that lie in ``packed`` or, where they are ``worth`` more than 1, adds them."""
    run_width = packed.shape[-1]
    for index in range(8 // bits):
        run = codes[..., index * run_width : (index + 1) * run_width]
        own = packed if index == 0 else packed >> index * bits
        if (index + 1) * bits < 8:
            own = own & (1 << bits) - 1
        own = own[..., : run.shape[-1]]
        if worth == 1:
            run.copy_(own)
        else:
            run.add_(own, alpha=worth)
