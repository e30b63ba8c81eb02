"""The Pack seam: how rows are written into bytes. As they are or rounded here; ``quantise``, ``product``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

Layout = tuple[torch.dtype, tuple[int, ...]]


class Pack(ABC):
    """Rows of block ``block`` to bytes and back."""

    @abstractmethod
    def pack(self, rows: Float[Tensor, "batch rows width"], block: int) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def unpack(self, parts: tuple[Tensor, ...], block: int) -> Float[Tensor, "batch rows width"]: ...

    @abstractmethod
    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        """Dtype and shape of each packed tensor."""


class Exact(Pack):
    """The rows themselves, in the model's dtype."""

    def __init__(self, *, width: int, dtype: torch.dtype) -> None:
        self._width, self._dtype = width, dtype

    def pack(self, rows: Float[Tensor, "batch rows width"], block: int) -> tuple[Tensor, ...]:
        return (rows.contiguous(),)

    def unpack(self, parts: tuple[Tensor, ...], block: int) -> Float[Tensor, "batch rows width"]:
        return parts[0]

    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        return ((self._dtype, (batch, num_rows, self._width)),)


class Rounded(Pack):
    """The rows in bfloat16: half the bytes of float32, each value off by at most 1/256 of itself."""

    def __init__(self, *, width: int, dtype: torch.dtype) -> None:
        self._width, self._dtype = width, dtype

    def pack(self, rows: Float[Tensor, "batch rows width"], block: int) -> tuple[Tensor, ...]:
        return (rows.to(torch.bfloat16).contiguous(),)

    def unpack(self, parts: tuple[Tensor, ...], block: int) -> Float[Tensor, "batch rows width"]:
        return parts[0].to(self._dtype)

    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        return ((torch.bfloat16, (batch, num_rows, self._width)),)
