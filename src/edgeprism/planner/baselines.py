"""The published partitions, to compare with: even, in proportion to speed, and PipeDream's.

All take the devices in the order in which they are given. None looks at memory: whether it fits, ``Pipeline.check``
says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from edgeprism.planner.pipeline import Pipeline
from edgeprism.specs.apportion import apportion
from edgeprism.specs.plan import Stage


def even(pipeline: Pipeline, devices: Sequence[int]) -> tuple[Stage, ...]:
    """As many pieces for each."""
    return _shared(pipeline, devices, [1.0] * len(devices))


def proportional(pipeline: Pipeline, devices: Sequence[int]) -> tuple[Stage, ...]:
    """Pieces in proportion to how fast each computes the whole model."""
    return _shared(pipeline, devices, [1 / sum(pipeline.piece_s[device]) for device in devices])


def pipedream(pipeline: Pipeline, devices: Sequence[int]) -> tuple[Stage, ...]:
    """PipeDream's dynamic programme (Harlap et al., 2018), without replicated stages: the least time of the slowest
    stage or transfer for devices and links that are all alike, which is what it assumes; here the mean of those given.
    It uses all of them."""
    count = len(devices)
    mean_s = [sum(pipeline.piece_s[device][i] for device in devices) / count for i in range(pipeline.num_pieces)]
    links = [(one, other) for one in devices for other in devices if one != other]
    mean_transfer_s = [
        sum(pipeline.transfer_s(one, other, cut) for one, other in links) / max(1, len(links))
        for cut in range(pipeline.num_pieces + 1)
    ]

    @cache
    def best(stop: int, num_stages: int) -> tuple[float, int]:
        """The slowest of so many stages that end there, and where the last of them begins."""
        if num_stages == 1:
            return sum(mean_s[:stop]), 0
        return min(
            (max(best(start, num_stages - 1)[0], mean_transfer_s[start], sum(mean_s[start:stop])), start)
            for start in range(num_stages - 1, stop)
        )

    cuts = [pipeline.num_pieces]
    for num_stages in range(min(count, pipeline.num_pieces), 1, -1):
        cuts.append(best(cuts[-1], num_stages)[1])
    bounds = [0, *reversed(cuts)]
    return tuple(
        Stage(device=device, start=start, stop=stop)
        for device, start, stop in zip(devices, bounds, bounds[1:], strict=False)
    )


def _shared(pipeline: Pipeline, devices: Sequence[int], shares: Sequence[float]) -> tuple[Stage, ...]:
    counts = apportion(pipeline.num_pieces, [share / sum(shares) for share in shares], ties_to_later=False)
    at, stages = 0, list[Stage]()
    for device, count in zip(devices, counts, strict=True):
        if count:
            stages.append(Stage(device=device, start=at, stop=at + count))
        at += count
    return tuple(stages)


BASELINES = {"even": even, "proportional": proportional, "PipeDream": pipedream}
