"""Partitions without devices whose pieces a neighbour can take for next to nothing.

The best partition takes every device that saves anything, were it one row of one product; each is one more that has to
answer, and one more link. So much is left of what could be saved, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from edgeprism.planner.pipeline import Pipeline
from edgeprism.specs.plan import Stage

WORTH_IT = 0.02
"""Of the time, what another device has to save."""

Stages = Sequence[Stage]


def with_fewer(pipeline: Pipeline, stages: Stages, measure: Callable[[Stages], float]) -> tuple[Stage, ...]:
    """Stages given to a neighbour, one after another, as long as memory allows it and ``measure`` of all grows by no
    more than ``WORTH_IT`` together."""
    found, limit_s = tuple(stages), measure(stages) * (1 + WORTH_IT)
    while True:
        others = [one for one in _merged(found) if pipeline.fits(one) and measure(one) <= limit_s]
        if not others:
            return found
        found = min(others, key=lambda one: (measure(one), pipeline.request_s(one)))


def _merged(stages: tuple[Stage, ...]) -> Iterator[tuple[Stage, ...]]:
    """With one stage less: the pieces of two neighbours on either's device."""
    for index, (one, other) in enumerate(pairwise(stages)):
        for device in (one.device, other.device):
            yield *stages[:index], replace(one, device=device, stop=other.stop), *stages[index + 2 :]
