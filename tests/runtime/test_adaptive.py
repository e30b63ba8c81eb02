"""Plan `auto` at work, over a real transport: what it learns from requests, and when it probes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

import edgeprism
from edgeprism.policy.choose import Policy
from edgeprism.runtime.adaptive import LATE, MIN_PATIENCE_S, Adaptive
from edgeprism.runtime.engine import Engine
from edgeprism.runtime.trace import DeviceTrace, Trace
from edgeprism.specs.codec import EXACT
from edgeprism.specs.performance_map import PerformanceMap
from edgeprism.specs.plan import Plan
from tests.families import make
from tests.policy.maps import performance_map

pytestmark = pytest.mark.alone

SHARED = Plan.even("sequence", 2, EXACT)
READY = (0, 1)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One with a device to probe."""
    with edgeprism.Cluster.in_process(2) as cluster:
        yield edgeprism.load(make("ViTForImageClassification"), cluster=cluster, plan="local")


def adaptive(engine: Engine, found: PerformanceMap) -> Adaptive:
    """By a map with round numbers; what they say of the link is not what it does."""
    policy = Policy(found, points_lost=lambda codec, num_devices: None)
    return engine.on_device_thread(lambda transport: Adaptive(transport, found, policy))


def trace(engine: Engine, one: Adaptive, times: float) -> Trace:
    """Of a request that took so many times what it should."""
    predicted = one.decide(1, 197, READY)
    shared = next(each.prediction for each in predicted.candidates if each.plan.codec == EXACT and each.plan == SHARED)
    parts = tuple(
        DeviceTrace(
            device=part.device, work=98, total_s=times * shared.total_s, compute_s=part.compute_s, codec_s=0.0,
            staging_s=0.0, wire_s=0.0, wait_s=0.0, bytes_sent=0, bytes_received=0,
        )
        for part in shared.parts
    )  # fmt: skip
    return Trace(
        plan=SHARED, dtype="float32", batch=1, num_tokens=197, total_s=times * shared.total_s, devices=parts
    )  # fmt: skip


def probe(engine: Engine, one: Adaptive) -> float:
    """What is believed of the link after as many probes as are due."""
    engine.on_device_thread(lambda _: one.probe(READY))
    return one.network.links[0].bytes_per_s


def test_a_probe_finds_the_rate(engine: Engine) -> None:
    """Of a link that is not what the map says; and then leaves it alone for long."""
    one = adaptive(engine, performance_map())
    believed = one.network.links[0].bytes_per_s
    found = probe(engine, one)
    assert found != believed
    one._estimate.skip(1, 1e12)
    assert probe(engine, one) == found


@pytest.mark.parametrize("times", [4.0, 0.3])
def test_a_request_that_took_far_from_what_it_should(engine: Engine, times: float) -> None:
    """Has its links probed at once, however short the last probe is ago; one that took what it should has not."""
    one = adaptive(engine, performance_map(rate_mbit=50.0))
    one._estimate.skip(1, 1e12)  # nothing is due by the clock
    for _ in range(3):
        one.learn(trace(engine, one, 1.0), SHARED)
    before = one.network.links[0].bytes_per_s
    assert probe(engine, one) == before
    one.learn(trace(engine, one, times), SHARED)
    assert probe(engine, one) != before


def test_the_first_request_of_a_kind_says_nothing(engine: Engine) -> None:
    """It takes longer on every device."""
    one = adaptive(engine, performance_map())
    one._estimate.skip(1, 1e12)
    before = one.network.links[0].bytes_per_s
    one.learn(trace(engine, one, 4.0), SHARED)
    assert probe(engine, one) == before


def test_a_device_that_computed_slowly_is_loaded(engine: Engine) -> None:
    """Its link is not blamed, and it gets less to do."""
    found = performance_map(rate_mbit=1000.0)
    one = adaptive(engine, found)
    usual = trace(engine, one, 1.0)
    here, there = usual.devices
    even = one.decide(8, 197, READY).chosen.plan
    loaded = replace(there, compute_s=4 * there.compute_s)
    for _ in range(12):
        one.learn(replace(usual, devices=(here, loaded), total_s=3.5 * usual.total_s), SHARED)
    assert one.decide(8, 197, READY).chosen.plan.shares[1:] < even.shares[1:]


def test_a_failure_has_links_probed(engine: Engine) -> None:
    """What was given up says that something is slow."""
    one = adaptive(engine, performance_map(rate_mbit=50.0))
    one._estimate.skip(1, 1e12)
    before = one.network.links[0].bytes_per_s
    one.learn(replace(trace(engine, one, 1.0), failures=("device 1 sent nothing",)), SHARED)
    assert probe(engine, one) != before


def test_a_plan_that_is_slow_on_good_links_is_corrected(engine: Engine) -> None:
    """Once its links have been looked at, and found as they were; not before."""
    one = adaptive(engine, performance_map())
    for _ in range(6):
        probe(engine, one)
        one._estimate._links[1].next_probe_s = -1.0  # due at once: until what is believed is what is there
    one._estimate.skip(1, 1e12)
    usual = trace(engine, one, 1.0)
    one.learn(usual, SHARED)
    one.learn(replace(usual, total_s=3 * usual.total_s, failures=("device 1 was late",)), SHARED)
    before = one._policy.correction(SHARED, 1, 197, time.monotonic())
    assert one._unexplained is not None
    link = one._estimate._links[1]
    link.num_probes += 1  # as after a probe that found the link as it was
    one._explain(READY)
    assert one._unexplained is None
    assert one._policy.correction(SHARED, 1, 197, time.monotonic()) > before


def test_a_link_that_has_become_longer_explains_it(engine: Engine) -> None:
    """Then the plan is not blamed as well."""
    one = adaptive(engine, performance_map())
    usual = trace(engine, one, 1.0)
    one.learn(usual, SHARED)
    one.learn(replace(usual, total_s=3 * usual.total_s, failures=("device 1 was late",)), SHARED)
    link = one._estimate._links[1]
    link.num_probes, link.latency_s = link.num_probes + 1, 0.02
    one._explain(READY)
    assert one._policy.correction(SHARED, 1, 197, time.monotonic()) == 1.0


def test_patience_ends_a_little_after_one_device_would_have(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """But never so early that jitter ends a short request."""
    monkeypatch.delenv("EDGEPRISM_DEADLINE_S", raising=False)
    one = adaptive(engine, performance_map())
    decision = one.decide(8, 197, READY)
    assert one.patience_s(decision) >= LATE * decision.local.total_s
    assert one.patience_s(decision) < 2 * decision.local.total_s
    tiny = replace(
        decision, local=replace(decision.local, correction=1e-3), chosen=replace(decision.local, correction=1e-3)
    )
    assert one.patience_s(tiny) == pytest.approx(MIN_PATIENCE_S)
