"""Which device has which stage of a pipeline now: as the plan says, and without those that are gone.

Where everybody holds the whole model stages are cut anew in a moment. Where devices hold their own stage's pieces only,
those that are left have to load others first, as far as they have the memory; devices that had no stage help out then.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from edgeprism.errors import PlanError
from edgeprism.models.model import Model
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.sets import what_lacks
from edgeprism.planner.throughput import fastest
from edgeprism.policy.pipeline import unmeasured
from edgeprism.runtime.heap import trim
from edgeprism.runtime.link_probe import free_bytes
from edgeprism.runtime.machine import MEMORY_PART, memory_available_bytes
from edgeprism.runtime.membership import Membership
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan, Stage
from edgeprism.strategies.pipeline.partition import check, even, num_pieces, piece_work, stage_weight_bytes
from edgeprism.wire.transport import COORDINATOR, Transport

log = logging.getLogger(__name__)

TRY_AGAIN_S = 5.0
"""How long devices that could not hold the model are taken to be unable to: many may ask for the same at once."""
ANSWER_S = 2.5
"""How long devices that are connected may take to answer a new epoch: they finish what they compute first."""
LOADING_S = 900.0
"""How long a device may take to load its stage, once nobody waits for it any more."""
BACK_OFF_S, MAX_BACK_OFF_S = 10.0, 600.0
"""A device that failed again, or did not load its stage, is not given one for so long, and then for twice as long: each
time all others load theirs anew."""

Share = Callable[[tuple[Stage, ...]], None]


class Restaging:
    """For device 0's thread."""

    def __init__(self, model: Model, members: Membership, transport: Transport) -> None:
        self._model, self._spec, self._members = model, model.spec, members
        self._transport, self._num_devices = transport, transport.num_devices
        self._share: Share | None = None
        self._ordered_s = 0.0  # when devices were last told what to load
        self._held: tuple[Stage, ...] = ()
        self._wanted: tuple[Stage, ...] = ()
        self._offered: frozenset[int] = frozenset()  # the devices among which those that are held were chosen
        self._micro_batch = 1  # the largest so far
        self._epoch = -1  # in which answers were waited for
        self._unable: dict[int, tuple[int, float]] = {}  # how often, and until when a device gets no stage
        self._failed: tuple[tuple[int, ...], float, str] = ((), 0.0, "")  # who could not hold the model, when, and why

    def hold(self, stages: tuple[Stage, ...], share: Share) -> None:
        """From now on devices hold the pieces of these stages only; ``share`` has them load those of others."""
        self._held = self._wanted = stages
        self._share, self._ordered_s = share, time.monotonic()
        self._offered = frozenset(stage.device for stage in stages)

    def plan(self, given: str | Plan, codec: CodecSpec, *, is_running: bool) -> tuple[Plan, tuple[str, ...]] | None:
        """The plan of a request over the devices that are ready; who is left out, and why. None while stages would have
        to change first and something is under way on them, or while devices still load theirs. PlanError for what
        cannot be."""
        if isinstance(given, Plan):
            check(self._spec, given)
            self._micro_batch = max(self._micro_batch, given.micro_batch)
        members = self._members
        self._await_answers()
        ready = members.ready()
        wanted = given.stages if isinstance(given, Plan) else self._wanted or self._cut(ready)
        stages = self._held if self._share is not None else wanted
        in_use = {stage.device for stage in stages}
        if self._share is not None and self._still_loads(in_use - {*ready}):
            return None
        there = {*ready} if self._share is None else {*members.answering} - self._backing_off()
        could_be = {stage.device for stage in wanted if stage.stop > stage.start} & there
        if not in_use <= {*ready} or (self._share is not None and not could_be <= in_use | self._offered):
            if is_running:
                return None
            stages = self.without_lost(wanted)
        missing = sorted({stage.device for stage in wanted} - {stage.device for stage in stages})
        absent = members.absent() if missing else {}
        left_out = tuple(f"device {device}: {absent.get(device, 'it is not ready')}" for device in missing)
        return self._as_plan(stages, given, codec), left_out

    def after_failure(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Stages for those of these devices that are left; others of the plan that have come back are used, too.
        EdgeprismError where nobody can hold the model any more."""
        lost = self._members.lost()
        wanted = self._wanted or tuple(stages)
        self._members.wait_for([stage.device for stage in wanted if stage.device not in lost], ANSWER_S)
        found = self.without_lost(wanted)
        for device in {stage.device for stage in stages} - {stage.device for stage in found}:
            self._back_off(device, is_first_free=True)
        return found

    def without_lost(self, wanted: Sequence[Stage]) -> tuple[Stage, ...]:
        """Stages for those of their devices that can be used. Where they have to load other pieces for that, those that
        cannot are left out, too: for lack of memory, or of a link with the others."""
        while True:
            there = self._members.ready() if self._share is None else self._members.answering
            usable = {*there} if self._share is None else {*there} - self._backing_off()
            devices = tuple(stage.device for stage in wanted if stage.device in usable) or (COORDINATOR,)
            stages = self._for(wanted, devices)
            if self._share is None:
                return stages
            used = {stage.device for stage in stages}
            late = used - {*self._members.ready()}
            if stages != self._held or (late and not self._still_loads(late)):
                self._load(stages, devices)
            while self._still_loads(late := used - {*self._members.ready()}):
                self._members.wait(0.1)
            if not late:
                self._offered = frozenset(devices)
                return self._held
            for device in late:
                self._back_off(device)

    def _still_loads(self, devices: Collection[int]) -> bool:
        """Whether one of these loads what it is to hold, and not for too long yet."""
        return bool({*devices} & self._members.loading) and time.monotonic() < self._ordered_s + LOADING_S

    def _await_answers(self) -> None:
        """Once in an epoch: who is asked for a stage has had the time to answer."""
        if self._share is not None and self._epoch != self._members.epoch:
            self._epoch = self._members.epoch
            backing_off = self._backing_off()
            self._members.wait_for([one.device for one in self._wanted if one.device not in backing_off], ANSWER_S)

    def _backing_off(self) -> set[int]:
        now = time.monotonic()
        return {device for device, (_, until_s) in self._unable.items() if until_s > now}

    def _back_off(self, device: int, *, is_first_free: bool = False) -> None:
        """``is_first_free``: a device that failed once, as by being started anew, may come back at once."""
        now = time.monotonic()
        times, until_s = self._unable.get(device, (0, now))
        times = 0 if now > until_s + MAX_BACK_OFF_S else times
        back_off_s = 0.0 if is_first_free and not times else min(MAX_BACK_OFF_S, BACK_OFF_S * 2.0**times)
        self._unable[device] = (times + 1, now + back_off_s)

    def _load(self, stages: tuple[Stage, ...], devices: tuple[int, ...]) -> None:
        assert self._share is not None
        failed, at_s, why = self._failed
        if failed == devices and time.monotonic() - at_s < TRY_AGAIN_S:
            raise PlanError(why)
        self._ordered_s = time.monotonic()
        try:
            self._share(stages)
        except Exception as exc:  # also what torch says where memory ends in the middle
            self._held, self._offered = (), frozenset()  # nobody knows any more who holds what
            why = f"the devices that are left cannot hold the model: device 0: {exc}{self._others()}"
            self._failed = devices, time.monotonic(), why
            raise PlanError(why) from exc
        self._held = stages

    def _for(self, wanted: Sequence[Stage], devices: Collection[int]) -> tuple[Stage, ...]:
        """As wanted where all are there; else cut anew, each device's part in proportion to what it was to have, as far
        as memory allows."""
        if {stage.device for stage in wanted} == {*devices}:
            return tuple(wanted)
        macs = piece_work(self._spec, self._spec.usual_tokens)
        parts = {stage.device: float(sum(macs[stage.start : stage.stop])) for stage in wanted}
        used = [device for device in devices if parts.get(device)] or list(devices)
        stages = even(self._spec, self._spec.usual_tokens, used, [parts.get(device) or 1.0 for device in used])
        return stages if self._share is None else self._within_memory(stages, parts)

    def _within_memory(self, stages: tuple[Stage, ...], parts: Mapping[int, float]) -> tuple[Stage, ...]:
        """These, if the devices' memory allows them; else the best that it allows them, or them and others that answer
        and had no part. PlanError where nobody can hold the model any more, with what lacks."""
        used, least = [stage.device for stage in stages], min(part for part in parts.values() if part)
        others = {*range(self._num_devices)} - parts.keys()  # they may not have answered yet
        self._members.wait_for(others, ANSWER_S)
        spare = sorted({*self._members.answering} - {*used} - self._backing_off())
        if self._offered == {*used} and self._held and {stage.device for stage in self._held} <= {*used, *spare}:
            return self._held  # loaded as it is: what is free changes from moment to moment
        free, why = self._free_bytes([*used, *spare]), ""
        for devices in [used, used + spare] if spare else [used]:
            pipeline = self._pipeline(devices, [parts.get(device) or least for device in devices], free)
            try:
                found = _as_given(stages, pipeline, devices) or fastest(pipeline)
            except PlanError as exc:
                why = what_lacks(pipeline, devices) or str(exc)
                continue
            found = _in_order([stage for stage in found if stage.stop > stage.start], pipeline)
            return tuple(replace(stage, device=devices[stage.device]) for stage in found)
        if self._held and {stage.device for stage in self._held} <= {*used, *spare}:
            return self._held
        raise PlanError(f"the devices that are left cannot hold the model: {why}{self._others()}")

    def _free_bytes(self, devices: Collection[int]) -> dict[int, float]:
        """For weights, of those that say it."""
        found = free_bytes(self._transport, [device for device in devices if device != COORDINATOR], {})
        trim()
        here = memory_available_bytes()
        if here is not None and self._model.device.type == "cpu":
            own = next((stage for stage in self._held if stage.device == COORDINATOR), None)
            found[COORDINATOR] = float(here) + (0 if own is None else self._weight_bytes(own))
        return found

    def _weight_bytes(self, stage: Stage) -> int:
        return stage_weight_bytes(self._spec, stage.start, stage.stop, self._model.dtype.itemsize)

    def _pipeline(self, devices: Sequence[int], speeds: Sequence[float], free: Mapping[int, float]) -> Pipeline:
        """For the planner: how fast they are beside each other, and their memory."""
        return unmeasured(
            self._spec, speeds=speeds, memory_bytes=[MEMORY_PART * free.get(device, math.inf) for device in devices],
            num_tokens=self._spec.usual_tokens, micro_batch=self._micro_batch,
            element_bytes=self._model.dtype.itemsize,
        )  # fmt: skip

    def _others(self) -> str:
        """Why devices are not among those that are left."""
        return "".join(f"; device {device}: {why}" for device, why in self._members.absent().items())

    def _cut(self, ready: Sequence[int]) -> tuple[Stage, ...]:
        """By speed, for usual requests, whatever they are: so stages stay as they are from one to the next."""
        speeds, used = self._members.macs_per_s, ready[: num_pieces(self._spec)]
        shares = [speeds.get(device) or speeds[COORDINATOR] for device in used]
        return even(self._spec, self._spec.usual_tokens, used, shares)

    def _as_plan(self, stages: tuple[Stage, ...], given: str | Plan, codec: CodecSpec) -> Plan:
        if not isinstance(given, Plan):
            return Plan.pipeline(stages, self._num_devices, codec)
        return Plan.pipeline(
            stages, self._num_devices, given.codec, micro_batch=given.micro_batch, narrowest=given.narrowest
        )  # fmt: skip


def _as_given(stages: Sequence[Stage], pipeline: Pipeline, devices: Sequence[int]) -> tuple[Stage, ...] | None:
    """These, by their places in ``devices``, if the memory of all allows them."""
    placed = tuple(replace(stage, device=devices.index(stage.device)) for stage in stages)
    return placed if pipeline.fits(placed) else None


def _in_order(stages: Sequence[Stage], pipeline: Pipeline) -> tuple[Stage, ...]:
    """Each device with as many pieces, one behind the other as they were before, if memory allows that: links that
    were fast stay in use, and inputs where they are."""
    placed, at = list[Stage](), 0
    for stage in sorted(stages, key=lambda stage: stage.device):
        placed.append(Stage(device=stage.device, start=at, stop=at + stage.stop - stage.start))
        at = placed[-1].stop
    return tuple(placed if pipeline.fits(placed) else stages)
