"""Partitions of a pipeline: held to every partition that there is, of small ones."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from benchmarks.planner import every_partition, large, least, some
from edgeprism.errors import InputError, PlanError
from edgeprism.planner import baselines
from edgeprism.planner.fewer import with_fewer
from edgeprism.planner.one_medium import fastest_on_one_medium, lower_bound_s
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.quickest import quickest
from edgeprism.planner.throughput import fastest
from edgeprism.specs.plan import Plan, Stage


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_nothing_is_better(first: int) -> None:
    """Of all partitions: neither for throughput nor for one request; where nothing fits, both say so."""
    num_feasible = 0
    for seed in range(first, first + 50):
        pipeline = some(seed)
        for search, measure in ((fastest, pipeline.period_s), (quickest, pipeline.request_s)):
            best_s = least(pipeline, measure)
            if best_s == math.inf:
                with pytest.raises(PlanError, match=r"lack|no partition fits"):
                    search(pipeline)
                continue
            num_feasible += 1
            stages = search(pipeline)
            pipeline.check(stages)
            assert measure(stages) == pytest.approx(best_s, rel=1e-9), seed
            if pipeline.home == 0:  # as in all that runs
                Plan.pipeline(pipeline.runnable(stages), pipeline.num_devices)  # PlanError for what cannot be run
            assert measure(pipeline.runnable(stages)) <= best_s * (1 + 1e-9), seed
    assert num_feasible > 50


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_nothing_is_better_on_one_medium(first: int) -> None:
    """Where all transfers add up; and what is taken for a bound where devices are many is one."""
    num_feasible = 0
    for seed in range(first, first + 50):
        pipeline = replace(some(seed), has_one_medium=True)
        best_s = least(pipeline, pipeline.period_s)
        if best_s == math.inf:
            with pytest.raises(PlanError, match=r"lack|no partition fits"):
                fastest(pipeline)
            continue
        num_feasible += 1
        stages = fastest(pipeline)
        pipeline.check(stages)
        assert pipeline.period_s(stages) == pytest.approx(best_s, rel=1e-9), seed
        assert lower_bound_s(pipeline) <= best_s * (1 + 1e-9), seed
    assert num_feasible > 20


def test_a_bound_that_is_reached() -> None:
    """Transfers that take longer than computing: one device alone is the best there is, and the bound says so."""
    alike = Pipeline(
        piece_s=((1.0,) * 10,) * 3,
        cut_bytes=(6,) * 11,
        weight_bytes=(1,) * 10,
        work_bytes=(0,) * 10,
        memory_bytes=(math.inf,) * 3,
        latency_s=((0.0,) * 3,) * 3,
        bytes_per_s=((1.0,) * 3,) * 3,
        has_one_medium=True,
    )
    assert alike.period_s(fastest(alike)) == 10
    assert lower_bound_s(alike) == pytest.approx(10)
    faster = replace(alike, cut_bytes=(1,) * 11)
    assert lower_bound_s(faster) == pytest.approx(4)  # three devices, four pieces and three transfers
    assert faster.period_s(fastest(faster)) == pytest.approx(4)


def test_a_device_without_pieces_does_not_end_a_pipeline() -> None:
    """Whatever sums of seconds round to: who computes last sends home itself."""
    rng = random.Random(7)
    for _ in range(100):
        slow, arrives_s = rng.uniform(3.0, 9.0), rng.uniform(0.1, 1.0)
        pipeline = Pipeline(
            piece_s=((slow / 8,) * 8, (0.01,) * 8),
            cut_bytes=(1, *(1000,) * 7, 1),
            weight_bytes=(1,) * 8,
            work_bytes=(0,) * 8,
            memory_bytes=(math.inf,) * 2,
            latency_s=((0.0, arrives_s),) * 2,
            bytes_per_s=((1000.0, 1000.0),) * 2,
        )
        assert quickest(pipeline) == (Stage(device=1, start=0, stop=8),)


@pytest.mark.parametrize("piece_s", [((0.0,) * 4,) * 2, ((1.0,) * 4, (1e9, 0.1, 0.1, 0.1))])
def test_sums_that_round(piece_s: tuple[tuple[float, ...], ...]) -> None:
    """Nothing to compute at all; and seconds that a sum with 1e9 of them swallows."""
    pipeline = Pipeline(
        piece_s=piece_s,
        cut_bytes=(1,) * 5,
        weight_bytes=(1,) * 4,
        work_bytes=(0,) * 4,
        memory_bytes=(math.inf,) * 2,
        latency_s=((0.0,) * 2,) * 2,
        bytes_per_s=((math.inf,) * 2,) * 2,
    )
    assert pipeline.request_s(quickest(pipeline)) == pytest.approx(least(pipeline, pipeline.request_s), rel=1e-6)


def test_carrying_bytes_takes_time() -> None:
    """By hand: a stage takes what comes and hands on what goes, but home neither inputs nor outputs; a device that only
    passes rows on pays for both ways."""
    pipeline = Pipeline(
        piece_s=((1.0,) * 3,) * 3,
        cut_bytes=(1000, 100, 10, 7),
        weight_bytes=(1,) * 3,
        work_bytes=(0,) * 3,
        memory_bytes=(math.inf,) * 3,
        latency_s=((0.0,) * 3,) * 3,
        bytes_per_s=((math.inf,) * 3,) * 3,
        s_per_byte=(0.01, 0.1, 0.001),
    )
    for device, start, stop, seconds in (
        (0, 0, 1, 1 + 1.0), (0, 1, 2, 1 + 1.1), (0, 1, 3, 2 + 1.0), (0, 0, 3, 3.0), (1, 0, 1, 1 + 110.0),
        (1, 2, 3, 1 + 1.7), (2, 1, 1, 0.2),
    ):  # fmt: skip
        assert pipeline.compute_s(Stage(device=device, start=start, stop=stop)) == pytest.approx(seconds)
    with pytest.raises(InputError, match="s_per_byte does not fit"):
        replace(pipeline, s_per_byte=(0.1,))
    with pytest.raises(InputError, match="not negative"):
        replace(pipeline, s_per_byte=(0.1, -1.0, 0.1))


def test_fewer_devices_still_fit() -> None:
    """Of any pipeline: a partition, within memory, hardly slower than the best."""
    for seed in range(200):
        pipeline = some(seed)
        for search, measure in ((fastest, pipeline.period_s), (quickest, pipeline.request_s)):
            try:
                best = pipeline.runnable(search(pipeline))
            except PlanError:
                continue
            found = with_fewer(pipeline, best, measure)
            pipeline.check(found)
            assert measure(found) <= measure(best) * 1.02 and len(found) <= len(best)


def test_a_piece_that_is_next_to_nothing_stays() -> None:
    """A last piece that the best partition hands to a third device: a thousandth of the time is worth none, a tenth
    is."""
    for last_s, count in ((0.001, 2), (0.1, 3)):
        pipeline = Pipeline(
            piece_s=((1.0, 1.0, last_s),) * 3,
            cut_bytes=(1,) * 4,
            weight_bytes=(1,) * 3,
            work_bytes=(0,) * 3,
            memory_bytes=(math.inf,) * 3,
            latency_s=((0.0,) * 3,) * 3,
            bytes_per_s=((1000.0,) * 3,) * 3,
        )
        best = pipeline.runnable(fastest(pipeline))
        assert len(best) == 3 and len(with_fewer(pipeline, best, pipeline.period_s)) == count


def test_who_has_the_last_stage_has_pieces() -> None:
    """Or is at home: nobody else is handed outputs."""
    pipeline = some(0)
    last = next(device for device in range(pipeline.num_devices) if device != pipeline.home)
    whole = Stage(device=pipeline.home, start=0, stop=pipeline.num_pieces)
    pipeline = replace(pipeline, memory_bytes=(math.inf,) * pipeline.num_devices)
    with pytest.raises(PlanError, match="nobody hands it outputs"):
        pipeline.check([whole, Stage(device=last, start=pipeline.num_pieces, stop=pipeline.num_pieces)])


def test_outputs_are_not_handed_to_a_relay() -> None:
    """The fast device has a slow link home, and a fast one by way of another: what runs cannot use that for outputs,
    and the planner does not count on it."""
    slow = 1.0
    pipeline = Pipeline(
        piece_s=((3.0,) * 4, (0.1,) * 4, (9.0,) * 4),
        cut_bytes=(1, 1, 1, 1, 50),
        weight_bytes=(1,) * 4,
        work_bytes=(0,) * 4,
        memory_bytes=(math.inf,) * 3,
        latency_s=((0.0,) * 3,) * 3,
        bytes_per_s=((100.0,) * 3, (slow, 100.0, 100.0), (100.0,) * 3),
    )
    for search, measure in ((fastest, pipeline.period_s), (quickest, pipeline.request_s)):
        stages = pipeline.runnable(search(pipeline))
        assert stages[-1].stop > stages[-1].start and measure(stages) < 9.1, stages
        assert measure(stages) == pytest.approx(least(pipeline, measure))


def test_more_cuts_than_a_byte_counts() -> None:
    """80 layers: the fast device is filled first, and the rest is found where it is."""
    pieces, room = 320, 300
    pipeline = Pipeline(
        piece_s=((1.0,) * pieces, (2.0,) * pieces),
        cut_bytes=(0,) * (pieces + 1),
        weight_bytes=(1,) * pieces,
        work_bytes=(0,) * pieces,
        memory_bytes=(float(room), math.inf),
        latency_s=((0.0, 0.0),) * 2,
        bytes_per_s=((1.0, 1.0),) * 2,
    )
    stages = quickest(pipeline)
    pipeline.check(stages)
    assert pipeline.request_s(stages) == pytest.approx(room + 2 * (pieces - room))


def test_what_lacks_names_devices_and_bytes() -> None:
    """Whether the weights are too many for all together, or a piece for one."""
    pipeline = large(2, 4)
    with pytest.raises(PlanError, match=r"take 16 MB, and 4 MB lack: device 0 has 7 MB, device 1 has 5 MB"):
        fastest(replace(pipeline, memory_bytes=(7e6, 5e6)))
    with pytest.raises(PlanError, match=r"device 1 has 5 MB; device 1 lacks [\d.]+ MB for even the smallest piece"):
        fastest(replace(pipeline, memory_bytes=(12e6, 5e6)))


def test_twelve_devices_on_one_medium() -> None:
    """More than can be gone through: within a bound that is said, and better than as if each had a link of its own."""
    pipeline = replace(large(12, 24), has_one_medium=True, memory_bytes=(math.inf,) * 12)
    found = fastest_on_one_medium(pipeline)
    pipeline.check(found.stages)
    period_s = pipeline.period_s(found.stages)
    assert lower_bound_s(pipeline) <= period_s * (1 + 1e-9) and period_s <= 2 * found.lower_bound_s
    assert period_s <= pipeline.period_s(fastest(replace(pipeline, has_one_medium=False)))
    tight = replace(large(12, 24), has_one_medium=True)
    tight.check(fastest(tight))


def test_sixteen_devices_that_differ() -> None:
    """No worse than what is published (test_large is about the time that it takes)."""
    pipeline = large()
    stages = fastest(pipeline)
    pipeline.check(stages)
    devices = tuple(range(16))
    for baseline in (baselines.even, baselines.proportional, baselines.pipedream):
        assert pipeline.period_s(stages) <= pipeline.period_s(baseline(pipeline, devices)) * (1 + 1e-9)


def test_a_farther_cut_is_not_always_better() -> None:
    """What a slow link carries decides where to cut: the farthest cut within the threshold sends too much."""
    pipeline = Pipeline(
        piece_s=((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        cut_bytes=(1, 1, 10, 1),
        weight_bytes=(1, 1, 1),
        work_bytes=(0, 0, 0),
        memory_bytes=(math.inf, math.inf),
        latency_s=((0.0, 0.0), (0.0, 0.0)),
        bytes_per_s=((1.0, 1.0), (1.0, 1.0)),
    )
    assert fastest(pipeline) in (
        (Stage(device=0, start=0, stop=1), Stage(device=1, start=1, stop=3)),
        (Stage(device=1, start=0, stop=1), Stage(device=0, start=1, stop=3)),
    )


def test_baselines_are_partitions() -> None:
    """Every piece once, on the devices in their order."""
    pipeline = large(4, 16)
    for baseline in (baselines.even, baselines.proportional, baselines.pipedream):
        stages = baseline(pipeline, (2, 0, 3, 1))
        assert [stage.device for stage in stages] == [2, 0, 3, 1]
        assert [stage.start for stage in stages[1:]] == [stage.stop for stage in stages[:-1]]
        assert (stages[0].start, stages[-1].stop) == (0, 16)


def test_pipedream_is_right_where_all_are_alike() -> None:
    """Its assumption: then nothing is better among partitions over all devices in that order."""
    work = (0.3, 0.1, 0.1, 0.4, 0.2, 0.2)
    pipeline = Pipeline(
        piece_s=(work,) * 3,
        cut_bytes=(0, 4, 1, 3, 1, 2, 0),
        weight_bytes=(1,) * 6,
        work_bytes=(0,) * 6,
        memory_bytes=(math.inf,) * 3,
        latency_s=((0.0,) * 3,) * 3,
        bytes_per_s=((10.0,) * 3,) * 3,
    )
    best = min(
        pipeline.period_s(stages)
        for stages in every_partition(pipeline)
        if [stage.device for stage in stages] == [0, 1, 2] and all(stage.start < stage.stop for stage in stages)
    )
    assert pipeline.period_s(baselines.pipedream(pipeline, (0, 1, 2))) == pytest.approx(best)


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        (((0, 0, 2), (1, 3, 4)), "skips"),
        (((0, 0, 3), (1, 2, 4)), "repeats"),
        (((0, 0, 2), (1, 2, 3)), "end at piece 3"),
        (((0, 0, 2), (0, 2, 4)), "two stages"),
        (((0, 0, 2), (9, 2, 4)), "no device 9"),
    ],
)
def test_a_partition_by_hand(bounds: tuple[tuple[int, int, int], ...], says: str) -> None:
    """One that skips, repeats or overruns pieces is refused."""
    pipeline = large(2, 4)
    with pytest.raises(PlanError, match=says):
        pipeline.check([Stage(device=device, start=start, stop=stop) for device, start, stop in bounds])


def test_a_device_without_the_memory_is_named() -> None:
    """With how many bytes it lacks."""
    pipeline = large(2, 64)
    with pytest.raises(PlanError, match=r"device 0 lacks [\d.]+ MB \(\d+ bytes\)"):
        pipeline.check([Stage(device=0, start=0, stop=64)])


def test_numbers_that_do_not_fit_together() -> None:
    """Are named."""
    with pytest.raises(InputError, match="cut_bytes does not fit"):
        Pipeline(
            piece_s=((1.0,),), cut_bytes=(1,), weight_bytes=(1,), work_bytes=(1,), memory_bytes=(1.0,),
            latency_s=((0.0,),), bytes_per_s=((1.0,),),
        )  # fmt: skip
