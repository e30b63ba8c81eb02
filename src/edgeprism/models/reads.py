"""Which rows a model's head reads, so that only those are computed in the last block and gathered.

A classifier on CLS reads one row; DINOv2's reads CLS and the mean of the patches; a language model reads every row.
Each device takes its part (``take``), the coordinator joins the parts (``join``) and runs the head on the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Part = tuple[Tensor, ...]
Layout = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Either every row, or single rows and possibly the mean of a range of tokens.

    ``rows``: token indices, one tuple for all samples or one tuple a sample; empty when every row is read.
    ``mean_range``: (start, stop) of the tokens whose sum is read, or None.
    """

    every_row: bool = False
    rows: tuple[tuple[int, ...], ...] = ()
    mean_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        assert self.every_row != bool(self.rows or self.mean_range), "reads either every row or some"
        assert len({len(indices) for indices in self.rows}) <= 1, "the same number of rows for each sample"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for ``from_json``."""
        return {"every_row": self.every_row, "rows": [list(r) for r in self.rows], "mean_range": self.mean_range}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Reads:
        """Reads what ``to_json`` wrote."""
        mean_range = document["mean_range"]
        return cls(
            every_row=bool(document["every_row"]),
            rows=tuple(tuple(int(index) for index in indices) for indices in document["rows"]),
            mean_range=None if mean_range is None else (int(mean_range[0]), int(mean_range[1])),
        )

    @property
    def only_rows(self) -> bool:
        """True where the last block need compute nothing but ``rows``."""
        return not self.every_row and self.mean_range is None

    def owned(self, start: int, stop: int) -> bool:
        """Whether any single row lies in the partition [start, stop)."""
        return any(start <= index < stop for indices in self.rows for index in indices)

    def local_indices(self, start: int, stop: int) -> Tensor:
        """(1 or batch, reads) indices into the partition; a row that lies elsewhere is given as the nearest one here,
        and ``take`` blanks it."""
        return torch.tensor(self.rows).sub_(start).clamp_(0, stop - start - 1)

    def take(self, x: Float[Tensor, "batch rows width"], start: int, stop: int, *, picked: bool = False) -> Part:
        """This partition's part. ``picked`` says that ``x`` already holds only the rows of ``local_indices``."""
        if self.every_row:
            return (x,)
        parts: list[Tensor] = []
        if self.owned(start, stop):
            rows = x if picked else pick_rows(x, self.local_indices(start, stop))
            here = torch.tensor([[start <= i < stop for i in indices] for indices in self.rows])
            parts.append(torch.where(here[..., None].to(x.device), rows, torch.zeros((), dtype=x.dtype)))
        if self.mean_range is not None:
            first, last = max(self.mean_range[0], start), min(self.mean_range[1], stop)
            parts.append(x[:, max(0, first - start) : max(0, last - start)].sum(1, dtype=torch.float32))
        return tuple(parts)

    def layouts(self, start: int, stop: int, batch: int, width: int, dtype: torch.dtype) -> tuple[Layout, ...]:
        """Dtype and shape of each tensor of the part that ``take`` gives for the partition [start, stop)."""
        if self.every_row:
            return ((dtype, (batch, stop - start, width)),)
        parts: list[Layout] = []
        if self.owned(start, stop):
            parts.append((dtype, (batch, len(self.rows[0]), width)))
        if self.mean_range is not None:
            parts.append((torch.float32, (batch, width)))
        return tuple(parts)

    def join(self, parts: Sequence[Part], bounds: Sequence[tuple[int, int]]) -> HeadInput:
        """Puts the parts of all partitions (in the order of ``bounds``) together."""
        if self.every_row:
            return HeadInput(rows=torch.cat([part[0] for part in parts], dim=1), mean=None)
        rows = [part[0] for part, bound in zip(parts, bounds, strict=True) if self.owned(*bound)]
        mean = None
        if self.mean_range is not None:
            first, last = self.mean_range
            mean = torch.stack([part[-1] for part in parts]).sum(0) / (last - first)
        return HeadInput(rows=torch.stack(rows).sum(0) if rows else None, mean=mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInput:
    """What the head works on: ``rows`` (batch, reads, width) and ``mean`` (batch, width), in float32."""

    rows: Tensor | None
    mean: Tensor | None


def pick_rows(x: Float[Tensor, "batch rows width"], indices: Tensor) -> Float[Tensor, "batch picked width"]:
    """Rows of ``x`` by ``indices`` (1 or batch, picked)."""
    if indices.shape[0] == 1:
        return x[:, indices[0].to(x.device)]
    return torch.take_along_dim(x, indices[..., None].to(x.device), dim=1)
