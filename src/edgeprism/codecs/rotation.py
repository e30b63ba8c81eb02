"""A fixed rotation of a row's values: random signs, then Hadamard transforms of runs of 128 values or fewer.

A row of a Transformer has a few values that are many times larger than the others; a step that is wide enough for them
drowns the rest. After the rotation each value is a sum of many, nearly normal and of the same size (the idea of QuaRot,
arXiv 2404.00456, and of QuIP#, arXiv 2402.04396). Longer runs gained nothing on the models measured.

[Note: two ways at once] A transform of 128 values is one of 16, which BLAS does as a product of matrices, and three
rounds of sums and differences: on a CPU together a third of the time of one product of 128 x 128. An accelerator does
that product in one call.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

MAX_RUN = 128
MAX_CPU_PRODUCT = 16
_SEED = 20


class Rotation:
    """An orthogonal matrix for rows of ``width`` values; every device makes the same one."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._run = min(width & -width, MAX_RUN)
        product = min(self._run, MAX_CPU_PRODUCT) if device.type == "cpu" else self._run
        self._matrix = (hadamard(product) / math.sqrt(self._run)).to(device)
        self._signs = random_signs(width).to(device)

    def apply(self, rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """The rotated rows, in float32."""
        return self._transform(rows.float() * self._signs)

    def undo(self, rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """What ``apply`` was given."""
        return self._transform(rows).mul_(self._signs)  # a Hadamard matrix is its own inverse

    def _transform(self, rows: Tensor) -> Tensor:
        size = self._matrix.shape[0]
        transformed: Tensor = (rows.unflatten(-1, (-1, size)) @ self._matrix).flatten(-2)
        while size < self._run:
            upper, lower = transformed.unflatten(-1, (-1, 2, size)).unbind(-2)
            difference = upper - lower
            upper.add_(lower)
            lower.copy_(difference)
            size *= 2
        return transformed


@cache
def hadamard(size: int) -> Tensor:
    """Sylvester's matrix of ones and minus ones."""
    matrix = torch.ones(1, 1, dtype=torch.float32, device="cpu")  # whatever torch's defaults are when it is first made
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


@cache
def random_signs(width: int) -> Float[Tensor, " width"]:
    """Ones and minus ones, the same on every device."""
    generator = torch.Generator().manual_seed(_SEED)
    bits = torch.randint(0, 2, (width,), generator=generator, device="cpu")
    return bits.to(torch.float32) * 2 - 1
