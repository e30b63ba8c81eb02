"""Predictions, against what can be worked out by hand."""

from __future__ import annotations

import pytest

from edgeprism.policy.network import Network
from edgeprism.policy.predict import Prediction, predict
from edgeprism.policy.work import work_of
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.cost import whole_model_macs
from edgeprism.specs.performance_map import Costs
from edgeprism.specs.plan import Plan
from tests.policy.maps import VIT_B, costs


def of(plan: Plan, found: Costs, batch: int = 1) -> Prediction:
    """A prediction for ViT-B/16."""
    return predict(
        found, VIT_B, plan, batch=batch, num_tokens=197, element_bytes=4, network=Network.measured(found)
    )  # fmt: skip


def test_one_device_computes_all_blocks_and_of_the_last_one_only_the_row_that_is_read() -> None:
    """Counted by hand: eleven whole blocks, in the twelfth keys and values of 197 rows and the rest of one row."""
    (work,) = work_of(VIT_B, Plan.local(), batch=1, num_tokens=197, element_bytes=4)
    d = 768
    last = 2 * 197 * d * d + 10 * d * d + 2 * 197 * d
    assert work.linear_macs + work.attention_macs == whole_model_macs(VIT_B, 197) - 1_453_954_560 + last


def test_predicted_time_of_one() -> None:
    """Predicted time of one device is its work times its costs."""
    found = costs()
    (work,) = work_of(VIT_B, Plan.local(), batch=1, num_tokens=197, element_bytes=4)
    expected_s = 0.004 + 0.0148 * (work.linear_macs + work.attention_macs) / 1e9 + 2 * 0.0001
    assert of(Plan.local(), found).total_s == pytest.approx(expected_s, rel=1e-6)


def test_half_of_a_batch() -> None:
    """Half of a batch takes half the time and the transfer of its inputs."""
    found = costs()
    local, replica = of(Plan.local(), found, 8), of(Plan.even("replica", 2), found, 8)
    transfer_s = 4 * 3 * 224 * 224 / (400e6 / 8)
    assert replica.total_s == pytest.approx(local.total_s / 2 + transfer_s, rel=0.03)
    assert replica.bytes_sent > 4 * 150_528


@pytest.mark.parametrize("batch", [1, 8])
def test_an_exchange_that_nothing_hides_costs_the_time_of_its_bytes(batch: int) -> None:
    """On a link so slow that a block's computation is nothing beside it, the wire's time is what is left."""
    found = costs(rate_mbit=1.0)
    wire_s = (11 * 99 + 98) * batch * 768 * 4 / (1e6 / 8)  # eleven exchanges, and the last for the CLS row
    predicted = of(Plan.even("sequence", 2), found, batch)
    assert predicted.total_s == pytest.approx(wire_s + batch * 99 * 768 / 1.25e5, rel=0.05)  # patches in


def test_a_fast_network_leaves() -> None:
    """A fast network leaves the computation."""
    found = costs(rate_mbit=1e5)
    slow_part = max(part.busy_s for part in of(Plan.even("sequence", 2), found).parts)
    assert of(Plan.even("sequence", 2), found).total_s == pytest.approx(slow_part, rel=0.05)


def test_predictions_grow_with_the_bytes() -> None:
    """Predictions grow with the bytes and shrink with the rate."""
    plans = [Plan.even("sequence", 2, CodecSpec.parse(name)) for name in ("means:9.9", "int8", "exact")]
    for rate_mbit in (5.0, 50.0):
        times = [of(plan, costs(rate_mbit=rate_mbit)).total_s for plan in plans]
        assert times == sorted(times)
    times = [of(plans[-1], costs(rate_mbit=rate)).total_s for rate in (1000.0, 400.0, 100.0, 10.0)]
    assert times == sorted(times)


def test_a_device_that_takes() -> None:
    """A device that takes no part adds nothing but its idle power."""
    two, three = costs(), costs((1.0, 1.0, 1.0))
    plan = Plan(strategy="sequence", shares=(0.5, 0.5, 0.0))
    with_two, with_three = of(Plan.even("sequence", 2), two), of(plan, three)
    assert with_three.total_s == pytest.approx(with_two.total_s)
    assert with_three.joules_over_idle == pytest.approx(with_two.joules_over_idle)
    assert with_three.joules == pytest.approx(with_two.joules + 2.0 * with_two.total_s)


def test_energy_is_idle_power() -> None:
    """Energy is idle power of everybody and work of those that work."""
    local = of(Plan.local(), costs())
    assert local.joules_over_idle == pytest.approx(5.0 * local.total_s)
    assert local.joules == pytest.approx(2 * 2.0 * local.total_s + local.joules_over_idle)


def test_a_codec_that_was() -> None:
    """A codec that was not measured cannot be predicted."""
    with pytest.raises(KeyError):
        of(Plan.even("sequence", 2, CodecSpec.parse("int4")), costs())
