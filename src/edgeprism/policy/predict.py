"""How long a plan would take, from costs: each device's work in seconds, and a timeline of who waits for whom.

A block's timeline is the runtime's own: a device encodes and sends, computes what it can while that travels, waits for
the others, decodes and goes on. A device sends to its peers one after the other. No torch, no clock: numbers in,
numbers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprism.policy.network import COORDINATOR, Network
from edgeprism.policy.work import DeviceWork, work_of
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.performance_map import Costs, DeviceCosts
from edgeprism.specs.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPrediction:
    """One device's seconds."""

    device: int
    compute_s: float
    codec_s: float
    staging_s: float
    wire_s: float
    wait_s: float
    bytes_sent: int

    @property
    def busy_s(self) -> float:
        """All but waiting."""
        return self.compute_s + self.codec_s + self.staging_s + self.wire_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """``total_s`` from the request's arrival to its answer; ``parts`` of the devices that take part."""

    total_s: float
    parts: tuple[PartPrediction, ...]
    bytes_sent: int
    """By all devices together, the inputs included."""
    joules: float
    """Of all devices of the cluster, those that only wait for the next request included."""
    joules_over_idle: float


def predict(
    costs: Costs, model: ModelSpec, plan: Plan, *, batch: int, num_tokens: int, element_bytes: int, network: Network
) -> Prediction:
    """Of one request under ``plan``. KeyError for a codec that was not measured, PlanError where the plan cannot be."""
    works = work_of(model, plan, batch=batch, num_tokens=num_tokens, element_bytes=element_bytes)
    seconds = [
        _Seconds.of(work, costs.devices[index], str(plan.codec)) if work.takes_part else None
        for index, work in enumerate(works)
    ]
    timeline = _Timeline(works, seconds, network, is_causal=model.is_causal)
    total_s = timeline.sequence(model) if plan.strategy == "sequence" else timeline.replica()
    parts = tuple(
        PartPrediction(
            device=index,
            compute_s=one.compute_s,
            codec_s=one.codec_s,
            staging_s=one.staging_s,
            wire_s=one.wire_s,
            wait_s=max(0.0, total_s - one.busy_s),
            bytes_sent=timeline.bytes_sent[index],
        )
        for index, one in enumerate(seconds)
        if one is not None
    )
    bytes_sent = sum(timeline.bytes_sent)
    over_idle = sum(
        costs.devices[part.device].busy_w * part.busy_s
        + costs.devices[part.device].joules_per_megabyte * part.bytes_sent / 1e6
        for part in parts
    )
    idle = total_s * sum(device.idle_w for device in costs.devices)
    return Prediction(
        total_s=total_s, parts=parts, bytes_sent=bytes_sent, joules=idle + over_idle, joules_over_idle=over_idle
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seconds:
    """What a device's work takes."""

    compute_s: float
    codec_s: float
    staging_s: float
    wire_s: float
    linear_s_per_mac: float

    @classmethod
    def of(cls, work: DeviceWork, costs: DeviceCosts, codec: str) -> _Seconds:
        compute_s = dot(costs.compute, work.compute_features())
        codec_s = dot(costs.codecs[codec], work.codec_features()) if work.encoded_values + work.decoded_values else 0.0
        num_messages, megabytes = work.wire_features()
        macs = work.linear_macs + work.attention_macs
        return cls(
            compute_s=compute_s,
            codec_s=codec_s,
            staging_s=costs.staging[0] * num_messages + costs.staging[1] * megabytes,
            wire_s=dot(costs.wire, (num_messages, megabytes)),
            linear_s_per_mac=compute_s / macs if macs else 0.0,
        )

    @property
    def busy_s(self) -> float:
        return self.compute_s + self.codec_s + self.staging_s + self.wire_s


def dot(costs: Sequence[float], features: Sequence[float]) -> float:
    """The seconds that features take."""
    return sum(cost * feature for cost, feature in zip(costs, features, strict=True))


class _Timeline:
    """Who is where when, for one request."""

    def __init__(
        self, works: Sequence[DeviceWork], seconds: Sequence[_Seconds | None], network: Network, *, is_causal: bool
    ) -> None:
        self._works, self._seconds, self._network, self._is_causal = works, seconds, network, is_causal
        self._devices = [index for index, work in enumerate(works) if work.takes_part]
        self._free = [0.0] * len(works)  # when a device's outgoing link is done with what it was given
        self.bytes_sent = [0] * len(works)

    def replica(self) -> float:
        """Inputs out, one device after the other; everyone computes; results in."""
        end = 0.0
        for device in self._devices:
            arrived = self._send(COORDINATOR, device, 0.0, self._works[device].input_bytes) if device else 0.0
            end = max(end, self._deliver(device, arrived + self._of(device).busy_s))
        return end

    def sequence(self, model: ModelSpec) -> float:
        """Inputs out, embedded where they arrive; block by block; results in; the head."""
        now = [0.0] * len(self._works)
        for device in self._devices:
            work = self._works[device]
            if device != COORDINATOR:  # what needs no embedding there was embedded here
                ready_s = 0.0 if work.embedding_macs or COORDINATOR not in self._devices else now[COORDINATOR]
                now[device] = self._send(COORDINATOR, device, ready_s, work.input_bytes)
            now[device] += self._of(device).linear_s_per_mac * work.embedding_macs
        now = self._blocks(now, model.num_layers - 1)
        now = self._block(now, [device for device in self._devices if self._reads(model, device)])
        end = max(self._deliver(device, now[device]) for device in self._devices)
        return end + self._after_blocks()

    def _blocks(self, now: list[float], num_blocks: int) -> list[float]:
        """So many whole ones. Once everybody is as far apart as after an earlier block, the rest repeats what followed
        that one: the repeats are counted, not gone through."""
        first, left = self._devices[0], num_blocks
        seen: dict[tuple[int, ...], tuple[int, float, list[int]]] = {}
        while left:
            now, left = self._block(now, self._devices), left - 1
            left_then, first_then_s, sent_then = seen.setdefault(
                self._apart(now), (left, now[first], list(self.bytes_sent))
            )
            num_repeats = left // (left_then - left) if left_then > left else 0
            if num_repeats:
                later_s = num_repeats * (now[first] - first_then_s)
                left -= num_repeats * (left_then - left)
                now, self._free = [one + later_s for one in now], [free + later_s for free in self._free]
                sent = zip(self.bytes_sent, sent_then, strict=True)
                self.bytes_sent = [one + num_repeats * (one - then) for one, then in sent]
        return now

    def _apart(self, now: Sequence[float]) -> tuple[int, ...]:
        """Where devices and their links are in time, by the first device's clock, in picoseconds."""
        first = now[self._devices[0]]
        links = (max(self._free[device], now[device]) for device in self._devices)
        return tuple(round((one - first) * 1e12) for one in (*(now[device] for device in self._devices), *links))

    def _block(self, now: Sequence[float], readers: Sequence[int]) -> list[float]:
        ready = list(now)
        arrivals = list(now)
        for device in self._devices:
            one, work = self._of(device), self._works[device]
            before_s = self._block_s(device) * work.sends_first
            half_s = (one.codec_s + one.wire_s + one.staging_s) / max(1, work.num_exchanges) / 2
            ready[device] = now[device] + before_s + (half_s if work.num_payloads else 0.0)
        for device in sorted(self._devices, key=lambda device: ready[device]):
            for peer in readers:
                if peer != device and not (self._is_causal and peer < device):
                    came = self._send(device, peer, ready[device], self._works[device].block_bytes, len(self._devices))
                    arrivals[peer] = max(arrivals[peer], came)
        after = list(now)
        for device in self._devices:
            one, work, block_s = self._of(device), self._works[device], self._block_s(device)
            half_s = (one.codec_s + one.wire_s + one.staging_s) / max(1, work.num_exchanges) / 2
            met = max(ready[device] + block_s * work.overlaps, arrivals[device])
            rest_s = block_s * max(0.0, 1.0 - work.sends_first - work.overlaps)
            after[device] = met + rest_s + (half_s if work.num_payloads else 0.0)
        return after

    def _block_s(self, device: int) -> float:
        """Seconds of computing in one block, all blocks alike: the last one is as short for everyone."""
        one, work = self._of(device), self._works[device]
        outside = one.linear_s_per_mac * (work.embedding_macs + work.head_macs)
        return (one.compute_s - outside) / max(1, work.num_exchanges)

    def _after_blocks(self) -> float:
        if COORDINATOR not in self._devices:
            return 0.0
        return self._of(COORDINATOR).linear_s_per_mac * self._works[COORDINATOR].head_macs

    def _reads(self, model: ModelSpec, device: int) -> bool:
        if model.head_reads == "all":
            return True
        return device == (self._devices[0] if model.head_reads == "first" else self._devices[-1])

    def _deliver(self, device: int, done_s: float) -> float:
        """When the coordinator has a device's results."""
        if device == COORDINATOR:
            return done_s
        return self._send(device, COORDINATOR, done_s, self._works[device].result_bytes)

    def _send(self, sender: int, receiver: int, ready_s: float, num_bytes: int, num_senders: int = 1) -> float:
        """When it has arrived; the sender's link is taken until it is on its way."""
        rate = self._network.bytes_per_s(sender, receiver, num_senders=num_senders)
        self._free[sender] = max(ready_s, self._free[sender]) + num_bytes / rate
        self.bytes_sent[sender] += num_bytes
        return self._free[sender] + self._network.latency_s(sender, receiver)

    def _of(self, device: int) -> _Seconds:
        one = self._seconds[device]
        assert one is not None
        return one
