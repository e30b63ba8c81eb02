"""Differences over depth: of a row only what the row of the same token in the block before did not tell.

A block changes its rows little, so that most of a row is known to those who decoded the one before: y is predicted as
gain * previous + offset, value by value, with gain and offset from calibration, and the difference is packed. Sender
and receiver predict from what was *decoded*, so that errors do not add up (closed-loop DPCM, along the layers of the
network instead of along time).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprism.codecs.pack import Layout, Pack


class Difference(Pack):
    """Any packing, of differences. ``gains`` and ``offsets`` (blocks, width); blocks come in order, the first one from
    its offsets alone. Made for one request; what was sent and what was received are remembered apart."""

    def __init__(
        self,
        inner: Pack,
        *,
        gains: Float[Tensor, "blocks width"],
        offsets: Float[Tensor, "blocks width"],
        dtype: torch.dtype,
    ) -> None:
        self._inner, self._gains, self._offsets, self._dtype = inner, gains, offsets, dtype
        self._sent: Tensor | None = None
        self._received: Tensor | None = None

    def pack(self, rows: Float[Tensor, "batch rows width"], block: int) -> tuple[Tensor, ...]:
        predicted = self._predict(self._sent, block)
        parts = self._inner.pack(rows.float() - predicted, block)
        self._sent = self._inner.unpack(parts, block).add_(predicted)
        return parts

    def unpack(self, parts: tuple[Tensor, ...], block: int) -> Float[Tensor, "batch rows width"]:
        self._received = self._inner.unpack(parts, block).add_(self._predict(self._received, block))
        return self._received.to(self._dtype)

    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        return self._inner.layout(batch, num_rows)

    def _predict(self, previous: Tensor | None, block: int) -> Tensor:
        if block == 0:
            return self._offsets[0]
        assert previous is not None  # blocks come in order
        return torch.addcmul(self._offsets[block], self._gains[block], previous)
