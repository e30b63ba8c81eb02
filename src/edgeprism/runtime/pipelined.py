"""Requests under plan `pipeline`: their micro-batches go through the stages one behind the other, many at once.

Device 0 has the inputs and wants the outputs; it may have a stage, which it computes on a thread beside the one that
owns the transport. When a device fails, everything that is under way begins anew on stages for those that are left:
inputs are kept until their outputs are here, so nothing is lost, and what comes of the old stages no longer counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from edgeprism.errors import EdgeprismError, FrameError, InputError, PeerError, PeerFault, PeerTimeout
from edgeprism.models.model import Model, only
from edgeprism.runtime.answers import Answer, RequestQueue
from edgeprism.runtime.cores import settle
from edgeprism.runtime.job import WORKERS_PART, Results, as_computed, as_sent
from edgeprism.runtime.membership import Membership
from edgeprism.runtime.messages import MAX_TIMEOUT_S, Handover
from edgeprism.runtime.patience import Patience
from edgeprism.runtime.stage import QUEUE_LENGTH, Caches, Credits, Done, StageRun
from edgeprism.runtime.text import Text
from edgeprism.runtime.trace import DeviceTrace, Trace
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.cost import whole_model_macs
from edgeprism.specs.plan import Plan, Stage
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.pipeline.forward import StageCache
from edgeprism.strategies.pipeline.partition import check, even, piece_macs
from edgeprism.strategies.replica.forward import batch_of, merge, samples_of
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import Frame, Kind
from edgeprism.wire.transport import COORDINATOR, Transport

MAX_WAITING = 64
"""Micro-batches that are taken in before the first stage wants them; more requests wait in the queue."""

Restage = Callable[[Sequence[int]], tuple[Stage, ...]]


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    """One request: what has come of its micro-batches, in their order."""

    answer: Answer | None
    """None for texts that are continued: their caller waits for them."""
    plan: Plan
    batch: int
    num_tokens: int
    left_out: tuple[str, ...]
    outputs: list[dict[str, Tensor] | None]
    parts: dict[int, DeviceTrace] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    error: BaseException | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Micro:
    """One micro-batch: the samples at ``index`` of its request. ``text``: where it is continued."""

    request: _Request
    index: int
    inputs: dict[str, Any]
    batch: int
    num_tokens: int
    text: Text | None = None
    number: int | None = None
    given_s: float = 0.0


class Pipelined:
    """Owned by device 0's thread. ``offer`` and ``collect`` are its turns, ``take`` is given what devices send."""

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
        self._queue, self._numbers, self._cores = queue, numbers, cores
        self._staging, self._credits, self._caches = Staging(model.device), Credits(), Caches()
        self._stream = 0
        self._stages: tuple[Stage, ...] = ()
        self._waiting: deque[_Micro] = deque()
        self._begun: dict[int, _Micro] = {}  # by number, in the order in which they went in
        self._num_micros = 0
        self._num_losses: dict[int, int] = {}
        self._last_done_s = 0.0
        self._inbox: deque[tuple[int, Handover, Frame | dict[str, Any]]] = deque()
        self._outbox: deque[tuple[int, Done, DeviceTrace]] = deque()
        self._is_computing = False
        self._own: ThreadPoolExecutor | None = None
        self._own_done: SimpleQueue[tuple[int, int, Future[tuple[Done, DeviceTrace]]]] = SimpleQueue()
        self.restage: Restage = self._restage
        """Makes stages for these devices, once others are gone."""
        self._held: tuple[Stage, ...] | None = None  # where devices hold their own stage's pieces only
        self._wanted: tuple[Stage, ...] = ()  # the first of those: as it is to be again when who failed is back

    def hold(self, model: Model, stages: tuple[Stage, ...]) -> None:
        """From now on devices hold the pieces of these stages only, this one ``model``."""
        self._model, self._held = model, stages
        self._wanted = self._wanted or stages

    @property
    def num_in_hand(self) -> int:
        """Micro-batches that are not done."""
        return len(self._waiting) + len(self._begun)

    def holds(self, frame: Frame) -> bool:
        """Whether a frame is of what is under way here, or was."""
        return frame.kind in (Kind.HANDOVER, Kind.CREDIT) or (frame.request == self._stream and self._stream > 0)

    @property
    def patience_s(self) -> float:
        """Seconds until the micro-batch that went in first is late."""
        return max(0.0, self._late_at_s() - time.monotonic()) if self._begun else 1.0

    def offer(self, answer: Answer) -> bool:
        """Takes a request in; False while too much waits, or other stages have to be done first."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        inputs = as_computed(only(answer._inputs, *self._model.input_names), self._model.dtype)
        batch, num_tokens = batch_of(inputs), self._model.num_tokens(inputs)
        self._model.spec.check_num_tokens(num_tokens)
        plan, left_out = self._plan_now(answer)
        if self.num_in_hand and plan.stages != self._stages:
            return False
        self._stages = plan.stages
        answer._began_s = time.monotonic()
        size = plan.micro_batch
        starts = range(0, batch, size)
        request = _Request(
            answer=answer, plan=plan, batch=batch, num_tokens=num_tokens, left_out=left_out,
            outputs=[None] * len(starts),
        )  # fmt: skip
        for index, start in enumerate(starts):
            stop = min(start + size, batch)
            part = samples_of(inputs, start, stop, batch) if batch > 1 else inputs
            self._waiting.append(
                _Micro(request=request, index=index, inputs=part, batch=stop - start, num_tokens=num_tokens)
            )
        self._go_on()
        return True

    def take(self, frame: Frame) -> None:
        """What a device sends; nothing of another stream or epoch counts."""
        if (frame.epoch, frame.request) != (self._members.epoch, self._stream):
            return
        try:
            if frame.kind is Kind.CREDIT:
                self._credits.take(frame)
            elif frame.kind is Kind.HANDOVER:
                self._inbox.append((frame.block, Handover.from_json(frame.info), frame))
            elif frame.kind is Kind.RESULT:
                self._take_result(frame)
            elif frame.kind is Kind.FAULT:
                self._take_fault(frame)
        except (FrameError, PeerFault) as exc:
            self._fail(PeerFault(f"device {frame.sender} sent what cannot be used: {exc}", (frame.sender,)))
        self._go_on()

    def collect(self) -> None:
        """Takes in what was computed here, and gives up devices that are gone or late."""
        while True:
            try:
                stream, number, done = self._own_done.get_nowait()
            except Empty:
                break
            if stream == self._stream:
                self._is_computing = False
                self._take_own(number, done)
        lost = self._transport.lost()
        used = {stage.device for stage in self._stages} - {COORDINATOR}
        if self._begun:
            gone = {
                device: lost.get(device, "its connection was lost for a moment")
                for device in used
                if device in lost or self._transport.num_losses[device] != self._num_losses.get(device, 0)
            }
            if gone:
                text = "; ".join(f"device {device}: {why}" for device, why in gone.items())
                self._fail(PeerFault(text, tuple(gone)))
            elif time.monotonic() > self._late_at_s():
                self._patience.learn_timeout(self._kind(next(iter(self._begun.values()))))
                self._fail(PeerTimeout(f"no output of the {len(self._stages)} stages before the deadline", tuple(used)))
        self._go_on()

    def close(self, why: InputError) -> None:
        """Ends them, and tells those who wait."""
        if self._own is not None:
            self._own.shutdown(cancel_futures=True)
        for request in self._requests():
            self._refuse(request, why)

    # Stages

    def _plan_now(self, answer: Answer) -> tuple[Plan, tuple[str, ...]]:
        """The plan of a request over the devices that are ready, and who is left out, and why."""
        spec, num_devices = self._model.spec, self._transport.num_devices
        ready, plan = self._members.ready(), answer._plan
        if not isinstance(plan, Plan) and self._held is not None:
            plan = Plan.pipeline(self._wanted, num_devices, answer._codec)
        if not isinstance(plan, Plan):
            speeds = [self._members.macs_per_s.get(device) or self._members.macs_per_s[0] for device in ready]
            macs = piece_macs(spec, self._model.num_tokens(answer._inputs))
            used = ready[: len(macs)]
            return Plan.pipeline(even(macs, used, speeds[: len(used)]), num_devices, answer._codec), ()
        check(spec, plan)
        wanted = [stage.device for stage in plan.stages]
        stages = plan.stages if self._held is None else self._held
        in_use = {stage.device for stage in stages}
        is_back = in_use < {*wanted} <= {*self._members.answering} and not self.num_in_hand
        now = stages if in_use <= {*ready} and not is_back else self._over(wanted)
        missing = sorted({*wanted} - {stage.device for stage in now})
        absent = self._members.absent()
        left_out = tuple(f"device {device}: {absent.get(device, 'it is not ready')}" for device in missing)
        return Plan.pipeline(now, num_devices, plan.codec, micro_batch=plan.micro_batch), left_out

    def _over(self, wanted: Sequence[int]) -> tuple[Stage, ...]:
        """Stages for those of these devices that are left. Where they have to load other pieces for that, those that
        cannot are left out, too."""
        while True:
            there = self._members.ready() if self._held is None else self._members.answering
            devices = [device for device in wanted if device in there] or [COORDINATOR]
            stages = self.restage(devices)
            if {stage.device for stage in stages} <= {*self._members.ready()} or devices == [COORDINATOR]:
                return stages

    def _restage(self, devices: Sequence[int]) -> tuple[Stage, ...]:
        """Where everybody holds the whole model: by speed."""
        speeds = [self._members.macs_per_s.get(device) or self._members.macs_per_s[0] for device in devices]
        return even(piece_macs(self._model.spec, self._model.spec.max_tokens), devices, speeds)

    # Going on

    def _go_on(self) -> None:
        """Whatever can be done now: begin micro-batches, compute, hand on."""
        try:
            while self._waiting and self._begin_one():
                pass
            if self._inbox and not self._is_computing and not self._outbox:
                self._compute(*self._inbox.popleft())
            while self._outbox and self._hand_on(*self._outbox[0]):
                self._outbox.popleft()
                if self._inbox and not self._is_computing:
                    self._compute(*self._inbox.popleft())
        except PeerError as exc:
            self._fail(exc)

    def _begin_one(self) -> bool:
        """Gives the next micro-batch to the first stage, if that has room."""
        micro, stages = self._waiting[0], self._stages
        if not self._begun and micro.number is None:
            self._enter_stream()
        first = stages[0].device
        is_here = first == COORDINATOR
        if len(self._inbox) >= QUEUE_LENGTH if is_here else not self._credits.has(first):
            return False
        names = tuple(name for name, value in micro.inputs.items() if isinstance(value, Tensor))
        options = tuple((name, bool(v)) for name, v in micro.inputs.items() if v is not None and name not in names)
        text = micro.text
        order = Handover(
            stages=stages, index=0, codec=micro.request.plan.codec, batch=micro.batch, num_tokens=micro.num_tokens,
            timeout_s=WORKERS_PART * self._timeout_s(micro), tensors=names, options=options,
            reads=None if text is None else text.reads, room=0 if text is None else text.room,
        )  # fmt: skip
        micro.given_s = time.monotonic()
        if micro.number is None:
            micro.number, self._num_micros = self._num_micros, self._num_micros + 1
        number = micro.number
        self._waiting.popleft()
        self._begun[number] = micro
        if is_here:
            self._inbox.append((number, order, micro.inputs))
            return True
        order, tensors = as_sent(order, {name: micro.inputs[name] for name in names})
        try:
            self._credits.spend(first)
            self._transport.send(
                first, Kind.HANDOVER, epoch=self._members.epoch, request=self._stream, block=number,
                meta=order.to_json(), buffers=self._staging.to_wire(tensors, Meter()),
            )  # fmt: skip
        except FrameError as exc:  # too large to travel
            self._refuse(micro.request, InputError(f"{exc}; use a smaller micro-batch"))
        return True

    def _enter_stream(self) -> None:
        self._stream, self._num_micros, self._last_done_s = next(self._numbers), 0, time.monotonic()
        self._credits.enter(self._members.epoch, self._stream)
        self._num_losses = dict(self._transport.num_losses)

    def _compute(self, number: int, order: Handover, given: Frame | dict[str, Any]) -> None:
        """Begins with this device's stage."""
        if self._own is None:
            self._own = ThreadPoolExecutor(1, "edgeprism-0-computes", settle, (self._cores,))
        self._is_computing = True
        if isinstance(given, Frame):
            self._transport.send(given.sender, Kind.CREDIT, epoch=self._members.epoch, request=self._stream)
        cache = self._caches.of(self._members.epoch, self._stream, number, order)
        stream, future = self._stream, self._own.submit(self._run_stage, order, given, cache)
        future.add_done_callback(lambda done: self._own_is_done(stream, number, done))

    def _run_stage(
        self, order: Handover, given: Frame | dict[str, Any], cache: StageCache | None
    ) -> tuple[Done, DeviceTrace]:
        meter, began_s = Meter(), time.monotonic()
        if isinstance(given, Frame):
            done = StageRun(self._model, order, meter, cache).run(self._staging.from_wire(given, meter))
        else:
            done = StageRun(self._model, order, meter, cache).run(given)
        total_s = time.monotonic() - began_s
        return done, DeviceTrace(
            device=COORDINATOR, work=order.stage.stop - order.stage.start, total_s=total_s,
            compute_s=max(0.0, total_s - meter.codec_s - meter.staging_s), codec_s=meter.codec_s,
            staging_s=meter.staging_s, wire_s=0.0, wait_s=0.0, bytes_sent=0,
            bytes_received=given.num_bytes if isinstance(given, Frame) else 0,
        )  # fmt: skip

    def _own_is_done(self, stream: int, number: int, done: Future[tuple[Done, DeviceTrace]]) -> None:
        if not done.cancelled():
            self._own_done.put((stream, number, done))
            self._transport.wake()

    def _take_own(self, number: int, future: Future[tuple[Done, DeviceTrace]]) -> None:
        error = future.exception()
        if isinstance(error, FrameError):
            self._fail(PeerFault(f"what came to this device's stage cannot be used: {error}"))
        elif error is not None:
            self._refuse(self._begun[number].request, error)
        else:
            self._outbox.append((number, *future.result()))

    def _hand_on(self, number: int, done: Done, trace: DeviceTrace) -> bool:
        """To the next stage, if that has room; what the last one gives is the output."""
        order = done.order
        if number not in self._begun:
            return True
        if order.is_last and done.names:
            self._note(self._begun[number].request, [DeviceTrace(**one) for one in order.traces] + [trace])
            self._finish(number, Results(names=done.names, tensors=done.tensors).named())
            return True
        receiver = order.stage.device  # the order is the next stage's by now
        if not self._credits.has(receiver):
            return False
        meter = Meter()
        buffers = self._staging.to_wire([tensor.contiguous() for tensor in done.tensors], meter)
        num_bytes = sum(buffer.data.nbytes for buffer in buffers)
        sent = replace(trace, staging_s=trace.staging_s + meter.staging_s, bytes_sent=num_bytes)
        self._credits.spend(receiver)
        meta = replace(order, traces=(*order.traces, _as_json(sent))).to_json()
        self._transport.send(
            receiver, Kind.HANDOVER, epoch=self._members.epoch, request=self._stream, block=number, meta=meta,
            buffers=buffers,
        )  # fmt: skip
        return True

    # Results

    def _take_result(self, frame: Frame) -> None:
        micro = self._begun.get(frame.block)
        if micro is None:
            return
        fields = Results.of_samples(frame, self._staging, micro.batch).named()
        traces = frame.info.get("traces")
        if not isinstance(traces, list) or len(traces) > len(self._stages):
            raise PeerFault(f"device {frame.sender} sent traces that cannot be read", (frame.sender,))
        self._note(micro.request, [_trace_of(one, frame) for one in traces])
        self._finish(frame.block, fields)

    def _finish(self, number: int, fields: dict[str, Tensor]) -> None:
        micro, now = self._begun.pop(number), time.monotonic()
        self._patience.learn(self._kind(micro), now - max(micro.given_s, self._last_done_s), of=self._stages)
        self._last_done_s = now
        request = micro.request
        if micro.text is not None:
            self._continue(micro, micro.text, fields)
            return
        request.outputs[micro.index] = fields
        outputs = [output for output in request.outputs if output is not None]
        if len(outputs) == len(request.outputs):
            self._answer(request, merge(outputs, self._model.output))

    def _continue(self, micro: _Micro, text: Text, fields: dict[str, Tensor]) -> None:
        """Takes the next token of a text, and has the one after it computed."""
        if not text.take(fields["ids"]):
            micro.request.outputs[micro.index] = {}
            return
        micro.inputs, micro.num_tokens = text.next_inputs(), 1
        self._waiting.append(micro)

    def generate(self, texts: Sequence[Text], plan: str | Plan, codec: CodecSpec, check: Callable[[], None]) -> Trace:
        """Continues texts, all at once, so that no stage waits while another has one; returns when all have ended.
        ``check`` is called now and then, and may raise. The trace names devices that failed: what they had of a text is
        computed anew."""
        began_s = time.monotonic()
        answer = Answer({"input_ids": texts[0].ids}, plan, codec, can_be_dropped=False)
        now, left_out = self._plan_now(answer)
        self._stages = now.stages
        batch, num_tokens = sum(text.ids.shape[0] for text in texts), texts[0].ids.shape[1]
        request = _Request(
            answer=None, plan=now, batch=batch, num_tokens=num_tokens, left_out=left_out, outputs=[None] * len(texts)
        )
        for index, text in enumerate(texts):
            self._waiting.append(
                _Micro(
                    request=request, index=index, inputs=text.prompt(), batch=text.ids.shape[0],
                    num_tokens=text.num_tokens, text=text,
                )
            )  # fmt: skip
        try:
            self._go_on()
            while request.error is None and any(output is None for output in request.outputs):
                check()
                self._transport.watch(min(0.1, self.patience_s))
                self._members.ready()
                self.collect()
        except BaseException:
            self._members.new_epoch()  # others may be at it
            self._refuse(request, InputError("given up"))
            self._stream, self._is_computing = 0, False
            raise
        if request.error is not None:
            raise request.error
        return self._trace_of_request(request, began_s, 0.0)

    def _answer(self, request: _Request, output: ModelOutput) -> None:
        answer = request.answer
        assert answer is not None and answer._began_s is not None
        answer.trace = self._trace_of_request(request, answer._began_s, answer._began_s - answer._submitted_s)
        self._queue.finish(answer, output)

    def _trace_of_request(self, request: _Request, began_s: float, queued_s: float) -> Trace:
        parts = tuple(request.parts[device] for device in sorted(request.parts))
        return Trace(
            plan=request.plan,
            dtype=str(self._model.dtype).removeprefix("torch."),
            batch=request.batch,
            num_tokens=request.num_tokens,
            total_s=time.monotonic() - began_s,
            queued_s=queued_s,
            devices=parts,
            failures=request.failures,
            left_out=request.left_out,
            versions={part.device: self._members.versions.get(part.device, "") for part in parts},
        )

    def _note(self, request: _Request, parts: Sequence[DeviceTrace]) -> None:
        """A device's micro-batches add up; its work is the number of its pieces."""
        for part in parts:
            before = request.parts.get(part.device)
            if before is None:
                request.parts[part.device] = part
                continue
            summed = {
                name: getattr(before, name) + getattr(part, name)
                for name in (
                    "total_s", "compute_s", "codec_s", "staging_s", "wire_s", "wait_s", "bytes_sent", "bytes_received",
                )
            }  # fmt: skip
            request.parts[part.device] = replace(before, work=max(before.work, part.work), **summed)

    # Failing

    def _take_fault(self, frame: Frame) -> None:
        message, cause = frame.info.get("message", "no reason given"), frame.info.get("cause")
        if cause == "input":
            micro = self._begun.get(frame.block) or next(iter(self._begun.values()), None)
            if micro is not None:
                self._refuse(micro.request, InputError(str(message)))
            return
        blamed = frame.info.get("blamed")
        ranks = {rank for rank in blamed if rank in range(1, self._transport.num_devices)} if blamed else set()
        kind = PeerTimeout if cause == "timeout" else PeerFault
        self._fail(kind(f"{message} (said device {frame.sender})", tuple(ranks or {frame.sender})))

    def _refuse(self, request: _Request, error: BaseException) -> None:
        """Ends one request; the others go on."""
        self._waiting = deque(micro for micro in self._waiting if micro.request is not request)
        for number in [number for number, micro in self._begun.items() if micro.request is request]:
            del self._begun[number]
        if request.answer is None:
            request.error = error
        else:
            self._queue.finish(request.answer, error)

    def _fail(self, exc: PeerError) -> None:
        """Begins everything under way anew, in its order, on stages of those that are left."""
        used = [stage.device for stage in self._stages]
        failures = self._members.recover(exc, used)
        micros = [*self._begun.values(), *self._waiting]
        self._begun.clear()
        self._inbox.clear()
        self._outbox.clear()
        self._stream, self._is_computing = 0, False
        try:
            stages = self._over(used)
        except EdgeprismError as error:
            self._waiting = deque(micros)
            for request in self._requests():
                self._refuse(request, error)
            return
        self._stages = stages
        for micro in micros:
            micro.number = None
            if micro.text is not None:  # what stages kept of it is gone
                micro.inputs, micro.num_tokens = micro.text.prompt(), micro.text.num_tokens
        for request in dict.fromkeys(micro.request for micro in micros):
            request.failures += failures
            request.plan = Plan.pipeline(
                stages, self._transport.num_devices, request.plan.codec, micro_batch=request.plan.micro_batch
            )
        self._waiting = deque(micros)

    def _requests(self) -> list[_Request]:
        return list(dict.fromkeys(micro.request for micro in (*self._begun.values(), *self._waiting)))

    # Waiting

    def _late_at_s(self) -> float:
        oldest = next(iter(self._begun.values()))
        return max(oldest.given_s, self._last_done_s) + self._timeout_s(oldest)

    def _timeout_s(self, micro: _Micro) -> float:
        """How long until the next output: at first everything lies before it."""
        speeds = [self._members.macs_per_s.get(stage.device, 0.0) for stage in self._stages]
        slowest = min((speed for speed in speeds if speed), default=self._members.macs_per_s[COORDINATOR])
        macs = micro.batch * whole_model_macs(self._model.spec, micro.num_tokens)
        rows_bytes = micro.batch * micro.num_tokens * self._model.spec.hidden_size * self._model.dtype.itemsize
        timeout_s = self._patience.timeout_s(
            self._kind(micro), of=self._stages, compute_s=macs / slowest, num_bytes=len(self._stages) * rows_bytes
        )
        return min(timeout_s, MAX_TIMEOUT_S)

    def _kind(self, micro: _Micro) -> Hashable:
        return ("pipeline", self._stages, micro.batch, micro.num_tokens, micro.text is not None)


def _as_json(trace: DeviceTrace) -> dict[str, Any]:
    return {name: getattr(trace, name) for name in trace.__slots__}


def _trace_of(document: object, frame: Frame) -> DeviceTrace:
    try:
        values = dict(document)  # type: ignore[call-overload]
        if not all(isinstance(value, int | float) and 0 <= value < 1e18 for value in values.values()):
            raise ValueError("its values must be numbers")
        return DeviceTrace(**values)
    except (TypeError, ValueError) as exc:
        raise PeerFault(f"device {frame.sender} sent traces that cannot be read: {exc}", (frame.sender,)) from exc
