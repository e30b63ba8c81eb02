"""Requests of one sample under `replica`: each runs whole on one device, and several run at once.

A request goes to the device expected to finish it first: what that device still has in hand, then as long as such
requests took there. A device has at most two in hand, one that it computes and one that travels meanwhile; when the
best device has two the request waits, rather than go where it would be done later. Device 0 computes its own on a
thread beside the one that owns the transport, so that answers and new requests need not wait for that.

What a failed device had in hand goes to device 0.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch
from transformers.utils import ModelOutput

from edgeprism.errors import FrameError, InputError, PeerError
from edgeprism.models.model import Model
from edgeprism.runtime.answers import Answer, RequestQueue
from edgeprism.runtime.cores import settle
from edgeprism.runtime.job import WORKERS_PART, Results, as_computed, as_sent, replica_job
from edgeprism.runtime.membership import Membership
from edgeprism.runtime.patience import Patience
from edgeprism.runtime.trace import DeviceTrace, Trace
from edgeprism.specs.cost import whole_model_macs
from edgeprism.specs.plan import Plan
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.replica.forward import run_samples
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import Frame, Kind
from edgeprism.wire.transport import Transport

MAX_IN_HAND = 2
HOPED_LINK_BYTES_PER_S = 1e8  # until a request has shown what the link does: too little would never be tried
NEW_WEIGHT = 0.3  # of the newest time of a device, against those before
FADES_S = 30.0  # half of what a slow time says about a device is forgotten after so long without another


@dataclass(slots=True, kw_only=True)
class InHand:
    """A request that a device has."""

    answer: Answer
    number: int
    kind: Hashable
    given_s: float
    num_losses: int
    num_bytes: int = 0
    send_s: float = 0.0
    staging_s: float = 0.0
    timeout_s: float = 0.0


class Singles:
    """Owned by device 0's thread. ``offer`` and ``collect`` are its turns, ``take`` is given what devices answer."""

    def __init__(
        self,
        transport: Transport,
        model: Model,
        members: Membership,
        patience: Patience,
        queue: RequestQueue,
        numbers: Iterator[int],
        cores: tuple[int, ...] | None,
    ) -> None:
        self._transport, self._model, self._members, self._patience = transport, model, members, patience
        self._queue, self._numbers = queue, numbers
        self._staging = Staging(model.device)
        self._in_hand: dict[int, deque[InHand]] = {device: deque() for device in range(transport.num_devices)}
        self._last_done_s = dict.fromkeys(self._in_hand, 0.0)
        self._seen: dict[tuple[int, Hashable], tuple[float, float]] = {}  # seconds that it took, and when that was
        self._own_done: SimpleQueue[tuple[InHand, Future[tuple[ModelOutput, float]]]] = SimpleQueue()
        self._own = ThreadPoolExecutor(1, "edgeprism-0-computes", settle, (cores,))

    @property
    def num_in_hand(self) -> int:
        """Requests that devices have."""
        return sum(map(len, self._in_hand.values()))

    @property
    def patience_s(self) -> float:
        """Seconds until the first device that has something in hand is late."""
        now = time.monotonic()
        return min(
            (self._late_at_s(device) - now for device, held in self._in_hand.items() if held and device), default=1.0
        )

    def offer(self, answer: Answer) -> bool:
        """Gives a request to a device; False when it is better kept until one has finished something."""
        inputs = answer._inputs
        num_tokens = self._model.num_tokens(inputs)
        kind = (num_tokens, *sorted(inputs))
        ready = (0,) if answer._failures else self._members.ready(linked=False)
        now = time.monotonic()
        ends = {
            device: self._free_in_s(device, now) + self._expected_s(device, kind, num_tokens, now) for device in ready
        }
        device = min(ends, key=lambda device: (ends[device], device))
        if len(self._in_hand[device]) >= MAX_IN_HAND:
            return False
        held = InHand(
            answer=answer, number=next(self._numbers), kind=kind, given_s=now,
            num_losses=self._transport.num_losses[device],
        )  # fmt: skip
        self._in_hand[device].append(held)
        answer._began_s = answer._began_s or now
        try:
            if device == 0:
                future = self._own.submit(self._compute, inputs)
                future.add_done_callback(lambda done: self._own_is_done(held, done))
            else:
                self._send(device, held, num_tokens)
        except BaseException:
            if held in self._in_hand[device]:
                self._in_hand[device].remove(held)
            raise
        return True

    def take(self, frame: Frame) -> None:
        """What a device answered; nothing of it counts when the request is no longer in its hand."""
        device = frame.sender
        held = next((held for held in self._in_hand[device] if held.number == frame.request), None)
        if held is None or frame.epoch != self._members.epoch or frame.kind not in (Kind.RESULT, Kind.FAULT):
            return
        if frame.kind is Kind.FAULT:
            reason = f"device {device} failed: {frame.info.get('message', 'no reason given')}"
            if frame.info.get("cause") == "input":  # device 0 will say what is wrong with it
                self._in_hand[device].remove(held)
                self._retry(held, reason)
            else:
                self._give_up(device, reason)
            return
        try:
            output = self._model.output(**Results.of_samples(frame, self._staging, 1).named())
            part = Results.trace_of(frame)
        except Exception as exc:  # whatever a device sends is its own failure
            self._give_up(device, f"device {device} sent what cannot be used: {exc}")
            return
        total_s = time.monotonic() - held.given_s
        own = DeviceTrace(
            device=0, work=0, total_s=total_s, compute_s=0.0, codec_s=0.0, staging_s=held.staging_s, wire_s=held.send_s,
            wait_s=max(0.0, total_s - held.staging_s - held.send_s), bytes_sent=held.num_bytes,
            bytes_received=frame.num_bytes,
        )  # fmt: skip
        self._done(device, held, output, (own, part))

    def collect(self) -> None:
        """Takes in what device 0 has computed, and gives up devices that are gone or late."""
        while True:
            try:
                held, done = self._own_done.get_nowait()
            except Empty:
                break
            error = done.exception()
            if error is not None:
                self._in_hand[0].remove(held)
                self._queue.finish(held.answer, error)
            else:
                output, compute_s = done.result()
                total_s = time.monotonic() - held.given_s
                part = DeviceTrace(
                    device=0, work=1, total_s=total_s, compute_s=compute_s, codec_s=0.0, staging_s=0.0, wire_s=0.0,
                    wait_s=total_s - compute_s, bytes_sent=0, bytes_received=0,
                )  # fmt: skip
                self._done(0, held, output, (part,))
        lost, now = self._transport.lost(), time.monotonic()
        for device, in_hand in self._in_hand.items():
            if not in_hand or device == 0:
                continue
            if device in lost or self._transport.num_losses[device] != in_hand[0].num_losses:
                self._give_up(device, f"device {device}: {lost.get(device, 'its connection was lost for a moment')}")
            elif now > self._late_at_s(device):
                self._patience.learn_timeout((device, in_hand[0].kind))
                self._give_up(device, f"device {device} sent no RESULT before the deadline")

    def close(self, why: InputError) -> None:
        """Ends them, and tells those who wait."""
        self._own.shutdown(cancel_futures=True)
        for in_hand in self._in_hand.values():
            while in_hand:
                self._queue.finish(in_hand.popleft().answer, why)

    # Expecting

    def _expected_s(self, device: int, kind: Hashable, num_tokens: int, now: float) -> float:
        """How long such a request takes on a device: counted, until it was seen; a bad moment fades."""
        counted_s = self._counted_s(device, num_tokens)
        if device:
            counted_s += self._input_bytes(num_tokens) / HOPED_LINK_BYTES_PER_S
        seen_s, when_s = self._seen.get((device, kind), (counted_s, now))
        return counted_s + (seen_s - counted_s) * float(0.5 ** ((now - when_s) / FADES_S))

    def _counted_s(self, device: int, num_tokens: int) -> float:
        speed = self._members.macs_per_s.get(device) or self._members.macs_per_s[0]
        return whole_model_macs(self._model.spec, num_tokens) / speed

    def _free_in_s(self, device: int, now: float) -> float:
        """When a device will have finished what it has in hand."""
        held = self._in_hand[device]
        if not held:
            return 0.0
        each_s, _ = self._seen.get((device, held[0].kind), (0.0, 0.0))
        return max(0.0, self._began_s(device) + each_s - now) + (len(held) - 1) * each_s

    def _began_s(self, device: int) -> float:
        """When a device could begin with the oldest request that it has in hand."""
        return max(self._in_hand[device][0].given_s, self._last_done_s[device])

    def _late_at_s(self, device: int) -> float:
        return self._began_s(device) + self._in_hand[device][0].timeout_s

    def _input_bytes(self, num_tokens: int) -> int:
        return self._model.spec.input_values(num_tokens) * self._model.dtype.itemsize

    # Giving and taking

    @torch.no_grad()
    def _compute(self, inputs: dict[str, Any]) -> tuple[ModelOutput, float]:
        began_s = time.monotonic()
        return run_samples(self._model, inputs), time.monotonic() - began_s

    def _own_is_done(self, held: InHand, done: Future[tuple[ModelOutput, float]]) -> None:
        if not done.cancelled():
            self._own_done.put((held, done))
            self._transport.wake()

    def _send(self, device: int, held: InHand, num_tokens: int) -> None:
        meter = Meter()
        held.timeout_s = self._patience.timeout_s(
            (device, held.kind),
            of=device,
            compute_s=self._counted_s(device, num_tokens),
            num_bytes=self._input_bytes(num_tokens),
        )
        inputs = as_computed(held.answer._inputs, self._model.dtype)
        job = replica_job(inputs, (device,), ((0, 1),), WORKERS_PART * held.timeout_s)
        began_s = time.perf_counter()
        try:
            job, tensors = as_sent(job, {name: inputs[name] for name in job.tensors})
            buffers = self._staging.to_wire(tensors, meter)
            held.num_bytes = self._transport.send(
                device,
                Kind.REQUEST,
                epoch=self._members.epoch,
                request=held.number,
                meta=job.to_json(),
                buffers=buffers,
            )
        except FrameError as exc:  # too large to travel
            self._in_hand[device].remove(held)
            self._retry(held, str(exc))
        except PeerError as exc:
            self._give_up(device, str(exc))
        held.staging_s, held.send_s = meter.staging_s, time.perf_counter() - began_s - meter.staging_s

    def _done(self, device: int, held: InHand, output: ModelOutput, parts: tuple[DeviceTrace, ...]) -> None:
        now = time.monotonic()
        took_s = now - max(held.given_s, self._last_done_s[device])
        self._in_hand[device].remove(held)
        self._last_done_s[device] = now
        before_s, _ = self._seen.get((device, held.kind), (took_s, now))
        self._seen[device, held.kind] = (before_s + NEW_WEIGHT * (took_s - before_s), now)
        if device:
            self._patience.learn((device, held.kind), took_s, of=device)
        answer = held.answer
        began_s = answer._began_s or held.given_s  # a device that failed it counts, too
        shares = tuple(float(index == device) for index in range(self._transport.num_devices))
        answer.trace = Trace(
            plan=Plan(strategy="replica", shares=shares),
            dtype=str(self._model.dtype).removeprefix("torch."),
            batch=1,
            num_tokens=self._model.num_tokens(answer._inputs),
            total_s=now - began_s,
            queued_s=began_s - answer._submitted_s,
            devices=parts,
            failures=answer._failures,
            versions={part.device: self._members.versions.get(part.device, "") for part in parts},
            left_out=tuple(f"device {peer}: {why}" for peer, why in self._members.absent(linked=False).items()),
        )
        self._queue.finish(answer, output)

    def _give_up(self, device: int, reason: str) -> None:
        """A device failed: it has to answer again before it is used, and what it had in hand goes to device 0."""
        self._members.suspect(device, reason)
        held, self._in_hand[device] = self._in_hand[device], deque()
        for request in reversed(held):
            self._retry(request, reason)

    def _retry(self, held: InHand, reason: str) -> None:
        held.answer._failures += (reason,)
        self._queue.put_back(held.answer)
