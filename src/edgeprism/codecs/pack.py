"""How rows are written into bytes: as they are, or as integers of 8 or 4 bits with one scale a row.

Quantisation is symmetric: q = round(x / s), s = max|x| / (2^(bits-1) - 1), so an element is off by at most s / 2. Keys
and values that travel side by side have a scale each. What it costs in accuracy is measured by `edgeprism evaluate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor
from torch.nn import functional as F


class Pack(ABC):
    """Rows to bytes and back."""

    @abstractmethod
    def pack(self, rows: Float[Tensor, "batch rows width"]) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def unpack(self, parts: tuple[Tensor, ...]) -> Float[Tensor, "batch rows width"]: ...

    @abstractmethod
    def layout(self, batch: int, num_rows: int) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """Dtype and shape of each packed tensor."""


class Exact(Pack):
    """The rows themselves, in the model's dtype."""

    def __init__(self, *, width: int, dtype: torch.dtype) -> None:
        self._width, self._dtype = width, dtype

    def pack(self, rows: Float[Tensor, "batch rows width"]) -> tuple[Tensor, ...]:
        return (rows.contiguous(),)

    def unpack(self, parts: tuple[Tensor, ...]) -> Float[Tensor, "batch rows width"]:
        return parts[0]

    def layout(self, batch: int, num_rows: int) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        return ((self._dtype, (batch, num_rows, self._width)),)


class Quantised(Pack):
    """``bits`` per element and a float32 scale for each of ``num_groups`` equal parts of a row of ``width``.

    Four-bit codes are stored two to a byte: the first half of a group in the low halves of the bytes, the second half
    in the high ones, so that packing and unpacking work on contiguous runs. An odd group gets one zero at its end.
    """

    def __init__(self, *, bits: int, num_groups: int, width: int, dtype: torch.dtype) -> None:
        assert bits in (4, 8) and width % num_groups == 0
        self._four_bit = bits == 4
        self._top = 2 ** (bits - 1) - 1
        self._num_groups, self._group_width = num_groups, width // num_groups
        self._dtype = dtype

    def pack(self, rows: Float[Tensor, "batch rows width"]) -> tuple[Tensor, ...]:
        groups = rows.unflatten(-1, (self._num_groups, -1)).float()
        largest = groups.abs().amax(-1, keepdim=True)  # aminmax along a dimension takes 17 times as long on a CPU
        scale = largest.div_(self._top).clamp_(min=torch.finfo(torch.float32).tiny)
        codes = (groups / scale).round_().to(torch.int8)
        return (_to_nibbles(codes) if self._four_bit else codes), scale[..., 0]

    def unpack(self, parts: tuple[Tensor, ...]) -> Float[Tensor, "batch rows width"]:
        codes, scale = parts
        if self._four_bit:
            codes = _from_nibbles(codes, self._group_width)
        return (codes * scale[..., None]).flatten(-2).to(self._dtype)

    def layout(self, batch: int, num_rows: int) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        groups = (batch, num_rows, self._num_groups)
        codes = (torch.uint8, (self._group_width + 1) // 2) if self._four_bit else (torch.int8, self._group_width)
        return (codes[0], (*groups, codes[1])), (torch.float32, groups)


def _to_nibbles(codes: Int8[Tensor, "*rows width"]) -> UInt8[Tensor, "*rows half"]:
    unsigned = (codes + 8).view(torch.uint8)
    if unsigned.shape[-1] % 2:
        unsigned = F.pad(unsigned, (0, 1), value=8)
    low, high = unsigned.chunk(2, dim=-1)
    return low | (high << 4)


def _from_nibbles(packed: UInt8[Tensor, "*rows half"], width: int) -> Int8[Tensor, "*rows width"]:
    halves = torch.cat([packed & 15, packed >> 4], dim=-1)[..., :width]
    return halves.view(torch.int8) - 8
