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
        found = F.embedding(codes, books.flatten(0, 2)).flatten(-2)[
            ..., : self._group_width
        ]  # (vectors, groups, width)
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


def nearest(
    vectors: Float[Tensor, "runs vectors group"], books: Float[Tensor, "runs codewords group"]
) -> Int[Tensor, "runs vectors"]:
    """The codeword of each vector's own run that lies nearest, or one as near to 2^-15 of the longest vector's and
    codeword's product.

    That is the largest of x c - |c|^2 / 2. On a CPU, finding where a maximum is takes ten times as long as finding what
    it is. So the numbers are made positive, which makes their bits comparable as integers, and the last eight bits are
    replaced by the number of the codeword.
    """
    half_squares = books.square().sum(-1) / 2
    most = half_squares.amax(-1)
    shift = vectors.square().sum(-1).amax(-1).sqrt_() * (2 * most).sqrt_() + most
    starts = (half_squares - shift[:, None])[:, None]
    numbers = torch.arange(NUM_CODEWORDS, dtype=torch.int32, device=books.device)
    runs_at_once = max(1, _NUMBERS_AT_ONCE // (vectors.shape[1] * NUM_CODEWORDS))
    found = []
    for start, some, book in zip(*(x.split(runs_at_once) for x in (starts, vectors, books)), strict=True):
        nearness = torch.baddbmm(start, some, book.mT, beta=-1).view(torch.int32)
        found.append(nearness.bitwise_and_(-NUM_CODEWORDS).bitwise_or_(numbers).amax(-1))
    return torch.cat(found).bitwise_and_(NUM_CODEWORDS - 1)
