"""Plan `auto` at work: the policy's decision for each request, what requests teach it, and the probe of the links.

For the thread that owns the transport.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from edgeprism.errors import PeerError, PeerTimeout
from edgeprism.policy.candidates import scaled
from edgeprism.policy.choose import Decision, Policy
from edgeprism.policy.estimate import JUMP, LATENCY_JUMP_S, Estimate, ProbeSeconds
from edgeprism.policy.network import Network
from edgeprism.policy.predict import Prediction, predict
from edgeprism.runtime.link_probe import ping_s
from edgeprism.runtime.patience import given_floor_s
from edgeprism.runtime.trace import Trace
from edgeprism.specs.model import element_bytes_of
from edgeprism.specs.performance_map import LinkCosts, PerformanceMap
from edgeprism.specs.plan import Plan
from edgeprism.wire.transport import Transport

log = logging.getLogger(__name__)

PROBE_TIMEOUT_FACTOR = 8.0
MIN_PROBE_TIMEOUT_S, MAX_PROBE_TIMEOUT_S = 0.02, 0.5
MAX_PROBES = 8  # of suspected links before a request: it must not wait for a network that never stands still
MIN_PATIENCE_S = 0.1
SAME_RATE = 1.2  # a probe that finds a link within such a factor of what was believed has found nothing
LATE = 1.1
"""A request with others is given up, and run here, when it has taken so many times as long as one here would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unexplained:
    """A request that took much longer, or less, than predicted, before anybody looked whether its links have changed.
    ``network``: as it was believed to be, ``num_probes`` by device: how often it had been looked at."""

    plan: Plan
    batch: int
    num_tokens: int
    seconds: float
    predicted_s: float
    network: Network
    num_probes: dict[int, int]
    has_failed: bool


def _differs(then: LinkCosts, now: LinkCosts) -> bool:
    """Whether a link is not what it was."""
    later_s = abs(now.latency_s - then.latency_s)
    is_same_rate = 1 / SAME_RATE < now.bytes_per_s / then.bytes_per_s < SAME_RATE
    return not is_same_rate or later_s > max(LATENCY_JUMP_S, (JUMP - 1) * then.latency_s)


class Adaptive:
    """See the module. ``policy`` is made for ``performance_map``."""

    def __init__(self, transport: Transport, performance_map: PerformanceMap, policy: Policy) -> None:
        self._transport, self._map, self._policy = transport, performance_map, policy
        self._estimate = Estimate(performance_map.costs)
        self._element_bytes = element_bytes_of(performance_map.dtype)
        self._met: set[tuple[str, str, int, int]] = set()
        self._unexplained: _Unexplained | None = None
        self._floor_s = given_floor_s(MIN_PATIENCE_S)

    @property
    def network(self) -> Network:
        """As it is believed to be now."""
        return self._estimate.network

    def decide(self, batch: int, num_tokens: int, ready: Collection[int]) -> Decision:
        """The plan for a request."""
        now_s = time.monotonic()
        return self._policy.decide(
            batch, num_tokens, self._estimate.network, now_s=now_s, load=self._estimate.load(now_s), devices=ready
        )

    def patience_s(self, decision: Decision) -> float:
        """How long to wait for others before the request is run here."""
        return max(self._floor_s, LATE * decision.local.total_s, 1.5 * decision.chosen.total_s)

    def learn(self, trace: Trace, chosen: Plan) -> None:
        """What a request that is done tells about devices and links; ``chosen``: the plan that it was to be run by."""
        now_s = time.monotonic()
        if trace.failures:
            self._estimate.saw_timeout([device for device, share in enumerate(chosen.shares) if share])
            waited_s = trace.total_s - sum(part.compute_s for part in trace.devices)  # what follows was run here
            predicted_s = self._predict(replace(trace, plan=chosen), self.network).total_s
            self._leave_open(trace, chosen, waited_s, predicted_s)
            return
        kind = (trace.plan.strategy, str(trace.plan.codec), trace.batch, trace.num_tokens.bit_length())
        if kind not in self._met:  # the first of a kind takes longer, on every device
            self._met.add(kind)
            return
        usual = {part.device: part.compute_s for part in self._predict(trace, self.network).parts}
        ratios = [1.0] * len(self._map.devices)
        for part in trace.devices:
            if part.device in usual and part.compute_s > 0:
                self._estimate.saw_compute(part.device, part.compute_s, usual[part.device], now_s)
                ratios[part.device] = part.compute_s / max(usual[part.device], 1e-6)
        correction = self._policy.correction(trace.plan, trace.batch, trace.num_tokens, now_s)
        network, used = self.network, [part.device for part in trace.devices if part.device]

        def total_at(factor: float) -> float:
            faster = network
            for device in used:
                faster = faster.with_rate(device, factor * network.links[device - 1].bytes_per_s)
            return correction * self._predict(trace, faster, ratios).total_s

        predicted_s = total_at(1.0) / correction
        if used and self._estimate.saw_request(used, trace.total_s, total_at):
            self._leave_open(trace, trace.plan, trace.total_s, predicted_s)
        else:
            self._policy.observe(trace.plan, trace.batch, trace.num_tokens, trace.total_s, predicted_s, now_s)

    def _leave_open(self, trace: Trace, plan: Plan, seconds: float, predicted_s: float) -> None:
        """Until its links have been probed: it was either they or the plan."""
        used = [device for device, share in enumerate(plan.shares) if share and device]
        self._unexplained = _Unexplained(
            plan=plan, batch=trace.batch, num_tokens=trace.num_tokens, seconds=seconds, predicted_s=predicted_s,
            network=self.network, num_probes={device: self._estimate.num_probes(device) for device in used},
            has_failed=bool(trace.failures),
        )  # fmt: skip

    def probe(self, ready: Collection[int]) -> None:
        """Probes a link to one of these devices, if one is due, and those under suspicion. While they have nothing in
        hand: one that computes answers late, and its link would seem slow."""
        device = self._estimate.due(time.monotonic(), among=ready)
        for _ in range(MAX_PROBES):
            if device is None:
                break
            self._probe(device)
            device = self._estimate.due(time.monotonic(), among=ready, only_suspected=True)
        self._explain(ready)

    def _explain(self, ready: Collection[int]) -> None:
        """What no link explains is the plan's own: it takes longer, or less, than predicted. That has to wait until all
        of its links were looked at, and its devices may have to come back for that."""
        one = self._unexplained
        if one is None or not one.num_probes.keys() <= {*ready}:
            return
        if any(self._estimate.num_probes(device) == before for device, before in one.num_probes.items()):
            return
        self._unexplained = None
        if any(_differs(then, now) for then, now in zip(one.network.links, self.network.links, strict=True)):
            return
        self._policy.observe(
            one.plan, one.batch, one.num_tokens, one.seconds, one.predicted_s, time.monotonic(), is_bound=one.has_failed
        )

    def _predict(self, trace: Trace, network: Network, ratios: list[float] | None = None) -> Prediction:
        costs = self._map.costs if ratios is None else scaled(self._map.costs, ratios)
        return predict(
            costs, self._map.model, trace.plan, batch=trace.batch, num_tokens=trace.num_tokens,
            element_bytes=self._element_bytes, network=network,
        )  # fmt: skip

    def _probe(self, device: int) -> None:
        link = self.network.links[device - 1]
        num_bytes = self._estimate.probe_bytes(device)
        expected_s = 2 * link.latency_s + num_bytes / link.bytes_per_s
        timeout_s = min(MAX_PROBE_TIMEOUT_S, max(MIN_PROBE_TIMEOUT_S, PROBE_TIMEOUT_FACTOR * expected_s))
        try:
            seconds = ProbeSeconds(
                empty=ping_s(self._transport, device, 0, timeout_s=timeout_s),
                out=ping_s(self._transport, device, num_bytes, timeout_s=timeout_s),
                back=ping_s(self._transport, device, 0, echo_bytes=num_bytes, timeout_s=timeout_s),
            )
            self._estimate.saw_probe(device, num_bytes, seconds, time.monotonic())
        except PeerTimeout as exc:
            log.info("a probe of device %d did not come back: %s", device, exc)
            self._estimate.probe_failed(device, num_bytes, timeout_s, time.monotonic())
        except PeerError as exc:
            log.info("device %d cannot be probed: %s", device, exc)
            self._estimate.skip(device, time.monotonic())
