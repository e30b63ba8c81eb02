"""A fixed rotation of a row's values: random signs, then Hadamard transforms of runs of 128 values or fewer.

A row of a Transformer has a few values that are many times larger than the others; a step that is wide enough for them
drowns the rest. After the rotation each value is a sum of many, nearly normal and of the same size (the idea of QuaRot,
arXiv 2404.00456, and of QuIP#, arXiv 2402.04396). Runs of 128 take 128 multiplications a value: 2 % of a block of
ViT-B at most, as one product of matrices that BLAS does well; longer runs gained nothing on the models measured.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

MAX_RUN = 128
_SEED = 20


class Rotation:
    """An orthogonal matrix for rows of ``width`` values; every device makes the same one."""

    def __init__(self, width: int, device: torch.device) -> None:
        matrix, signs = _parts(width)
        self._matrix, self._signs = matrix.to(device), signs.to(device)

    def apply(self, rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """The rotated rows, in float32."""
        runs = (rows.float() * self._signs).unflatten(-1, (-1, self._matrix.shape[0]))
        rotated: Tensor = runs @ self._matrix
        return rotated.flatten(-2)

    def undo(self, rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """What ``apply`` was given."""
        runs = rows.unflatten(-1, (-1, self._matrix.shape[0]))
        turned_back: Tensor = runs @ self._matrix  # a Hadamard matrix is its own inverse
        return turned_back.flatten(-2) * self._signs


@cache
def _parts(width: int) -> tuple[Tensor, Tensor]:
    """The Hadamard matrix of the longest run that divides ``width``, and the signs."""
    run = min(width & -width, MAX_RUN)
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < run:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    generator = torch.Generator().manual_seed(_SEED)
    signs = torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1.0
    return matrix / math.sqrt(run), signs
