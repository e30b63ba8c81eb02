"""What requests and probes teach about network and load, with a clock of the test's own."""

from __future__ import annotations

import pytest

from edgeprism.policy.estimate import MIN_PROBE_BYTES, PROBE_PART, Estimate, ProbeSeconds
from tests.policy.maps import costs

MBIT = 1e6 / 8


def estimate(rate_mbit: float = 400.0) -> Estimate:
    """Of two devices on a link that was measured at this rate."""
    return Estimate(costs(rate_mbit=rate_mbit))


def probed(num_bytes: int, rate_mbit: float, back_mbit: float | None = None, latency_s: float = 1e-4) -> ProbeSeconds:
    """On a link of that rate, both ways unless said otherwise."""
    out, back = (2 * latency_s + num_bytes / (rate * MBIT) for rate in (rate_mbit, back_mbit or rate_mbit))
    return ProbeSeconds(empty=2 * latency_s, out=out, back=back)


def probe(one: Estimate, rate_mbit: float, now_s: float) -> float:
    """One probe on a link of that rate; how long it took."""
    num_bytes = one.probe_bytes(1)
    one.saw_probe(1, num_bytes, seconds := probed(num_bytes, rate_mbit), now_s)
    return seconds.empty + seconds.out + seconds.back


def rate_mbit(one: Estimate) -> float:
    """Of the link, as it is believed to be."""
    return one.network.links[0].bytes_per_s / MBIT


@pytest.mark.parametrize("new", [5.0, 20.0, 1000.0])
def test_two_probes_find_a_rate(new: float) -> None:
    """Two probes find a rate that has changed."""
    one = estimate()
    probe(one, new, 0.0)
    assert one.due(0.0, among=[1]) == 1, "the first probe that is far off is checked at once"
    probe(one, new, 0.0)
    assert rate_mbit(one) == pytest.approx(new, rel=0.1)
    assert one.due(0.001, among=[1], only_suspected=True) is None


@pytest.mark.parametrize("rate", [200.0, 400.0, 5000.0])
def test_what_passes_at_once_is_no_rate(rate: float) -> None:
    """A link lets 12 kB pass at once: what is asked of it in passing tells nothing else, and takes no second look."""
    one = estimate(rate)
    assert one.saw_request([1], 2.0, lambda factor: 0.5 + 0.5 / factor)
    num_bytes = one.probe_bytes(1)
    assert num_bytes == MIN_PROBE_BYTES
    one.saw_probe(1, num_bytes, probed(num_bytes - 12_000, rate), 0.0)
    assert rate_mbit(one) == rate
    assert one.due(0.0, among=[1], only_suspected=True) is None


def test_a_very_fast_link_can_become_faster() -> None:
    """The largest probe there is counts, however short it is."""
    one = estimate(5000.0)
    probe(one, 20_000.0, 0.0)
    probe(one, 20_000.0, 0.0)
    assert rate_mbit(one) == pytest.approx(20_000, rel=0.1)


def test_one_probe_that_met() -> None:
    """One probe that met a stall is corrected by the next."""
    one = estimate()
    one.saw_probe(1, one.probe_bytes(1), ProbeSeconds(empty=2e-4, out=0.5, back=1e-3), 0.0)
    probe(one, 400, 0.0)
    probe(one, 400, 0.0)
    assert rate_mbit(one) == pytest.approx(400, rel=0.1)


def test_probes_take_one_per() -> None:
    """Probes take one per cent of the time at most."""
    for rate in (5.0, 50.0, 500.0):
        one, now_s, taken_s = estimate(rate), 0.0, 0.0
        while now_s < 30.0:
            if one.due(now_s, among=[0, 1]) is not None:
                taken_s += probe(one, rate, now_s)
            now_s += 0.01
        assert 0 < taken_s <= PROBE_PART * 30.0 * 1.05 + 0.05


def test_a_request_that_took() -> None:
    """A request that took as long as it should says nothing new."""
    one = estimate()
    assert not one.saw_request([1], 1.0, lambda factor: 0.5 + 0.5 / factor)
    assert rate_mbit(one) == 400


def test_a_request_that_took_much() -> None:
    """A request that took much longer puts its links under suspicion."""
    one = estimate()
    one.saw_probe(1, MIN_PROBE_BYTES, probed(MIN_PROBE_BYTES, 400.0), 0.0)
    assert one.due(0.001, among=[1]) is None
    assert one.saw_request([1], 2.0, lambda factor: 0.5 + 0.5 / factor)
    assert one.due(0.001, among=[1], only_suspected=True) == 1
    assert one.probe_bytes(1) == MIN_PROBE_BYTES, "it may be slow by now"


def test_the_slower_direction_counts() -> None:
    """Rows travel both ways."""
    one = estimate(100.0)
    for _ in range(2):
        num_bytes = one.probe_bytes(1)
        one.saw_probe(1, num_bytes, probed(num_bytes, 100.0, back_mbit=20.0), 0.0)
    assert rate_mbit(one) == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("latency_s", [0.02, 1e-4])
def test_a_delay_is_no_rate(latency_s: float) -> None:
    """A link that has become longer, or shorter, is as fast as before."""
    one = Estimate(costs(rate_mbit=400.0, latency_s=0.01))
    for _ in range(2):
        num_bytes = one.probe_bytes(1)
        one.saw_probe(1, num_bytes, probed(num_bytes, 400.0, latency_s=latency_s), 0.0)
    assert rate_mbit(one) == pytest.approx(400, rel=0.1)
    assert one.network.links[0].latency_s == pytest.approx(latency_s)


def test_a_plan_that_hardly_sends_may_be_cut_off_as_well() -> None:
    """At the believed rate its transfers are nothing; at a twentieth of it they are all."""
    one = estimate()
    probe(one, 400, 0.0)
    assert one.saw_request([1], 1.2, lambda factor: 0.99 + 0.01 / factor)


@pytest.mark.parametrize(("seconds", "is_suspicious"), [(0.7, True), (0.95, False), (1.06, False), (1.1, True)])
def test_noise_is_no_reason_to_look(seconds: float, is_suspicious: bool) -> None:
    """Of a request whose transfers are some tenths: at another rate it would have taken as long, and yet a few parts
    in a hundred cost less than a probe."""
    one = estimate()
    probe(one, 400, 0.0)
    assert one.saw_request([1], seconds, lambda factor: 0.85 + 0.15 / factor) == is_suspicious


def test_slow_links_are_not_probed_before_every_request() -> None:
    """Suspicion or not: a probe there takes long."""
    one = estimate(1.0)
    probe(one, 1.0, 0.0)
    one.saw_timeout([1])
    assert one.due(0.5, among=[1]) is None
    assert one.due(60.0, among=[1]) == 1


def test_a_request_on_one() -> None:
    """A request on one device suspects nobody."""
    assert not estimate().saw_request([], 9.0, lambda factor: 1.0)


def test_a_probe_that_does() -> None:
    """A probe that does not come back bounds the rate."""
    one = estimate()
    one.probe_failed(1, 16384, 0.1, 0.0)
    assert rate_mbit(one) <= 16384 / 0.1 / MBIT * 1.001


def test_load_follows_what_was() -> None:
    """Load follows what was seen and fades."""
    one = estimate()
    for n in range(20):
        one.saw_compute(1, 0.3, 0.1, float(n))
    assert one.load(19.0)[1] == pytest.approx(3.0, rel=0.15)
    assert one.load(19.0)[0] == 1.0
    assert one.load(19.0 + 200)[1] == pytest.approx(1.0, abs=0.01)


def test_devices_that_cannot_be_used() -> None:
    """Nobody waits for a probe of a device that is away, nor is its link thought to be slow."""
    one = estimate()
    assert one.due(0.0, among=[0]) is None
    one.skip(1, 0.0)
    assert rate_mbit(one) == 400
    assert one.due(1.1, among=[1]) == 1
    one.probe_failed(1, 16384, 0.5, 2.0)
    assert one.due(13.0, among=[1]) == 1, "a probe that failed is tried again soon"
