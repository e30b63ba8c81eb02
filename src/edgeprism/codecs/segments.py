"""Which tokens of a partition one mean stands for."""

from __future__ import annotations

from itertools import pairwise

from edgeprism.errors import PlanError


def segment_bounds(num_tokens: int, num_segments: int) -> tuple[tuple[int, int], ...]:
    """(start, stop) of the segments of one partition; their lengths differ by at most one.

    ``num_segments`` is the paper's L. PlanError unless 1 <= L <= ``num_tokens``.

    >>> segment_bounds(7, 3)
    ((0, 2), (2, 4), (4, 7))
    """
    if not 1 <= num_segments <= num_tokens:
        raise PlanError(f"{num_tokens} tokens cannot be cut into {num_segments} segments")
    cuts = [index * num_tokens // num_segments for index in range(num_segments + 1)]
    return tuple(pairwise(cuts))
