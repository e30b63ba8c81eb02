"""Rotary positions: queries and keys turned by angles that grow with their position (RoPE, arXiv 2104.09864).

The angles are those of the rotary module in the transformers model, scaling included. It takes any real number, so the
key of a row that stands for several tokens is turned to their mean position. Keys that travel are turned already.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from edgeprism.models.block import Heads, PreNormBlock, Rows

Turn = tuple[Float[Tensor, "one_or_batch 1 rows head_width"], Float[Tensor, "one_or_batch 1 rows head_width"]]


class Rotary:
    """Cosines and sines of positions, shared by all blocks of a model.

    Every block of a request asks for the same positions, so what was computed is kept as long as that very tensor is.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._kept = WeakTensorKeyDictionary()

    def __call__(self, positions: Tensor, like: Heads) -> Turn:
        """For ``positions`` (1 or batch, rows), in the dtype and on the device of ``like``."""
        kept: Turn | None = self._kept.get(positions)
        if kept is None or kept[0].dtype != like.dtype or kept[0].device != like.device:
            cosines, sines = self._module(like, positions.to(like.device))
            kept = self._kept[positions] = cosines[:, None], sines[:, None]
        return kept


class RotaryBlock(PreNormBlock):
    """A block of a Llama-like decoder: the norm comes first, queries and keys are turned."""

    def __init__(self, *, rotary: Rotary, **parts: Any) -> None:
        super().__init__(**parts)
        self._rotary = rotary

    def queries(self, y: Rows, positions: Tensor) -> Heads:
        queries = super().queries(y, positions)
        return turned(queries, self._rotary(positions, queries))

    def keys_values(self, y: Rows, positions: Tensor) -> tuple[Heads, Heads]:
        keys, values = super().keys_values(y, positions)
        return turned(keys, self._rotary(positions, keys)), values


def turned(x: Heads, turn: Turn) -> Heads:
    """Each pair of values (x[i], x[i + half]) turned by its angle."""
    cosines, sines = turn
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
