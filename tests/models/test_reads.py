"""Which rows the head reads: the parts that devices take, joined, are what one device would have read."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeprism.models.reads import Reads, pick_rows

WIDTH = 3


@st.composite
def partitions(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Contiguous bounds of up to 20 tokens in up to 5 partitions."""
    num_tokens = draw(st.integers(1, 20))
    cuts = draw(st.sets(st.integers(1, num_tokens), max_size=4)) if num_tokens > 1 else set()
    edges = [0, *sorted(cuts - {num_tokens}), num_tokens]
    return tuple(itertools.pairwise(edges))


def rows_of(batch: int, num_tokens: int) -> Tensor:
    """Every element differs."""
    return torch.arange(batch * num_tokens * WIDTH, dtype=torch.float32).view(batch, num_tokens, WIDTH) + 1


def joined(
    reads: Reads, x: Tensor, bounds: tuple[tuple[int, int], ...], *, picked: bool = False
) -> tuple[Tensor | None, ...]:
    """What the head gets when each partition takes its part of ``x``."""
    parts = []
    for start, stop in bounds:
        part = x[:, start:stop]
        if picked and not reads.owned(start, stop):
            parts.append(())
            continue
        if picked:
            part = pick_rows(part, reads.local_indices(start, stop))
        parts.append(reads.take(part, start, stop, picked=picked))
    result = reads.join(parts, bounds)
    return result.rows, result.mean


@given(bounds=partitions(), batch=st.integers(1, 3))
def test_every_row(bounds: tuple[tuple[int, int], ...], batch: int) -> None:
    """All rows come back in order."""
    x = rows_of(batch, bounds[-1][1])
    rows, mean = joined(Reads(every_row=True), x, bounds)
    assert rows is not None and torch.equal(rows, x) and mean is None


@given(bounds=partitions(), batch=st.integers(1, 3), data=st.data())
def test_single_rows(bounds: tuple[tuple[int, int], ...], batch: int, data: st.DataObject) -> None:
    """Rows by index, the same for all samples or each sample's own, in any order, wherever they lie; and a device that
    computed only the picked rows gives the same part."""
    num_tokens = bounds[-1][1]
    num_reads = data.draw(st.integers(1, 3))
    tuples = st.tuples(*[st.integers(0, num_tokens - 1)] * num_reads)
    num_tuples = data.draw(st.sampled_from([1, batch]))
    reads = Reads(rows=tuple(data.draw(tuples) for _ in range(num_tuples)))
    x = rows_of(batch, num_tokens)
    wanted = torch.stack([x[sample, list(reads.rows[sample % num_tuples])] for sample in range(batch)])
    assert reads.only_rows
    for picked in (False, True):
        rows, mean = joined(reads, x, bounds, picked=picked)
        assert rows is not None and torch.equal(rows, wanted) and mean is None


@given(bounds=partitions(), data=st.data())
def test_mean_of_a_range(bounds: tuple[tuple[int, int], ...], data: st.DataObject) -> None:
    """The mean over a range of tokens, summed in parts, beside a single row."""
    num_tokens = bounds[-1][1]
    first = data.draw(st.integers(0, num_tokens - 1))
    last = data.draw(st.integers(first + 1, num_tokens))
    reads = Reads(rows=((num_tokens // 2,),), mean_range=(first, last))
    x = rows_of(2, num_tokens)
    rows, mean = joined(reads, x, bounds)
    assert not reads.only_rows
    assert rows is not None and torch.equal(rows, x[:, num_tokens // 2 : num_tokens // 2 + 1])
    assert mean is not None and torch.allclose(mean, x[:, first:last].mean(1))
    alone = Reads(mean_range=(first, last))
    rows, mean = joined(alone, x, bounds)
    assert rows is None and mean is not None and torch.allclose(mean, x[:, first:last].mean(1))


def test_the_mean_is_summed_in_single_precision() -> None:
    """Two thousand bfloat16 rows of 1.0 have the mean 1.0; summed in bfloat16 they would stop at 256."""
    x = torch.ones(1, 2000, WIDTH, dtype=torch.bfloat16)
    _, mean = joined(Reads(mean_range=(0, 2000)), x, ((0, 700), (700, 2000)))
    assert mean is not None and mean.dtype == torch.float32 and torch.equal(mean, torch.ones(1, WIDTH))


def test_nan_in_rows_that_nobody_reads_stays_there() -> None:
    """A row that lies in another partition is blanked, not multiplied by zero."""
    x = rows_of(1, 4)
    x[:, 2:] = float("nan")
    rows, _ = joined(Reads(rows=((1,),)), x, ((0, 2), (2, 4)))
    assert rows is not None and torch.isfinite(rows).all()
    reads = Reads(rows=((0,), (3,)))
    both = rows_of(2, 4)
    both[0, 2:] = float("nan")
    rows, _ = joined(reads, both, ((0, 2), (2, 4)))
    assert rows is not None and torch.isfinite(rows).all()


@pytest.mark.parametrize(
    "reads",
    [Reads(every_row=True), Reads(rows=((0, 1),)), Reads(rows=((2,), (5,))), Reads(rows=((0,),), mean_range=(1, 9))],
)
def test_json_round_trip(reads: Reads) -> None:
    """What travels to the workers comes back the same."""
    assert Reads.from_json(json.loads(json.dumps(reads.to_json()))) == reads


@pytest.mark.parametrize(
    "wrong",
    [{}, {"every_row": True, "rows": ((0,),)}, {"every_row": True, "mean_range": (0, 1)}, {"rows": ((0,), (0, 1))}],
)
def test_contradictions_are_our_own_mistake(wrong: dict[str, object]) -> None:
    """Every row, or some: not both, not neither; and as many rows of each sample."""
    with pytest.raises(AssertionError):
        Reads(**wrong)  # type: ignore[arg-type]
