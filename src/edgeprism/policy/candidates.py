"""The plans that are worth comparing for one request, with shares that let the devices finish together.

Which devices: every set of them in a small cluster, the fastest ones in a large one. How uneven: `replica` hands out
samples one by one, each to the device that would be done with it first; `sequence` starts from the devices' speeds and
moves tokens from those that are busy longest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from edgeprism.errors import PlanError
from edgeprism.policy.network import COORDINATOR, Network
from edgeprism.policy.predict import Prediction, dot, predict
from edgeprism.policy.work import work_of
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.performance_map import Costs
from edgeprism.specs.plan import Plan

ALL_SETS_UP_TO = 4  # devices
NUM_REFINED = 3  # of the best plans under `sequence`, whose shares are moved
NUM_MOVES = 4
WORTH_MOVING = 0.06  # what uneven shares must gain: even ones are those that accuracy was measured with


class Candidates:
    """Plans and predictions for requests of one shape on one network. ``devices``: those that can be used now."""

    def __init__(
        self,
        costs: Costs,
        model: ModelSpec,
        *,
        batch: int,
        num_tokens: int,
        element_bytes: int,
        network: Network,
        devices: Collection[int] | None = None,
    ) -> None:
        self._costs, self._model, self._network = costs, model, network
        self._batch, self._num_tokens, self._element_bytes = batch, num_tokens, element_bytes
        self._num_devices = len(costs.devices)
        self._ready = sorted(range(self._num_devices) if devices is None else devices)

    def predict(self, plan: Plan) -> Prediction:
        """Of this request."""
        return predict(
            self._costs, self._model, plan, batch=self._batch, num_tokens=self._num_tokens,
            element_bytes=self._element_bytes, network=self._network,
        )  # fmt: skip

    def all(self, codecs: Mapping[int, Sequence[CodecSpec]]) -> list[tuple[Plan, Prediction]]:
        """Every candidate, the fastest first; ``codecs`` are those that `sequence` may use among so many devices."""
        found = [(plan, self.predict(plan)) for plan in (Plan.local(), *self._replicas())]
        shared: list[tuple[Plan, Prediction]] = []
        for devices in self._sets(at_least=2):
            if COORDINATOR not in devices:
                continue  # it embeds and runs the head in any case
            for codec in codecs[len(devices)]:
                try:
                    plan = self._shared(devices, codec)
                    shared.append((plan, self.predict(plan)))
                except PlanError:
                    continue  # too few tokens for these devices or this codec
        shared.sort(key=_total_s)
        refined = [self._refined(*one) if one[0].codec.is_exact else one for one in shared[:NUM_REFINED]]
        return sorted([*found, *refined, *shared[NUM_REFINED:]], key=_total_s)

    def alone(self) -> dict[int, Prediction]:
        """Each device with the whole request."""
        plans = {
            device: Plan(strategy="replica", shares=_only(device, self._num_devices))
            for device in self._ready
            if device != COORDINATOR
        }
        return {device: self.predict(plan) for device, plan in {COORDINATOR: Plan.local(), **plans}.items()}

    def _sets(self, *, at_least: int) -> Iterator[tuple[int, ...]]:
        if len(self._ready) <= ALL_SETS_UP_TO:
            for size in range(at_least, len(self._ready) + 1):
                yield from combinations(self._ready, size)
            return
        by_speed = sorted(self._ready, key=lambda device: (self._alone_s(device), device))
        yield from (tuple(sorted(by_speed[:size])) for size in range(at_least, len(by_speed) + 1))

    def _replicas(self) -> Iterator[Plan]:
        for devices in self._sets(at_least=1):
            if devices != (COORDINATOR,):
                counts = self._samples(devices)
                if [device for device, count in enumerate(counts) if count] == list(devices):
                    shares = tuple(count / self._batch for count in counts)
                    yield Plan(strategy="replica", shares=shares)

    def _samples(self, devices: Sequence[int]) -> list[int]:
        """Samples of each device: one after the other to the one that would then be done first."""
        counts = [0] * self._num_devices
        done_s = {device: [self._samples_s(device, count) for count in range(self._batch + 1)] for device in devices}
        for _ in range(self._batch):
            best = min(devices, key=lambda device: (done_s[device][counts[device] + 1], device))
            counts[best] += 1
        return counts

    def _samples_s(self, device: int, count: int) -> float:
        """When ``device`` is done with so many samples, those of nobody else on the way."""
        if not count:
            return 0.0
        plan = Plan(strategy="replica", shares=_only(device, self._num_devices))
        work = work_of(
            self._model, plan, batch=count, num_tokens=self._num_tokens, element_bytes=self._element_bytes
        )[device]  # fmt: skip
        costs = self._costs.devices[device]
        seconds = dot(costs.compute, work.compute_features()) + dot(costs.wire, work.wire_features())
        if device == COORDINATOR:
            return seconds
        num_bytes = work.input_bytes + work.result_bytes
        rate = self._network.bytes_per_s(COORDINATOR, device)
        return seconds + 2 * self._network.latency_s(COORDINATOR, device) + num_bytes / rate

    def _alone_s(self, device: int) -> float:
        """How long the whole request would take it, without any transfer."""
        plan = Plan(strategy="replica", shares=_only(device, self._num_devices))
        work = work_of(
            self._model, plan, batch=self._batch, num_tokens=self._num_tokens, element_bytes=self._element_bytes
        )[device]  # fmt: skip
        return dot(self._costs.devices[device].compute, work.compute_features())

    def _shared(self, devices: Sequence[int], codec: CodecSpec) -> Plan:
        """Tokens by speed; evenly where speeds are within a tenth of each other, and for a lossy codec: what it costs
        was measured with even shares."""
        if not codec.is_exact:
            return self._plan({device: 1 / len(devices) for device in devices}, codec)
        alone = {device: self._alone_s(device) for device in devices}
        slowest = max(alone.values())
        speeds = {device: 1.0 if seconds > 0.9 * slowest else slowest / seconds for device, seconds in alone.items()}
        return self._plan({device: speed / sum(speeds.values()) for device, speed in speeds.items()}, codec)

    def _plan(self, shares: dict[int, float], codec: CodecSpec) -> Plan:
        full = tuple(shares.get(device, 0.0) for device in range(self._num_devices))
        return Plan(strategy="sequence", shares=full, codec=codec)

    def _refined(self, plan: Plan, prediction: Prediction) -> tuple[Plan, Prediction]:
        """Tokens moved from who is busy longest to the others, as long as that helps."""
        best, shares = (plan, prediction), dict(enumerate(plan.shares))
        for _ in range(NUM_MOVES):
            busy = {part.device: part.busy_s for part in best[1].parts}
            mean_s = sum(busy.values()) / len(busy)
            shares = {device: shares[device] * (mean_s / busy[device]) ** 0.8 for device in busy}
            shares = {device: share / sum(shares.values()) for device, share in shares.items()}
            try:
                moved = self._plan(shares, plan.codec)
                trial = (moved, self.predict(moved))
            except PlanError:
                break
            if trial[1].total_s >= best[1].total_s:
                break
            best = trial
        return best if best[1].total_s < (1 - WORTH_MOVING) * prediction.total_s else (plan, prediction)


def _only(device: int, num_devices: int) -> tuple[float, ...]:
    return tuple(float(one == device) for one in range(num_devices))


def _total_s(candidate: tuple[Plan, Prediction]) -> float:
    return candidate[1].total_s


def scaled(costs: Costs, load: Sequence[float]) -> Costs:
    """The costs while each device takes ``load`` times as long to compute as it did when it was measured."""
    devices = tuple(
        replace(
            device,
            compute=tuple(factor * cost for cost in device.compute),
            codecs={name: tuple(factor * cost for cost in costs) for name, costs in device.codecs.items()},
        )
        for device, factor in zip(costs.devices, load, strict=True)
    )
    return replace(costs, devices=devices)
