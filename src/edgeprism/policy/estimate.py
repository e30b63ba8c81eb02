"""The running estimate of network and load: from requests themselves, and from a light probe.

A request tells how long each device computed, against what was predicted: its load. What is left of its time tells
whether the network is as believed: where it took much longer, or much less, than it should have at the believed rates,
those links are suspected, and probed before the next request. Besides, a probe of at most 1 % of a link's time looks
now and then whether the network has changed: while requests run on one device, nothing else would tell. No clock of
its own: callers say what time it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import inf

from edgeprism.policy.network import Network
from edgeprism.specs.performance_map import Costs

PROBE_PART = 0.01
"""Of a link's time that probes may take. One under suspicion is probed sooner, unless that takes long."""
SUSPECT_S = 0.02
PROBE_S = 0.002
"""That one should take in each direction: long against jitter."""
MIN_PROBE_BYTES, MAX_PROBE_BYTES = 16 * 2**10, 256 * 2**10
SHORT = 0.9
"""A probe of less than such a part of what a link is believed to carry in that time is short."""
MAX_PAUSE_S = 10.0
"""How long a link is left alone after a probe that did not come back."""
MIN_RATE, MAX_RATE = 1e3, 1e10  # bytes per second
SUSPICIOUS = 1.3
"""A link is suspected when a request says that it is so many times faster or slower than believed..."""
NOISE = 0.08
"""... and took so much less or more than it should have: a probe costs more than what is to be gained by less."""
NEW_WEIGHT = 0.4
LATENCY_JUMP_S = 1e-3
JUMP = 1.4
"""A rate (or a latency) that has changed by more is probed once more, and then taken over at once."""
LOAD_WEIGHT = 0.3
MIN_LOAD, MAX_LOAD = 0.5, 20.0
LOAD_HALF_LIFE_S = 20.0
"""What is known of the load of a device that gets no work fades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSeconds:
    """Until the answer to a message was here: to an empty one, to one of many bytes, to one that has them sent back."""

    empty: float
    out: float
    back: float


@dataclass(slots=True, kw_only=True)
class _Link:
    rate: float
    latency_s: float
    next_probe_s: float = -inf
    is_suspected: bool = False
    has_jumped: bool = False
    num_probes: int = 0

    def needs_probe(self, now_s: float) -> bool:
        """Whether it is under suspicion, and may be probed out of turn: to check a rate that has jumped, or where that
        takes no time to speak of."""
        is_short = 2 * MIN_PROBE_BYTES / self.rate <= SUSPECT_S
        return self.is_suspected and (self.has_jumped or is_short or now_s >= self.next_probe_s)


class Estimate:
    """One cluster's. Times in seconds of any clock that only goes forward."""

    def __init__(self, costs: Costs) -> None:
        self._network = Network.measured(costs)
        self._links = {link.device: _Link(rate=link.bytes_per_s, latency_s=link.latency_s) for link in costs.links}
        self._load = dict.fromkeys(range(len(costs.devices)), (1.0, -inf))

    @property
    def network(self) -> Network:
        """As it is believed to be now."""
        network = self._network
        for device, link in self._links.items():
            network = network.with_link(device, link.rate, link.latency_s)
        return network

    def load(self, now_s: float) -> tuple[float, ...]:
        """How many times as long as measured each device computes; 1 where nothing has been seen for long."""
        faded = []
        for factor, seen_s in self._load.values():
            age_s = now_s - seen_s
            faded.append(1.0 + (factor - 1.0) * (0.5 ** (age_s / LOAD_HALF_LIFE_S) if age_s < inf else 0.0))
        return tuple(faded)

    def saw_compute(self, device: int, seconds: float, predicted_s: float, now_s: float) -> None:
        """A device computed for so long in a request; ``predicted_s`` as it was when the map was made."""
        if seconds <= 0 or predicted_s <= 0:
            return
        factor = min(max(seconds / predicted_s, MIN_LOAD), MAX_LOAD)
        before = self.load(now_s)[device]
        self._load[device] = (before * (factor / before) ** LOAD_WEIGHT, now_s)  # one stall must not weigh much

    def saw_request(self, devices: Sequence[int], total_s: float, total_at: Callable[[float], float]) -> bool:
        """A request among ``devices`` took so long; ``total_at`` predicts it with all their links so many times as fast
        as now believed. Whether that puts a link under suspicion."""
        slow, usual, fast = (total_at(factor) for factor in (1 / SUSPICIOUS, 1.0, SUSPICIOUS))
        if min(fast, (1 - NOISE) * usual) <= total_s <= max(slow, (1 + NOISE) * usual):
            return False
        if total_s < fast and fast > 0.97 * usual:
            return False
        return self._suspect(devices)

    def saw_timeout(self, devices: Sequence[int]) -> None:
        """A request was given up because others sent nothing for too long."""
        self._suspect(devices)

    def due(self, now_s: float, *, among: Collection[int], only_suspected: bool = False) -> int | None:
        """The device of those that can be used whose link should be probed now; None where nothing is due."""
        waiting = [
            device
            for device, link in self._links.items()
            if device in among and (link.needs_probe(now_s) or (now_s >= link.next_probe_s and not only_suspected))
        ]
        return min(waiting, key=lambda device: self._links[device].next_probe_s, default=None)

    def num_probes(self, device: int) -> int:
        """Of its link, so far."""
        return self._links[device].num_probes

    def probe_bytes(self, device: int) -> int:
        """How much to send."""
        link = self._links[device]
        if link.is_suspected and not link.has_jumped:
            return MIN_PROBE_BYTES  # it may be slow by now
        return int(min(max(link.rate * PROBE_S, MIN_PROBE_BYTES), MAX_PROBE_BYTES))

    def saw_probe(self, device: int, num_bytes: int, seconds: ProbeSeconds, now_s: float) -> None:
        """A probe with so many bytes, out and then back, took so long; the slower direction counts. One that is short
        for the believed rate shows a slower link, not a faster one: many links let some packets pass at once after a
        pause (a queue, a token bucket, aggregation), which is much of so few."""
        link = self._links[device]
        link.num_probes += 1
        latency_s = seconds.empty / 2
        rate = min(num_bytes / max(one - seconds.empty, one / 20) for one in (seconds.out, seconds.back))
        rate = min(max(rate, MIN_RATE), MAX_RATE)
        if num_bytes < min(MAX_PROBE_BYTES, SHORT * link.rate * PROBE_S):
            rate = min(rate, link.rate)
        ratio, later_s = rate / link.rate, abs(latency_s - link.latency_s)
        if 1 / JUMP < ratio < JUMP and later_s < max(LATENCY_JUMP_S, (JUMP - 1) * link.latency_s):
            link.rate *= ratio**NEW_WEIGHT
            link.latency_s += NEW_WEIGHT * (latency_s - link.latency_s)
            link.is_suspected = link.has_jumped = False
        else:
            # the first one that is far off may have met a stall; the second is believed
            link.rate, link.latency_s = rate, latency_s
            link.has_jumped = link.is_suspected = not link.has_jumped
        link.next_probe_s = now_s + (seconds.empty + seconds.out + seconds.back) / PROBE_PART

    def probe_failed(self, device: int, num_bytes: int, waited_s: float, now_s: float) -> None:
        """It did not come back for so long."""
        link = self._links[device]
        link.num_probes += 1
        link.rate = max(MIN_RATE, min(link.rate, num_bytes / waited_s))
        link.is_suspected = link.has_jumped = False
        link.next_probe_s = now_s + min(waited_s / PROBE_PART, MAX_PAUSE_S)

    def skip(self, device: int, now_s: float) -> None:
        """Its link could not be probed: that says nothing about its rate."""
        link = self._links[device]
        link.is_suspected = link.has_jumped = False
        link.next_probe_s = now_s + 1.0

    def _suspect(self, devices: Sequence[int]) -> bool:
        links = [self._links[device] for device in devices if device in self._links]
        for link in links:
            link.is_suspected = True
        return bool(links)
