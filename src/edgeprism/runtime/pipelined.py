"""Requests under plan `pipeline`: their micro-batches go through the stages one behind the other, many at once.

Device 0 has the inputs and wants the outputs; it may have a stage (``own_stage``). When a device fails, everything that
is under way begins anew on stages for those that are left (``restage``): inputs are kept until their outputs are here,
so nothing is lost, and what comes of the old stages no longer counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace

from torch import Tensor
from transformers.utils import ModelOutput

from edgeprism.errors import EdgeprismError, FrameError, InputError, PeerError, PeerFault, PeerTimeout
from edgeprism.models.model import Model, only
from edgeprism.runtime.answers import Answer, RequestQueue
from edgeprism.runtime.job import WORKERS_PART, Results, as_computed, as_sent
from edgeprism.runtime.lateness import Lateness
from edgeprism.runtime.membership import Membership
from edgeprism.runtime.messages import Handover
from edgeprism.runtime.micro_batch import Micro, Request
from edgeprism.runtime.own_stage import Given, Made, OwnStage
from edgeprism.runtime.patience import Patience
from edgeprism.runtime.restage import Restaging
from edgeprism.runtime.stage import Credits, Done
from edgeprism.runtime.text import Text
from edgeprism.runtime.trace import DeviceTrace, Trace, traces_of
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan, Stage
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.pipeline.partition import TEXTS_A_STAGE
from edgeprism.strategies.replica.forward import batch_of, merge, samples_of
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import Frame, Kind
from edgeprism.wire.transport import COORDINATOR, Transport

MAX_FRUITLESS = 8
"""Failures one after the other without any output; then requests are refused, for nobody should wait for ever."""


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
        self._transport, self._model, self._members = transport, model, members
        self._lateness = Lateness(model, members, patience)
        self._queue, self._numbers = queue, numbers
        self._staging, self._credits = Staging(model.device), Credits()
        self._own = OwnStage(model, cores, transport.wake)
        self.stages = Restaging(model, members, transport)
        self._now: tuple[Stage, ...] = ()  # the stages of what is under way
        self._stream, self._num_micros = 0, 0
        self._waiting: deque[Micro] = deque()
        self._begun: dict[int, Micro] = {}  # by number, in the order in which they went in
        self._ended: list[int] = []  # numbers of texts that stages need keep no more
        self._outbox: deque[tuple[int, Done, DeviceTrace]] = deque()
        self._held_since_s: float | None = None  # the next stage has no room for what is ready
        self._num_losses: dict[int, int] = {}
        self._num_fruitless = 0  # failures since the last output

    @property
    def num_in_hand(self) -> int:
        """Micro-batches that are not done."""
        return len(self._waiting) + len(self._begun)

    @property
    def _oldest(self) -> Micro:
        """Of what is under way; there is something."""
        return next(iter(self._begun.values()))

    def holds(self, frame: Frame) -> bool:
        """Whether a frame is of what is under way here, or was."""
        return frame.kind in (Kind.HANDOVER, Kind.CREDIT) or (frame.request == self._stream and self._stream > 0)

    @property
    def patience_s(self) -> float:
        """Seconds until the micro-batch that went in first is late."""
        if not self._begun:
            return 1.0
        return max(0.0, self._lateness.at_s(self._oldest, self._now) - time.monotonic())

    def forget_texts(self) -> None:
        """What this device keeps of them is freed."""
        self._own.forget_texts()

    def offer(self, answer: Answer) -> bool:
        """Takes a request in; False while others wait for the first stage, or stages have to change."""
        if self._waiting:
            return False
        inputs = as_computed(only(answer._inputs, *self._model.input_names), self._model.dtype)
        batch, num_tokens = batch_of(inputs), self._model.num_tokens(inputs)
        if batch < 1:
            raise InputError("a request has at least one sample, and this one has none")
        self._model.spec.check_num_tokens(num_tokens)
        found = self.stages.plan(answer._plan, answer._codec, is_running=self.num_in_hand > 0)
        if found is None or (self.num_in_hand and found[0].stages != self._now):
            return False
        plan, left_out = found
        size = min(plan.micro_batch, batch)
        self._lateness.check_size(plan, size, num_tokens)
        self._now = plan.stages
        answer._began_s = time.monotonic()
        starts = range(0, batch, size)
        request = Request(
            answer=answer, plan=plan, batch=batch, num_tokens=num_tokens, left_out=left_out,
            outputs=[None] * len(starts), asked=_stages_of(answer._plan),
        )  # fmt: skip
        for index, start in enumerate(starts):
            stop = min(start + size, batch)
            part = samples_of(inputs, start, stop, batch) if batch > 1 else inputs
            self._waiting.append(
                Micro(request=request, index=index, inputs=part, batch=stop - start, num_tokens=num_tokens)
            )
        self._go_on()
        return True

    def take(self, frame: Frame) -> None:
        """What a device sends; nothing of another stream or epoch counts."""
        if (frame.epoch, frame.request) != (self._members.epoch, self._stream):
            if frame.kind is Kind.HANDOVER and frame.epoch == self._members.epoch:  # its sender must not wait for ever
                with suppress(PeerError):
                    self._transport.send(frame.sender, Kind.CREDIT, epoch=frame.epoch, request=frame.request)
            return
        try:
            if frame.kind is Kind.CREDIT:
                self._credits.take(frame)
            elif frame.kind is Kind.HANDOVER:
                self._take_handover(frame)
            elif frame.kind is Kind.RESULT:
                self._take_result(frame)
            elif frame.kind is Kind.FAULT:
                self._take_fault(frame)
        except (FrameError, PeerFault) as exc:
            self._fail(PeerFault(f"device {frame.sender} sent what cannot be used: {exc}", (frame.sender,)))
        self._go_on()

    def collect(self) -> None:
        """Takes in what was computed here, and gives up devices that are gone or late."""
        for made in self._own.results():
            self._take_own(made)
        if self._begun:
            lost, used = self._transport.lost(), {stage.device for stage in self._now} - {COORDINATOR}
            gone = {
                device: lost.get(device, "its connection was lost for a moment")
                for device in used
                if device in lost or self._transport.num_losses[device] != self._num_losses.get(device, 0)
            }
            if gone:
                text = "; ".join(f"device {device}: {why}" for device, why in gone.items())
                self._fail(PeerFault(text, tuple(gone)))
            elif time.monotonic() > self._lateness.at_s(self._oldest, self._now):
                # nobody is to blame: who does not answer the next epoch is left out
                self._lateness.learn_timeout(self._oldest, self._now)
                self._fail(PeerTimeout(f"no output of the {len(self._now)} stages before the deadline", ()))
        self._go_on()

    def close(self, why: InputError) -> None:
        """Ends them, and tells those who wait."""
        self._own.close()
        for request in self._requests():
            self._refuse(request, why)

    def generate(self, texts: Sequence[Text], plan: str | Plan, codec: CodecSpec, check: Callable[[], None]) -> Trace:
        """Continues texts, all at once, so that no stage waits while another has one; returns when all have ended.
        ``check`` is called now and then, and may raise. The trace names devices that failed: what they had of a text is
        computed anew."""
        began_s = time.monotonic()
        while (found := self.stages.plan(plan, codec, is_running=False)) is None:  # devices load their stages
            check()
            self._transport.watch(0.1)
        self._now = found[0].stages
        prompts = [text.prompt() for text in texts]
        for text in texts:
            self._lateness.check_size(found[0], text.ids.shape[0], text.num_tokens, is_text=True)
        request = Request(
            answer=None, plan=found[0], batch=sum(text.ids.shape[0] for text in texts),
            num_tokens=texts[0].ids.shape[1], left_out=found[1], outputs=[None] * len(texts),
            asked=_stages_of(plan),
        )  # fmt: skip
        for index, (text, inputs) in enumerate(zip(texts, prompts, strict=True)):
            size = text.ids.shape[0]
            request.later.append(
                Micro(request=request, index=index, inputs=inputs, batch=size, num_tokens=text.num_tokens, text=text)
            )
        self._waiting.extend(self._next_texts(request, TEXTS_A_STAGE * len(found[0].stages)))
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
            self._leave_stream()
            raise
        self._members.end_texts([stage.device for stage in self._now])
        self._own.forget_texts()
        if request.error is not None:
            raise request.error
        return self._trace(request, began_s, 0.0)

    # Going on

    def _go_on(self) -> None:
        """Whatever can be done now: begin micro-batches, compute, hand on."""
        try:
            while self._waiting and self._begin_one():
                pass
            self._hand_all_on()
            if not self._outbox:
                begun = self._own.begin(lambda order: self._credits.widths.choose(order.codecs))
                if begun is not None and isinstance(begun[0].what, Frame):
                    self._transport.send(
                        begun[0].what.sender, Kind.CREDIT, epoch=self._members.epoch, request=self._stream,
                        meta={"idle_s": begun[1], "busy_s": begun[2]},
                    )  # fmt: skip
        except PeerError as exc:
            self._fail(exc)

    def _hand_all_on(self) -> None:
        """As far as the next stage has room."""
        had_some = bool(self._outbox)
        while self._outbox:
            number, done, trace = self._outbox[0]
            if not self._hand_on(number, done, trace):
                return
            if self._outbox and self._outbox[0][0] == number:  # else its request was refused
                self._outbox.popleft()
        if had_some:
            self._own.is_free()

    def _begin_one(self) -> bool:
        """Gives the next micro-batch to the first stage, if that has room."""
        if not self._begun and all(micro.number is None for micro in self._waiting):
            self._enter_stream()
        micro, stages = self._waiting[0], self._now
        first = stages[0].device
        if not (self._own.has_room if first == COORDINATOR else self._credits.has(first)):
            return False
        self._waiting.popleft()
        micro.given_s = time.monotonic()
        if micro.number is None:
            micro.number, self._num_micros = self._num_micros, self._num_micros + 1
        self._begun[micro.number] = micro
        order = self._order(micro, stages)
        try:
            if first == COORDINATOR:
                self._own.give(Given(number=micro.number, order=order, what=micro.inputs))
                return True
            order, tensors = as_sent(order, {name: micro.inputs[name].cpu() for name in order.tensors})
            buffers = self._staging.to_wire(tensors, Meter())
            num_bytes = self._transport.send(
                first, Kind.HANDOVER, epoch=self._members.epoch, request=self._stream, block=micro.number,
                meta=order.to_json(), buffers=buffers,
            )  # fmt: skip
            self._credits.spend(first)
            micro.request.note([DeviceTrace.of_sender(COORDINATOR, num_bytes)])
        except PeerError:
            raise
        except FrameError as exc:  # too large to travel
            self._refuse(micro.request, InputError(f"{exc}; use a smaller micro-batch"))
        except Exception as exc:  # what cannot be laid out is that request's own trouble
            self._refuse(micro.request, exc)
        return True

    def _order(self, micro: Micro, stages: tuple[Stage, ...]) -> Handover:
        names = tuple(name for name, value in micro.inputs.items() if isinstance(value, Tensor))
        options = tuple((name, bool(v)) for name, v in micro.inputs.items() if v is not None and name not in names)
        plan, text = micro.request.plan, micro.text
        timeout_s = self._lateness.until_output_s(self._begun.values(), stages)
        ended, self._ended = tuple(self._ended), []
        return Handover(
            stages=stages, index=0, codec=plan.codec, codecs=plan.codecs, batch=micro.batch,
            num_tokens=micro.num_tokens, timeout_s=WORKERS_PART * timeout_s, tensors=names, options=options,
            reads=None if text is None else text.reads, room=0 if text is None else text.room, ended=ended,
        )  # fmt: skip

    def _enter_stream(self) -> None:
        self._stream, self._num_micros, self._ended = next(self._numbers), 0, []
        self._lateness.begin()
        self._credits.enter(self._members.epoch, self._stream)
        self._own.enter(self._members.epoch, self._stream)
        self._outbox.clear()
        self._held_since_s = None
        self._num_losses = dict(self._transport.num_losses)

    def _leave_stream(self) -> None:
        self._stream = 0
        self._own.enter(self._members.epoch, 0)
        self._outbox.clear()

    def _take_own(self, made: Made) -> None:
        number, sender = made.given.number, made.given.what
        if number not in self._begun:
            return
        if made.done is not None and made.trace is not None:
            self._outbox.append((number, made.done, made.trace))
        elif isinstance(made.error, FrameError) and isinstance(sender, Frame):
            text = f"device {sender.sender} sent what cannot be used: {made.error}"
            self._fail(PeerFault(text, (sender.sender,)))
        else:
            assert made.error is not None
            self._refuse(self._begun[number].request, made.error)

    def _hand_on(self, number: int, done: Done, trace: DeviceTrace) -> bool:
        """To the next stage, if that has room; what the last one gives is the output."""
        order, micro = done.order, self._begun.get(number)
        if micro is None:
            return True
        if done.names:
            micro.request.note([*traces_of(order.traces, self._now), trace])
            self._finish(number, Results(names=done.names, tensors=done.tensors).named())
            return True
        receiver = order.stage.device  # the order is the next stage's by now
        if not self._credits.has(receiver):
            self._held_since_s = self._held_since_s or time.monotonic()
            return False
        if self._held_since_s is not None:
            self._credits.widths.waited(time.monotonic() - self._held_since_s)
            self._held_since_s = None
        try:
            meter = Meter()
            buffers = self._staging.to_wire([tensor.contiguous() for tensor in done.tensors], meter)
            num_bytes = sum(buffer.data.nbytes for buffer in buffers)
            sent = replace(trace, staging_s=trace.staging_s + meter.staging_s, bytes_sent=num_bytes)
            meta = replace(order, traces=(*order.traces, asdict(sent))).to_json()
            self._transport.send(
                receiver, Kind.HANDOVER, epoch=self._members.epoch, request=self._stream, block=number, meta=meta,
                buffers=buffers,
            )  # fmt: skip
            self._credits.spend(receiver)
        except FrameError as exc:
            self._refuse(micro.request, InputError(f"{exc}; use a smaller micro-batch"))
        return True

    # What devices send

    def _take_handover(self, frame: Frame) -> None:
        """From the stage before this device's; anything else is refused."""
        order = Handover.from_json(frame.info)
        index = order.index
        if order.stages != self._now or not index or order.stage.device != COORDINATOR:
            raise FrameError(f"a handover for stage {index} of {len(order.stages)} came here")
        if order.stages[index - 1].device != frame.sender or not self._own.has_room:
            raise FrameError("a handover came from another stage than the one before, or one too many")
        traces_of(order.traces, self._now)
        if frame.block in self._begun:
            self._own.give(Given(number=frame.block, order=order, what=frame))
        else:  # of a request that was refused meanwhile
            self._transport.send(frame.sender, Kind.CREDIT, epoch=self._members.epoch, request=self._stream)

    def _take_result(self, frame: Frame) -> None:
        micro = self._begun.get(frame.block)
        if frame.sender != self._now[-1].device:
            raise PeerFault("it does not have the last stage", (frame.sender,))
        if micro is None:
            return
        found = Results.of_samples(frame, self._staging, micro.batch).named()
        micro.request.note(traces_of(frame.info.get("traces"), self._now))
        self._finish(frame.block, found)

    def _take_fault(self, frame: Frame) -> None:
        message, cause = frame.info.get("message", "no reason given"), frame.info.get("cause")
        if cause == "input":
            micro = self._begun.get(frame.block)
            if micro is not None:
                self._refuse(micro.request, InputError(str(message)))
            return
        blamed = frame.info.get("blamed")
        named = blamed if isinstance(blamed, list) and blamed else [frame.sender]
        ranks = {rank for rank in named if rank in range(1, self._transport.num_devices)}
        if cause == "timeout":  # who waited in vain cannot tell who in front of it is slow
            if self._begun:
                self._lateness.learn_timeout(self._oldest, self._now)
            self._fail(PeerTimeout(f"{message} (said device {frame.sender})", ()))
        else:
            self._fail(PeerFault(f"{message} (said device {frame.sender})", tuple(ranks)))

    def _finish(self, number: int, output: dict[str, Tensor]) -> None:
        micro = self._begun.pop(number)
        self._lateness.learn(micro, self._now)
        self._num_fruitless = 0
        request = micro.request
        if micro.text is not None:
            self._continue(micro, micro.text, output)
            return
        request.outputs[micro.index] = output
        outputs = [one for one in request.outputs if one is not None]
        if len(outputs) < len(request.outputs):
            return
        try:
            merged = merge(outputs, self._model.output)
        except PeerFault as exc:
            self._refuse(request, exc)
            return
        self._answer(request, merged)

    def _continue(self, micro: Micro, text: Text, output: dict[str, Tensor]) -> None:
        """Takes the next token of a text, and has the one after it computed."""
        ids = output.get("ids")
        if ids is None or ids.shape != (micro.batch,):
            self._refuse(micro.request, PeerFault("the last stage gave something else than a token a text"))
        elif text.take(ids):
            micro.inputs, micro.num_tokens = text.next_inputs(), 1
            self._waiting.append(micro)
        else:
            micro.request.outputs[micro.index] = {}
            assert micro.number is not None
            self._ended.append(micro.number)
            self._waiting.extend(self._next_texts(micro.request, 1))

    @staticmethod
    def _next_texts(request: Request, count: int) -> list[Micro]:
        """So many that have not begun, where there are any."""
        return [request.later.popleft() for _ in range(min(count, len(request.later)))]

    def _answer(self, request: Request, output: ModelOutput) -> None:
        answer = request.answer
        assert answer is not None and answer._began_s is not None
        trace = self._trace(request, answer._began_s, answer._began_s - answer._submitted_s)
        answer.trace = replace(trace, note="; ".join(filter(None, (answer._note, trace.note))))
        self._queue.finish(answer, output)

    def _trace(self, request: Request, began_s: float, queued_s: float) -> Trace:
        parts = tuple(request.parts[device] for device in sorted(request.parts))
        are_others = request.asked and request.plan.stages != request.asked
        stages = ",".join(map(str, request.plan.stages))
        return Trace(
            note=f"stages were {stages}, not those of the plan" if are_others else "",
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

    # Failing

    def _refuse(self, request: Request, error: BaseException) -> None:
        """Ends one request; the others go on."""
        self._waiting = deque(micro for micro in self._waiting if micro.request is not request)
        numbers = {number for number, micro in self._begun.items() if micro.request is request}
        for number in numbers:
            del self._begun[number]
        for sender in self._own.drop(numbers):
            with suppress(PeerError):  # it is gone, which is noticed elsewhere
                self._transport.send(sender, Kind.CREDIT, epoch=self._members.epoch, request=self._stream)
        self._outbox = deque(one for one in self._outbox if one[0] not in numbers)
        if request.answer is None:
            request.error = error
        else:
            self._queue.finish(request.answer, error)

    def _fail(self, exc: PeerError) -> None:
        """Begins everything under way anew, in its order, on stages of those that are left."""
        micros = sorted({*self._begun.values(), *self._waiting}, key=self._place)
        self._begun.clear()
        self._waiting = deque(micros)
        self._leave_stream()
        self._num_fruitless += 1
        if self._num_fruitless > MAX_FRUITLESS:
            self._num_fruitless = 0
            for request in self._requests():
                self._refuse(request, type(exc)(f"{exc}; {MAX_FRUITLESS} attempts gave no output", exc.peers))
            return
        try:
            failures = self._members.recover(exc, [stage.device for stage in self._now])
            for request in self._requests():
                request.failures += failures
            stages = self.stages.after_failure(self._now)
        except Exception as error:  # whatever it is, nobody must wait for ever
            text = error if not isinstance(error, EdgeprismError) else PeerFault(f"{exc}; {error}", exc.peers)
            for request in self._requests():
                self._refuse(request, text)
            return
        self._now = stages
        for micro in micros:
            micro.number = None
            if micro.text is not None:  # what stages kept of it is gone
                micro.inputs, micro.num_tokens = micro.text.prompt(), micro.text.num_tokens
        for request in self._requests():
            plan = request.plan
            request.plan = Plan.pipeline(
                stages, self._transport.num_devices, plan.codec, micro_batch=plan.micro_batch, narrowest=plan.narrowest
            )
        for micro in micros:
            request = micro.request
            try:  # cut elsewhere, more may travel at once; and texts have become longer
                self._lateness.check_size(
                    request.plan, micro.batch, micro.num_tokens, is_text=micro.text is not None
                )  # fmt: skip
            except InputError as error:
                self._refuse(request, error)

    def _place(self, micro: Micro) -> tuple[float, float, int]:
        """In the order in which requests came, and their micro-batches."""
        answer = micro.request.answer
        return 0.0 if answer is None else answer._submitted_s, float(id(micro.request)), micro.index

    def _requests(self) -> list[Request]:
        return list(dict.fromkeys(micro.request for micro in (*self._begun.values(), *self._waiting)))


def _stages_of(plan: str | Plan) -> tuple[Stage, ...]:
    """Those that were asked for; none where the strategy alone was."""
    return plan.stages if isinstance(plan, Plan) else ()
