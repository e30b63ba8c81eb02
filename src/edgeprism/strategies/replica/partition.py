"""Which samples of the batch run on which device."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprism.specs.apportion import apportion, bounds_of


def sample_bounds(batch: int, shares: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each device's samples, in proportion to ``shares``; a device may get none.

    The odd sample stays with the earlier device: what the coordinator keeps need not travel.

    >>> sample_bounds(3, (0.5, 0.5))
    ((0, 2), (2, 3))
    """
    return bounds_of(apportion(batch, shares, ties_to_later=False))
