"""The policy's decisions: numbers in, plans out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprism.errors import InputError
from edgeprism.policy.choose import HALF_LIFE_S, MAX_KNOWN, Policy, describe
from edgeprism.policy.explain import as_document, as_text
from edgeprism.policy.network import Network
from edgeprism.policy.table import TablePolicy
from edgeprism.specs.apportion import apportion
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.performance_map import PerformanceMap
from edgeprism.specs.plan import Plan
from tests.policy.maps import performance_map

LOST = {"int8": 0.1, "kv:int8": 0.2, "means:9.9": 2.4}


def policy(found: PerformanceMap | None = None, *, drop: float | None = None, objective: str = "latency") -> Policy:
    """One with these codecs' costs in points, measured for two devices."""
    return Policy(
        found or performance_map(),
        points_lost=lambda codec, num_devices: LOST.get(str(codec)) if num_devices == 2 else None,
        objective=objective,
        max_accuracy_drop=drop,
    )


def network(rate_mbit: float, found: PerformanceMap | None = None) -> Network:
    """Every link at this rate."""
    return Network.measured((found or performance_map()).costs).at(rate_mbit * 1e6 / 8)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 32), rate_mbit=st.floats(0.5, 2000), drop=st.sampled_from([None, 0.15, 3.0]))
def test_never_predicted_slower_than(batch: int, rate_mbit: float, drop: float | None) -> None:
    """Never predicted slower than one device."""
    decision = policy(drop=drop).decide(batch, 197, network(rate_mbit))
    assert decision.chosen.total_s <= decision.local.total_s


@pytest.mark.parametrize(("drop", "allowed"), [(None, {"exact"}), (0.15, {"exact", "int8"}), (5.0, {"exact", *LOST})])
def test_only_codecs_within_the_budget(drop: float | None, allowed: set[str]) -> None:
    """Only codecs within the budget are candidates."""
    decision = policy(drop=drop).decide(1, 197, network(400))
    used = {str(one.plan.codec) for one in decision.candidates if one.plan.strategy == "sequence"}
    assert used == allowed
    assert len(decision.left_out) == len({*LOST} - allowed)


def test_codecs_measured_for_two() -> None:
    """Of three devices a lossy codec is used by as many as it was measured with, and with even shares."""
    found = performance_map((1.0, 1.0, 0.3))
    decision = policy(found, drop=5.0).decide(1, 197, network(400, found))
    lossy = [one.plan for one in decision.candidates if not one.plan.codec.is_exact]
    assert lossy
    assert all(sorted(plan.shares) == [0.0, 0.5, 0.5] for plan in lossy)
    assert "not measured for this model, 3 devices" in decision.left_out[0]


def test_a_small_gain_is_left_and_said() -> None:
    """A plan that is better by less than it takes to trouble other devices is named as the next, and why."""
    for rate in range(5, 400):
        decision = policy().decide(1, 197, network(rate))
        if decision.chosen is decision.local and decision.candidates[0] is not decision.local:
            assert "too little to trouble other devices" in decision.reason
            break
    else:
        pytest.fail("no rate at which the gain is small")
    assert "too little" not in policy().decide(1, 197, network(1)).reason


def test_slow_links_are_left() -> None:
    """Slow links are left alone and fast ones used."""
    chosen = {rate: policy(drop=5.0).decide(1, 197, network(rate)).chosen.plan for rate in (1, 1000)}
    assert chosen[1].strategy == "local"
    assert chosen[1000].strategy == "sequence"


def test_samples_go_to_devices_so_that_all_are_done_together() -> None:
    """Against every way of dealing out eight samples."""
    found = performance_map((1.0, 0.25))
    deciding = policy(found)
    decision = deciding.decide(8, 197, network(400, found))
    comparing = deciding.candidates(8, 197, network(400, found))
    best_s = min(comparing.predict(Plan(strategy="replica", shares=((8 - n) / 8, n / 8))).total_s for n in range(1, 9))
    replica = min(
        (one for one in decision.candidates if one.plan.strategy == "replica"), key=lambda one: one.total_s
    )  # fmt: skip
    assert replica.total_s == pytest.approx(best_s)
    assert apportion(8, replica.plan.shares, ties_to_later=False)[0] > 4


def test_a_much_faster_device() -> None:
    """A much faster device gets everything."""
    found = performance_map((0.1, 2.0))
    chosen = policy(found).decide(1, 197, network(400, found)).chosen.plan
    assert (chosen.strategy, chosen.shares) == ("replica", (0.0, 1.0))


def test_a_device_that_would() -> None:
    """A device that would slow the others down is left out."""
    found = performance_map((1.0, 1.0, 0.05))
    chosen = policy(found).decide(8, 197, network(1000, found)).chosen.plan
    assert chosen.shares[2] < 0.1


def test_shares_found_are_close() -> None:
    """Shares found are close to the best of a grid."""
    found = performance_map((1.0, 0.4))
    deciding = policy(found)
    comparing = deciding.candidates(4, 197, network(2000, found))
    grid_s = min(
        comparing.predict(Plan(strategy="sequence", shares=(n / 40, 1 - n / 40))).total_s for n in range(20, 40)
    )
    decision = deciding.decide(4, 197, network(2000, found))
    shared = min(one.total_s for one in decision.candidates if one.plan.strategy == "sequence")
    assert shared <= 1.05 * grid_s


def test_devices_that_are_away() -> None:
    """Devices that are away are not used."""
    decision = policy().decide(8, 197, network(1000), devices=(0,))
    assert [one.plan.strategy for one in decision.candidates] == ["local"]


def test_a_plan_in_use_is_left_only_for_one_that_is_clearly_better() -> None:
    """Around the rate at which two plans are equal a small change of it changes nothing."""
    rates = [1000 * 0.99**n for n in range(500)]
    fresh = [policy(drop=5.0).decide(1, 197, network(rate)).chosen.plan for rate in rates]
    crossing = next(n for n, (one, other) in enumerate(itertools.pairwise(fresh)) if one.strategy != other.strategy)
    deciding = policy(drop=5.0)
    used = [deciding.decide(1, 197, network(rates[n])).chosen.plan for n in [crossing, crossing + 1] * 5]
    assert len(set(used)) == 1
    much_slower = deciding.decide(1, 197, network(rates[crossing] / 4))
    assert much_slower.chosen.plan.strategy == "local"


def test_a_plan_that_does() -> None:
    """A plan that does worse than predicted is left and tried again later."""
    deciding = policy()
    before = deciding.decide(8, 197, network(400), now_s=0.0)
    assert before.chosen.plan.strategy == "replica"
    for n in range(20):
        deciding.observe(before.chosen.plan, 8, 197, 3 * before.chosen.total_s, before.chosen.total_s, float(n))
    assert deciding.decide(8, 197, network(400), now_s=20.0).chosen.plan != before.chosen.plan
    later_s = 20.0 + 10 * HALF_LIFE_S
    assert deciding.decide(8, 197, network(400), now_s=later_s).chosen.plan.strategy == "replica"


def test_latency_alone_changes_the_choice() -> None:
    """A decision is not kept over a link that has become longer."""
    deciding = policy(drop=5.0)
    near = network(1000)
    far = near.with_link(1, near.links[0].bytes_per_s, 0.05)
    assert deciding.decide(1, 197, near).chosen.plan.strategy == "sequence"
    assert deciding.decide(1, 197, far).chosen.plan.strategy == "local"


def test_a_loaded_device_gets() -> None:
    """A loaded device gets less."""
    even = policy().decide(8, 197, network(1000)).chosen.plan
    loaded = policy().decide(8, 197, network(1000), load=(1.0, 3.0)).chosen.plan
    assert loaded.shares[1] < even.shares[1]


def test_a_little_load_here_sends_nothing_elsewhere() -> None:
    """Another device gets all of a request where this one is much slower today, or always was slower: its own load is
    unknown while it does nothing."""
    decisions = [policy().decide(1, 197, network(60), load=(load, 1.0)) for load in (1.0, 1.15, 1.5)]
    assert [one.chosen.plan.strategy for one in decisions] == ["local", "local", "replica"]
    assert 0.9 < decisions[1].candidates[0].score / decisions[1].local.score < 0.97
    found = performance_map((0.88, 1.0))
    always = policy(found).decide(1, 197, network(60, found))
    assert 0.9 < always.chosen.score / always.local.score < 0.97


def test_a_device_that_was_measured_to_be_thriftier_gets_everything() -> None:
    """By joules, if that is the objective: it need not be faster."""
    found = performance_map()
    here, there = found.costs.devices
    resting = replace(here, idle_w=0.01), replace(there, idle_w=0.01, busy_w=0.93 * here.busy_w)
    found = replace(found, costs=replace(found.costs, devices=resting))
    cheap = policy(found, objective="energy").decide(1, 197, network(1000, found))
    assert cheap.chosen.plan.shares == (0.0, 1.0)
    assert 0.9 < cheap.chosen.score / cheap.local.score < 0.97


def test_energy_prefers_one_device() -> None:
    """Where sharing saves little time, and devices that wait cost little."""
    found = performance_map()
    resting = tuple(replace(device, idle_w=0.01) for device in found.costs.devices)
    found = replace(found, costs=replace(found.costs, devices=resting))
    fast = policy(found).decide(1, 197, network(1000, found))
    cheap = policy(found, objective="energy").decide(1, 197, network(1000, found))
    assert fast.chosen.plan.strategy == "sequence"
    assert cheap.chosen.plan.strategy == "local"
    assert cheap.chosen.prediction.joules < fast.chosen.prediction.joules


def test_the_published_policy_knows() -> None:
    """The published policy knows one device or means and the nearest cell."""
    table = TablePolicy(performance_map(), points_lost=lambda codec, num: 2.4, max_accuracy_drop=5.0)
    decision = table.decide(8, 197, network(5))
    assert {describe(one.plan) for one in decision.candidates} == {"local", "sequence means:9.9 over 0 and 1"}
    at_200 = table.decide(8, 197, network(200))
    assert decision.chosen.plan == at_200.chosen.plan  # 200 Mbit/s is the lowest that it knows
    assert decision.chosen.total_s > at_200.chosen.total_s
    beyond = table.decide(100, 197, network(400))
    assert beyond.local.total_s > 3 * table.decide(32, 197, network(400)).local.total_s


def test_a_device_that_could_not_be_measured() -> None:
    """Is in the map without costs, and in no plan."""
    found = performance_map((1.0, 1.0, 1.0))
    first, second, third = found.costs.devices
    lost = replace(third, compute=(), wire=(), codecs={})
    found = replace(found, costs=replace(found.costs, devices=(first, second, lost)))
    for deciding in (
        policy(found, drop=5.0),
        policy(found, objective="energy"),
        TablePolicy(found, points_lost=lambda codec, num: 2.4, max_accuracy_drop=5.0),
    ):
        decision = deciding.decide(8, 197, network(1000, found))
        assert any(one.plan.num_devices == 3 for one in decision.candidates)
        assert all(one.plan.num_devices == 1 or not one.plan.shares[2] for one in decision.candidates)
    assert "int8" in found.codecs


def test_explain_shows_every_part() -> None:
    """Explain shows every part and what was left out."""
    decision = policy(drop=0.15).decide(1, 197, network(400))
    text = as_text(decision)
    assert "> " in text
    assert "left out: means:9.9: costs 2.4 points, and the budget is 0.15" in text
    document = as_document(decision)
    assert document["chosen"] == decision.chosen.plan.to_json()
    assert len(document["candidates"]) == len(decision.candidates)


def test_throughput_counts_the_transfer() -> None:
    """Of batches, which run one after the other: a fast device behind a slow link gives less."""
    found = performance_map((1.0, 2.0), rate_mbit=5.0)
    decision = policy(found, objective="throughput").decide(8, 197, network(5, found))
    assert decision.chosen.total_s <= decision.local.total_s
    assert decision.chosen.plan.num_devices == 1 or decision.chosen.plan.shares[1] < 0.5


def test_a_request_that_was_given_up_counts_at_once() -> None:
    """It would have taken longer still; one that was given up early says nothing."""
    deciding = policy()
    before = deciding.decide(8, 197, network(400), now_s=0.0)
    took_s = 3 * before.chosen.total_s
    deciding.observe(before.chosen.plan, 8, 197, took_s, before.chosen.total_s, 0.0, is_bound=True)
    assert deciding.correction(before.chosen.plan, 8, 197, 0.0) == pytest.approx(3.0)
    deciding.observe(before.chosen.plan, 8, 197, 0.1, before.chosen.total_s, 0.0, is_bound=True)
    assert deciding.correction(before.chosen.plan, 8, 197, 0.0) == pytest.approx(3.0)


def test_many_lengths_are_forgotten() -> None:
    """What is known of requests stays bounded."""
    deciding = policy()
    for batch in range(1, 600):
        deciding.observe(Plan.local(), batch, 197, 1.0, 1.0, 0.0)
    assert len(deciding._seen) == MAX_KNOWN


@pytest.mark.parametrize(("objective", "drop"), [("speed", None), ("latency", -1.0), ("latency", 101.0)])
def test_bad_settings_are_refused(objective: str, drop: float | None) -> None:
    """Bad settings are refused."""
    with pytest.raises(InputError):
        policy(objective=objective, drop=drop)


def test_codec_names_of_the_map() -> None:
    """Codec names of the map are codecs."""
    assert [str(CodecSpec.parse(name)) for name in performance_map().codecs] == list(performance_map().codecs)


def test_a_stream_of_single_samples() -> None:
    """Keeps every device busy that adds to the rate, each in proportion to its speed."""
    found = performance_map((1.0, 0.5))
    decision = policy(found, objective="throughput").decide(1, 197, network(400, found))
    assert decision.is_stream
    assert decision.chosen.plan.shares[0] == pytest.approx(2 / 3, abs=0.05)
    assert decision.chosen.score == pytest.approx(decision.local.score * 2 / 3, rel=0.05)
    assert not policy(found).decide(1, 197, network(400, found)).is_stream
