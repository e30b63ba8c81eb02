"""Costs are found again from requests that were made up with them; the sweep tells them apart."""

from __future__ import annotations

import pytest

from edgeprism.errors import InputError
from edgeprism.policy.network import Network
from edgeprism.policy.predict import predict
from edgeprism.profiler.fit import errors, fit
from edgeprism.profiler.sweep import MAX_PASSES, Point, sweep
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.performance_map import Costs, LinkMeasured, PartMeasured, RequestMeasured
from edgeprism.specs.plan import Plan
from tests.policy.maps import VIT_B, costs

CODECS = [CodecSpec.parse(name) for name in ("int8", "kv:int8", "means:9.9")]
LINK = LinkMeasured(
    device=1, round_trip_s=2e-4, jitter_s=0.0, to_bytes_per_s=5e7, from_bytes_per_s=5e7, both_bytes_per_s=5e7
)


def measured(point: Point, found: Costs, *, stall_s: float = 0.0) -> RequestMeasured:
    """What devices with these costs would have been seen to do."""
    predicted = predict(
        found, VIT_B, point.plan, batch=point.batch, num_tokens=point.num_tokens, element_bytes=4,
        network=Network.measured(found),
    )  # fmt: skip
    parts = tuple(
        PartMeasured(
            device=part.device, compute_s=part.compute_s + stall_s, codec_s=part.codec_s, staging_s=0.0,
            wire_s=part.wire_s, wait_s=part.wait_s, bytes_sent=1, bytes_received=1,
        )
        for part in predicted.parts
    )  # fmt: skip
    return RequestMeasured(
        plan=point.plan, batch=point.batch, num_tokens=point.num_tokens,
        total_s=(predicted.total_s + stall_s,), parts=parts,
    )  # fmt: skip


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (1.0, 0.25)])
def test_costs_are_found_again(speeds: tuple[float, ...]) -> None:
    """Predictions of points that were never measured are right within 2 %."""
    true = costs(speeds)
    found = fit(
        VIT_B, "float32", 2, [measured(point, true) for point in sweep(VIT_B, (0, 1), 2, CODECS).points], [LINK]
    )
    others = [
        Point(plan=plan, batch=batch, num_tokens=197)
        for batch in (3, 12, 24)
        for plan in (
            Plan.local(),
            Plan(strategy="sequence", shares=(0.6, 0.4), codec=CODECS[0]),
            Plan(strategy="replica", shares=(0.7, 0.3)),
        )
    ]
    off = errors(found, VIT_B, "float32", [measured(point, true) for point in others])
    assert max(map(abs, off)) < 0.02


def test_a_stalled_point_counts_less() -> None:
    """One request that took three times as long moves the others' predictions by little."""
    true, wanted = costs(), sweep(VIT_B, (0, 1), 2, CODECS).points
    requests = [measured(point, true, stall_s=0.5 if i == 2 else 0.0) for i, point in enumerate(wanted)]
    found = fit(VIT_B, "float32", 2, requests, [LINK])
    off = sorted(map(abs, errors(found, VIT_B, "float32", [measured(point, true) for point in wanted])))
    assert off[len(off) // 2] < 0.03


def test_a_device_measured_with_small_batches_only() -> None:
    """As where time ran out: more rows cost it what few do, not nothing."""
    true = costs()
    wanted = [point for point in sweep(VIT_B, (0, 1), 2, CODECS).points if point.batch == 1]
    found = fit(VIT_B, "float32", 2, [measured(point, true) for point in wanted], [LINK])
    elsewhere = [
        Point(plan=Plan(strategy="replica", shares=(0.0, 1.0)), batch=batch, num_tokens=197) for batch in (2, 3, 8, 32)
    ]
    off = errors(found, VIT_B, "float32", [measured(point, true) for point in elsewhere])
    assert max(map(abs, off)) < 0.1


def test_no_cost_is_negative() -> None:
    """Whatever was measured."""
    wanted = sweep(VIT_B, (0, 1), 2, CODECS).points
    requests = [measured(point, costs(), stall_s=0.05 * (i % 3)) for i, point in enumerate(wanted)]
    for device in fit(VIT_B, "float32", 2, requests, [LINK]).devices:
        assert min(*device.compute, *device.wire, *(cost for one in device.codecs.values() for cost in one)) >= 0


def test_a_device_that_did_nothing() -> None:
    """Has no costs, and is known to have none; without the coordinator there is no map."""
    alone = Point(plan=Plan.local(), batch=1, num_tokens=197)
    found = fit(VIT_B, "float32", 3, [measured(alone, costs())], [LINK])
    assert found.measured == (0,)
    assert len(found.links) == 2
    with pytest.raises(InputError, match="nothing was measured on device 0"):
        fit(VIT_B, "float32", 2, [], [LINK])


def test_a_sweep_without_one_device() -> None:
    """Gives it nothing to do; what is too much for one sweep is told."""
    found = sweep(VIT_B, (0, 2), 3, CODECS, max_passes=100)
    assert all(point.plan.num_devices == 1 or not point.plan.shares[1] for point in found.points)
    assert any(point.plan.num_devices == 3 and point.plan.shares[2] > 0.6 for point in found.points)
    assert found.left_out
    whole = sweep(VIT_B, (0, 2), 3, CODECS, max_passes=10**6)
    assert {*found.points, *found.left_out} == {*whole.points}


@pytest.mark.parametrize("num_devices", [1, 2, 3, 4, 8])
def test_the_sweep_is_bounded(num_devices: int) -> None:
    """At most 200 passes; every device alone and every codec among all of them, small requests first."""
    wanted = sweep(VIT_B, range(num_devices), num_devices, CODECS[:1]).points
    assert sum(point.num_passes for point in wanted) <= MAX_PASSES
    assert [point.tokens for point in wanted] == sorted(point.tokens for point in wanted)
    alone = {point.plan.shares for point in wanted if sum(share > 0 for share in point.plan.shares) == 1}
    assert len(alone) == num_devices
    if num_devices > 1:
        assert {str(point.plan.codec) for point in wanted if point.plan.strategy == "sequence"} >= {"exact", "int8"}
