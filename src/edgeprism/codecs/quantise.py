"""Fewer bits: each value as an integer of 8 to 1 bits.

`int8` and `int4` alone: q = round(x / s), s = max|x| / (2^(bits-1) - 1) of the row, so a value is off by at most s / 2.

After a rotation values are nearly normal, and 2^bits levels halfway between multiples of a step do best with the step
that Max (1960) found for a normal variable of that spread; larger values are clipped to the last level. The spread is
the row's own, sent as one float32. Keys and values that travel side by side have one each.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprism.codecs.bits import pack_bits, unpack_bits
from edgeprism.codecs.pack import Layout, Pack
from edgeprism.codecs.rotation import Rotation
from edgeprism.codecs.size import packed_width

STEPS = {8: 0.0308, 4: 0.3352, 3: 0.5860, 2: 0.9957, 1: 1.5958}
"""Best uniform step for 2^bits levels of a normal variable with spread 1 (Max, 1960; 8 bits: computed)."""


class Quantised(Pack):
    """``bits`` a value and a float32 scale for each of ``num_groups`` equal parts of a row of ``width``."""

    def __init__(self, *, bits: int, num_groups: int, width: int, dtype: torch.dtype) -> None:
        assert bits in (4, 8) and width % num_groups == 0
        self._bits, self._top = bits, 2 ** (bits - 1) - 1
        self._num_groups, self._group_width = num_groups, width // num_groups
        self._dtype = dtype

    def pack(self, rows: Float[Tensor, "batch rows width"], block: int) -> tuple[Tensor, ...]:
        groups = rows.unflatten(-1, (self._num_groups, -1)).float()
        largest = groups.abs().amax(-1, keepdim=True)  # aminmax along a dimension takes 17 times as long on a CPU
        scale = largest.div_(self._top).clamp_(min=torch.finfo(torch.float32).tiny)
        codes = (groups / scale).round_().add_(self._top + 1)
        return pack_bits(codes, self._bits), scale[..., 0]

    def unpack(self, parts: tuple[Tensor, ...], block: int) -> Float[Tensor, "batch rows width"]:
        packed, scale = parts
        codes = unpack_bits(packed, self._bits, self._group_width).sub_(self._top + 1)
        return codes.mul_(scale[..., None]).flatten(-2).to(self._dtype)

    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        groups = (batch, num_rows, self._num_groups)
        return (torch.uint8, (*groups, packed_width(self._group_width, self._bits))), (torch.float32, groups)


class RotatedQuantised(Pack):
    """``bits`` a value, and a float32 spread, after a rotation of each of ``num_groups`` equal parts of a row of
    ``width``."""

    def __init__(self, *, bits: int, num_groups: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        assert width % num_groups == 0
        self._bits, self._step, self._levels = bits, STEPS[bits], 2**bits
        self._num_groups, self._group_width = num_groups, width // num_groups
        self._rotation = Rotation(self._group_width, device)
        self._dtype = dtype

    def pack(self, rows: Float[Tensor, "batch rows width"], block: int) -> tuple[Tensor, ...]:
        rotated = self._rotation.apply(rows.unflatten(-1, (self._num_groups, -1)))
        spread = rotated.square().mean(-1, keepdim=True).sqrt_().clamp_(min=torch.finfo(torch.float32).tiny)
        codes = rotated.div_(spread * self._step).add_(self._levels / 2)
        return pack_bits(codes.clamp_(0, self._levels - 0.5).floor_(), self._bits), spread[..., 0]

    def unpack(self, parts: tuple[Tensor, ...], block: int) -> Float[Tensor, "batch rows width"]:
        packed, spread = parts
        levels = unpack_bits(packed, self._bits, self._group_width).sub_((self._levels - 1) / 2)
        return self._rotation.undo(levels.mul_(spread[..., None] * self._step)).flatten(-2).to(self._dtype)

    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        groups = (batch, num_rows, self._num_groups)
        return (torch.uint8, (*groups, packed_width(self._group_width, self._bits))), (torch.float32, groups)
