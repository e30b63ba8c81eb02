"""One device's stage of a pipeline, on workers and on the coordinator alike; and what a worker does with handovers.

A device hands on at most `QUEUE_LENGTH` micro-batches that the next one has not begun with: that one answers each with
a CREDIT when it begins. So nobody's memory fills up when somebody later is slow; who is early waits.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgeprism.errors import FrameError, InputError
from edgeprism.models.model import Model
from edgeprism.runtime.job import MAX_TOKENS, Results, as_received
from edgeprism.runtime.messages import Handover
from edgeprism.runtime.trace import DeviceTrace
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import PIECES_A_BLOCK
from edgeprism.strategies.kv_cache import KeyValueCache
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.pipeline.forward import (
    Flow,
    Passage,
    enter,
    enter_text,
    leave,
    next_ids,
    run,
)
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import Frame, Kind
from edgeprism.wire.transport import COORDINATOR, Transport

QUEUE_LENGTH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a stage makes of a micro-batch: tensors for the next one, or outputs by name (``names``)."""

    order: Handover
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] = ()


class StageRun:
    """One micro-batch on this device."""

    def __init__(
        self,
        model: Model,
        order: Handover,
        meter: Meter,
        cache: KeyValueCache | None = None,
        codec: CodecSpec | None = None,
    ) -> None:
        """``codec``: what the next stage is to get, by default what this one got."""
        self._model, self._order, self._meter, self._cache = model, order, meter, cache
        self._codec = codec or order.codec

    def run(self, tensors: Sequence[Tensor] | dict[str, Any]) -> Done:
        """From what came (inputs by name on the coordinator) to what goes. FrameError for what does not fit the order,
        InputError for inputs that the model cannot use."""
        order, stage = self._order, self._order.stage
        if stage.start == stage.stop and not order.is_last:  # a relay
            if isinstance(tensors, dict):
                raise InputError(f"stage {stage} only hands on, and device 0 has the inputs itself; leave it out")
            return Done(order=replace(order, index=order.index + 1), tensors=tuple(tensors))
        with torch.no_grad():
            flow = self._flow(tensors)
            flow = run(self._model, flow, stage.start, stage.stop, self._cache)
            if order.is_last and order.room:
                return Done(order=order, tensors=(next_ids(self._model, flow),), names=("ids",))
            if order.is_last:
                output = leave(self._model, flow)
                fields = {name: value for name, value in output.items() if isinstance(value, Tensor)}
                return Done(order=order, tensors=tuple(fields.values()), names=tuple(fields))
            return self._handed_on(flow)

    def _flow(self, tensors: Sequence[Tensor] | dict[str, Any]) -> Flow:
        order = self._order
        if order.stage.start == 0 and order.room:
            named = tensors if isinstance(tensors, dict) else dict(zip(order.tensors, tensors, strict=True))
            features = {name: named[name] for name in ("ids", "positions")}
            return enter_text(self._model, features, named.get("mask"), order.reads)
        if isinstance(tensors, dict):
            return enter(self._model, tensors)
        if order.stage.start == 0:
            return enter(self._model, {**as_received(order, tensors), **dict(order.options)})
        if order.reads is None or not 1 <= order.num_tokens <= MAX_TOKENS or order.batch < 1:
            raise FrameError("a handover does not say what its rows are")
        passage = self._passage(order)
        if len(tensors) != len(order.tensors) + len(passage.layout):
            raise FrameError(f"a handover of {len(order.tensors)} + {len(passage.layout)} tensors holds {len(tensors)}")
        named = dict(zip(order.tensors, tensors, strict=False))
        parts = tensors[len(order.tensors) :]
        got = tuple((part.dtype, tuple(part.shape)) for part in parts)
        if got != passage.layout:
            raise FrameError(f"a handover holds {got}, and {passage.layout} was expected")
        for name, tensor in named.items():
            if name not in ("mask", "positions") or tensor.ndim != 2 or tensor.shape[1] != order.num_tokens:
                raise FrameError(f"a handover has {name} of shape {list(tensor.shape)}")
        with self._meter.codec():
            rows, side = passage.unpack(parts)
        return Flow(
            rows=rows, side=side, mask=named.get("mask"), positions=named.get("positions"), reads=order.reads,
            num_tokens=order.num_tokens,
        )  # fmt: skip

    def _handed_on(self, flow: Flow) -> Done:
        named = {
            name: value for name, value in (("mask", flow.mask), ("positions", flow.positions)) if value is not None
        }
        order = replace(
            self._order, index=self._order.index + 1, num_tokens=flow.num_tokens, batch=flow.rows.shape[0],
            reads=flow.reads, tensors=tuple(named), levels=(), options=(), codec=self._codec,
        )  # fmt: skip
        with self._meter.codec():
            packed = self._passage(order).pack(flow)
        return Done(order=order, tensors=(*(value.contiguous() for value in named.values()), *packed))

    def _passage(self, order: Handover) -> Passage:
        assert order.reads is not None
        return Passage(
            self._model, order.codec, order.stage.start, batch=order.batch, num_tokens=order.num_tokens,
            reads=order.reads,
        )  # fmt: skip


class Caches:
    """Keys and values of the texts of one stream, by the number of their micro-batch."""

    def __init__(self) -> None:
        self._stream = (0, 0)
        self._texts: dict[int, KeyValueCache] = {}

    def of(self, epoch: int, stream: int, number: int, order: Handover) -> KeyValueCache | None:
        """The one of a handover, made with a text's prompt; None where nothing is continued. Those of an earlier
        stream, and of texts that have ended, are dropped."""
        if (epoch, stream) != self._stream:
            self._stream = epoch, stream
            self._texts.clear()
        for ended in order.ended:
            self._texts.pop(ended, None)
        if not order.room:
            return None
        if not 0 < order.room <= MAX_TOKENS:
            raise FrameError(f"a text with room for {order.room} tokens")
        if order.begins_text:
            self._texts[number] = KeyValueCache(order.room)
        if number not in self._texts:
            raise FrameError(f"a token of text {number}, whose prompt never came")
        return self._texts[number]

    def clear(self) -> None:
        """Frees them all."""
        self._texts.clear()

    def __len__(self) -> int:
        """Texts that are kept."""
        return len(self._texts)


class Widths:
    """How wide rows travel to the next stage: narrower where the link is what holds everybody up, wider again where it
    is not.

    The link it is where this device has to wait for a credit while the next one has nothing to do. Then the next one
    down is taken. After `CALM` micro-batches without that the next one up is tried, later each time.
    """

    WAITS = 0.05  # of the receiver's time
    CALM = 16

    def __init__(self) -> None:
        self._level, self._num_calm, self._needed = 0, 0, self.CALM
        self._waited_s = 0.0
        self._num_seen = 0

    def begin(self) -> None:
        """A new stream: while a pipeline fills everybody behind has nothing to do."""
        self._num_seen, self._waited_s = 0, 0.0

    def choose(self, codecs: Sequence[CodecSpec]) -> CodecSpec:
        """One of these, the widest first."""
        self._level = min(self._level, len(codecs) - 1)
        return codecs[self._level]

    def waited(self, seconds: float) -> None:
        """This device had something to send, and no credit."""
        self._waited_s += seconds

    def saw_credit(self, idle_s: float, busy_s: float) -> None:
        """The receiver had nothing to do for so long, after a micro-batch that took it so long."""
        waited_s, self._waited_s = self._waited_s, 0.0
        self._num_seen += 1
        if busy_s <= 0:
            return
        has_waited = waited_s > self.WAITS * busy_s
        is_filling = self._num_seen <= QUEUE_LENGTH + 1
        if has_waited and idle_s > self.WAITS * busy_s and not is_filling:
            self._level, self._num_calm = self._level + 1, 0
            self._num_seen = 0  # what is under way is as wide as before
        elif self._level and not (has_waited and is_filling):
            self._num_calm += 1
            if self._num_calm >= self._needed:
                self._level, self._num_calm = self._level - 1, 0
                self._needed = min(2 * self._needed, 64 * self.CALM)


class Credits:
    """How many micro-batches each receiver has that it has not begun with."""

    def __init__(self) -> None:
        self._stream = (0, 0)
        self._out: Counter[int] = Counter()
        self.widths = Widths()

    def has(self, device: int) -> bool:
        """Whether one more may be sent to it."""
        return self._out[device] < QUEUE_LENGTH

    def spend(self, device: int) -> None:
        """One was sent."""
        self._out[device] += 1

    def take(self, frame: Frame) -> None:
        """A CREDIT has come."""
        if (frame.epoch, frame.request) == self._stream and self._out[frame.sender] > 0:
            self._out[frame.sender] -= 1
            idle_s, busy_s = frame.info.get("idle_s"), frame.info.get("busy_s")
            if isinstance(idle_s, int | float) and isinstance(busy_s, int | float):
                self.widths.saw_credit(idle_s, busy_s)

    def enter(self, epoch: int, stream: int) -> None:
        """What was sent in another epoch or stream is forgotten."""
        if (epoch, stream) != self._stream:
            self._stream = epoch, stream
            self._out.clear()
            self.widths.begin()


class WorkerStages:
    """A worker's stages, one micro-batch after the other."""

    def __init__(self, transport: Transport) -> None:
        self._transport, self._credits, self._caches = transport, Credits(), Caches()
        self._free_since_s, self._busy_s = time.monotonic(), 0.0

    def take_credit(self, frame: Frame) -> None:
        """From the receiver of a handover."""
        self._credits.take(frame)

    def forget_texts(self) -> None:
        """What is kept of them is freed."""
        self._caches.clear()

    def take(self, frame: Frame, model: Model, staging: Staging) -> None:
        """Computes the stage of a HANDOVER, and hands on. PeerError where the next one takes nothing for too long."""
        order, meter, began_s = Handover.from_json(frame.info), Meter(), time.monotonic()
        transport, epoch, stream = self._transport, frame.epoch, frame.request
        self._check(order, model, frame.sender)
        self._credits.enter(epoch, stream)
        since = {"idle_s": max(0.0, began_s - self._free_since_s), "busy_s": self._busy_s}
        transport.send(frame.sender, Kind.CREDIT, epoch=epoch, request=stream, meta=since)
        transport.take_stats()
        cache = self._caches.of(epoch, stream, frame.block, order)
        codec = self._credits.widths.choose(order.codecs or (order.codec,))
        done = StageRun(model, order, meter, cache, codec).run(staging.from_wire(frame, meter))
        if order.is_last:
            results = Results(names=done.names, tensors=done.tensors).in_pieces(transport.limits.max_array_bytes)
            done = replace(done, names=results.names, tensors=results.tensors)
        buffers = staging.to_wire([tensor.contiguous() for tensor in done.tensors], meter)
        computed_s = time.monotonic() - began_s  # an accelerator is done now, not before
        receiver, deadline = order.next_device, began_s + computed_s + order.timeout_s
        self._busy_s = computed_s
        if not order.is_last:
            waits_since_s = time.monotonic()
            self._await_credit(receiver, epoch, stream, deadline)
            self._credits.widths.waited(time.monotonic() - waits_since_s)
        stats, total_s = transport.take_stats(), time.monotonic() - began_s
        wire_s = stats.send_s + stats.receive_s
        trace = DeviceTrace(
            device=transport.rank, work=order.stage.stop - order.stage.start, total_s=total_s,
            compute_s=max(0.0, total_s - meter.codec_s - meter.staging_s - wire_s - stats.wait_s),
            codec_s=meter.codec_s, staging_s=meter.staging_s, wire_s=wire_s, wait_s=stats.wait_s,
            bytes_sent=sum(buffer.data.nbytes for buffer in buffers),
            bytes_received=frame.num_bytes,
        )  # fmt: skip
        traces = (*order.traces, asdict(trace))
        transport.check_epoch(epoch)
        if order.is_last:
            meta: dict[str, Any] = {"names": list(done.names), "traces": list(traces)}
            kind, receiver = Kind.RESULT, COORDINATOR
        else:
            meta, kind = replace(done.order, traces=traces).to_json(), Kind.HANDOVER
            self._credits.spend(receiver)
        try:
            transport.send(receiver, kind, epoch=epoch, request=stream, block=frame.block, meta=meta, buffers=buffers)
        except FrameError as exc:  # nobody's failure: what was asked for does not fit a frame
            raise InputError(f"{exc}; use a smaller micro-batch") from exc
        self._free_since_s = time.monotonic()

    def _check(self, order: Handover, model: Model, sender: int) -> None:
        """FrameError unless it is for this device, from the one before, and for pieces that are held here."""
        stage, transport = order.stage, self._transport
        before = order.stages[order.index - 1].device if order.index else COORDINATOR
        if stage.device != transport.rank or sender != before:
            raise FrameError(f"a handover for device {stage.device}, from device {sender}, came here")
        if not order.is_last and not 0 <= order.next_device < transport.num_devices:
            raise FrameError(f"a handover goes on to device {order.next_device}, which there is not")
        start, stop = model.held or (0, PIECES_A_BLOCK * len(model.blocks))
        if stage.stop > stage.start and not start <= stage.start < stage.stop <= stop:
            raise FrameError(f"a handover for stage {stage}, and this device holds the pieces {start} to {stop}")

    def _await_credit(self, receiver: int, epoch: int, stream: int, deadline: float) -> None:
        while not self._credits.has(receiver):
            frames = self._transport.wait_control((Kind.CREDIT,), (receiver,), deadline, epoch=epoch, request=stream)
            self._credits.take(frames[receiver])
