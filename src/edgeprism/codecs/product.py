"""Product quantisation: each run of ``group`` values becomes one byte, the nearest of 256 calibrated codewords.

Jegou, Douze and Schmid, 2011; with a calibrated change of basis before it, as in Ge et al. (optimised product
quantisation, 2013). The basis turns distances into what they do to keys and values, decorrelates, and gives every run
its share of the spread; `edgeprism.codecs.fit` tells how it and the codebooks are made. No scale travels. The nearest
codeword takes 256 multiplications a value, the basis ``width`` of them on either side.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from edgeprism.codecs.pack import Layout, Pack

NUM_CODEWORDS = 256
VECTORS_AT_ONCE = 1024  # whose distances stay in a cache


class ProductQuantised(Pack):
    """Rows of ``num_groups`` equal parts (keys and values: two), each with its own basis and codebooks.

    ``basis``: (blocks, groups, group_width, group_width), multiplied from the right; ``codebooks``: (blocks, groups,
    runs, 256, group), the last run padded with zeros.
    """

    def __init__(
        self,
        *,
        width: int,
        dtype: torch.dtype,
        basis: Float[Tensor, "blocks groups group_width group_width"],
        inverse: Float[Tensor, "blocks groups group_width group_width"],
        codebooks: Float[Tensor, "blocks groups runs codewords group"],
    ) -> None:
        self._basis, self._inverse, self._codebooks = basis, inverse, codebooks
        self._num_groups, self._num_runs, self._group = codebooks.shape[1], codebooks.shape[2], codebooks.shape[4]
        self._group_width, self._dtype = width // self._num_groups, dtype

    def pack(self, rows: Float[Tensor, "batch rows width"], block: int) -> tuple[Tensor, ...]:
        groups = rows.float().flatten(0, 1).unflatten(-1, (self._num_groups, -1)).transpose(0, 1)
        runs = in_runs(groups @ self._basis[block], self._group).flatten(0, 1)  # (groups * runs, vectors, group)
        books = self._codebooks[block].flatten(0, 1)
        some = runs.split(VECTORS_AT_ONCE, dim=1)
        codes = torch.cat([nearest(part, books).to(torch.uint8) for part in some], dim=1)
        shape = (rows.shape[0], rows.shape[1], self._num_groups, self._num_runs)
        return (codes.T.reshape(shape).contiguous(),)

    def unpack(self, parts: tuple[Tensor, ...], block: int) -> Float[Tensor, "batch rows width"]:
        books = self._codebooks[block]
        places = torch.arange(self._num_groups * self._num_runs, device=books.device) * NUM_CODEWORDS
        codes = parts[0].flatten(0, 1).long() + places.view(self._num_groups, self._num_runs)
        found = books.flatten(0, 2)[codes].flatten(-2)[..., : self._group_width]  # (vectors, groups, group_width)
        groups: Tensor = (found.transpose(0, 1) @ self._inverse[block]).transpose(0, 1)
        rows: Tensor = groups.flatten(1).unflatten(0, parts[0].shape[:2])
        return rows.to(self._dtype)

    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        return ((torch.uint8, (batch, num_rows, self._num_groups, self._num_runs)),)


def in_runs(vectors: Float[Tensor, "groups vectors width"], group: int) -> Float[Tensor, "groups runs vectors group"]:
    """Each vector cut into runs of ``group`` values, the last one padded with zeros."""
    padded = F.pad(vectors, (0, -vectors.shape[-1] % group))
    runs: Tensor = padded.unflatten(-1, (-1, group))
    return runs.transpose(1, 2)


def nearest(vectors: Float[Tensor, "runs vectors group"], books: Float[Tensor, "runs codewords group"]) -> Tensor:
    """(runs, vectors): the codeword of each vector's own run that lies nearest."""
    half_squares = books.square().sum(-1)[:, None] / 2
    nearness: Tensor = torch.baddbmm(half_squares, vectors, books.mT, beta=-1)
    return nearness.argmax(-1)
