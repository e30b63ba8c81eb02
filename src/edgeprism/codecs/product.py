"""Product quantisation: each run of ``group`` values becomes one byte, the nearest of 256 calibrated codewords.

Jegou, Douze and Schmid, 2011; with a calibrated change of basis before it, as in Ge et al. (optimised product
quantisation, 2013). The basis turns distances into what they do to keys and values, decorrelates, and gives every run
its share of the spread; `edgeprism.codecs.fit` tells how it and the codebooks are made. No scale travels. The nearest
codeword takes 256 multiplications a value, the basis ``width`` of them on either side.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from edgeprism.codecs.pack import Layout, Pack

NUM_CODEWORDS = 256
VECTORS_AT_ONCE = 1024
_NUMBERS_AT_ONCE = 2**17  # whose comparison stays in a cache


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
        found = F.embedding(codes, books.flatten(0, 2)).flatten(-2)  # (vectors, groups, width and padding)
        vectors = found[..., : self._group_width].transpose(0, 1)
        groups: Tensor = (vectors @ self._inverse[block]).transpose(0, 1)
        rows: Tensor = groups.flatten(1).unflatten(0, parts[0].shape[:2])
        return rows.to(self._dtype)

    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        return ((torch.uint8, (batch, num_rows, self._num_groups, self._num_runs)),)


def in_runs(vectors: Float[Tensor, "groups vectors width"], group: int) -> Float[Tensor, "groups runs vectors group"]:
    """Each vector cut into runs of ``group`` values, the last one padded with zeros."""
    padded = F.pad(vectors, (0, -vectors.shape[-1] % group))
    runs: Tensor = padded.unflatten(-1, (-1, group))
    return runs.transpose(1, 2)


def nearest(
    vectors: Float[Tensor, "runs vectors group"], books: Float[Tensor, "runs codewords group"]
) -> Int[Tensor, "runs vectors"]:
    """The codeword of each vector's own run that lies nearest, or one whose squared distance is larger by 2^-15.

    On a CPU, finding where a minimum is takes ten times as long as finding what it is. So the last eight bits of each
    |x|^2 / 2 - x c + |c|^2 / 2, which compare as integers do, are replaced by the number of the codeword. |x|^2 is the
    same for all codewords, but without it a small distance would be lost in the last bits of a large number wherever
    one vector or codeword is many times longer than the others.
    """
    half_squares = (books.square().sum(-1) / 2)[:, None]
    vectors = torch.cat([vectors, vectors.square().sum(-1, keepdim=True) / 2], dim=-1)
    books = F.pad(books.neg(), (0, 1), value=1.0)
    numbers = torch.arange(NUM_CODEWORDS, dtype=torch.int32, device=books.device)
    runs_at_once = max(1, _NUMBERS_AT_ONCE // (vectors.shape[1] * NUM_CODEWORDS))
    found = []
    for half, some, book in zip(*(x.split(runs_at_once) for x in (half_squares, vectors, books)), strict=True):
        distance = torch.baddbmm(half, some, book.mT).view(torch.int32)  # below zero, by rounding: as near as can be
        found.append(distance.bitwise_and_(-NUM_CODEWORDS).bitwise_or_(numbers).amin(-1))
    return torch.cat(found).bitwise_and_(NUM_CODEWORDS - 1)
