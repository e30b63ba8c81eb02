"""A worker: one thread that owns its transport, waits for orders and computes its part of each request.

[Note: one thread a device] Each device's work is done by the thread that owns its sockets; libzmq's I/O thread moves
bytes meanwhile. There is nothing to lock, and a wait always ends: with the data, at its deadline, or because the
coordinator announced a newer epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from edgeprism.codecs.calibration import Calibration
from edgeprism.errors import EdgeprismError, FrameError, InputError, PeerError, PeerLost, PeerTimeout, RequestAborted
from edgeprism.models.model import Model
from edgeprism.runtime.accelerator import block_rows
from edgeprism.runtime.calibrations import ready_for, tables_received
from edgeprism.runtime.heap import give_back
from edgeprism.runtime.job import JobRun, as_received
from edgeprism.runtime.messages import Introduction, Job, LoadOrder
from edgeprism.runtime.probe import serve_probe, versions
from edgeprism.runtime.speed import measure_speed
from edgeprism.runtime.stage import WorkerStages
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.pipeline.partition import num_pieces, stage_weight_bytes
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import Frame, Kind
from edgeprism.wire.transport import COORDINATOR, Transport
from edgeprism.wire.zmq import ZmqTransport

log = logging.getLogger(__name__)

CHECK_S = 0.5  # how often an idle worker looks whether it should end
CHUNK_TIMEOUT_S = 60.0  # a coordinator answers between its requests
FORGET_S = 5.0  # a coordinator that has been away for so long is gone: what it had loaded is freed


class Fetch:
    """Asks the coordinator of one LOAD frame for weights. RequestAborted or PeerError when it is gone."""

    def __init__(self, transport: Transport, order: Frame, ends: Callable[[], bool]) -> None:
        self._transport, self._order, self._ends = transport, order, ends

    def ask(self, question: Mapping[str, Any]) -> None:
        """Send a FETCH frame."""
        self._transport.send(
            COORDINATOR, Kind.FETCH, epoch=self._order.epoch, request=self._order.request, meta=question
        )

    def next_chunk(self) -> Frame:
        """The answer to the oldest question that has none yet."""
        deadline = time.monotonic() + CHUNK_TIMEOUT_S
        epoch, request = self._order.epoch, self._order.request
        while True:
            if self._ends():
                raise RequestAborted("this worker was told to end")
            look_s = min(deadline, time.monotonic() + CHECK_S)
            try:
                frames = self._transport.wait_control(
                    (Kind.CHUNK,), (COORDINATOR,), look_s, epoch=epoch, request=request
                )
                return frames[COORDINATOR]
            except PeerTimeout:
                if look_s == deadline:
                    raise


class Worker:
    """Serves a coordinator. ``load`` turns an order into a model; it may have the weights sent, by ``fetch``.

    ``ends`` is asked twice a second, and between requests, whether to end. A worker that ``stays`` frees everything
    when its coordinator says CLOSE or has been away for some seconds, and waits for the next; any other ends then.
    """

    def __init__(
        self,
        transport: Transport,
        load: Callable[[LoadOrder, Fetch], Model],
        *,
        ends: Callable[[], bool] = lambda: False,
        stays: bool = False,
        computes_on: str = "",
    ) -> None:
        self._transport, self._load, self._ends, self._stays = transport, load, ends, stays
        self._lost_at: float | None = None
        self._num_losses = 0
        self._model: Model | None = None
        self._staging: Staging | None = None
        self._calibrations: dict[str, Calibration] = {}
        self._stages = WorkerStages(transport)
        self._order_number: int | None = None  # of the order by which the model was loaded
        transport.forgets_with_coordinator = stays
        serve_probe(
            transport, lambda: computes_on if self._model is None else self._model.device.type, self._model_bytes
        )  # fmt: skip

    def serve(self) -> None:
        """Runs until the end; everything that goes wrong with a request is reported, not raised."""
        while not (self._transport.is_orphan or self._ends()):
            frame = self._transport.receive(CHECK_S)
            self._watch_coordinator()
            if frame is not None and frame.kind is Kind.CLOSE:
                if not self._stays:
                    return
                self._forget("the coordinator has ended")
                self._transport.forget()
            elif frame is not None:
                self._handle(frame)

    def _model_bytes(self) -> int:
        """What would be free besides, if the model that is held here were another one: weights by their count."""
        if self._model is None:
            return 0
        spec = self._model.spec
        start, stop = self._model.held or (0, num_pieces(spec))
        return stage_weight_bytes(spec, start, stop, self._model.dtype.itemsize)

    def _watch_coordinator(self) -> None:
        """What a coordinator had loaded is freed some seconds after it was lost, unless it has come back; that another
        one is connected is no reason to keep it."""
        num_losses = self._transport.num_losses[COORDINATOR]
        if num_losses != self._num_losses:
            self._num_losses, self._lost_at = num_losses, time.monotonic()
        if self._lost_at is None or not self._stays or time.monotonic() - self._lost_at <= FORGET_S:
            return
        self._lost_at = None
        if self._model is not None:
            self._forget("the coordinator is gone")

    def _forget(self, why: str) -> None:
        log.info("%s: what it had loaded is freed, and this worker waits for the next one", why)
        self._model = self._staging = self._order_number = None
        self._calibrations = {}
        self._stages.forget_texts()
        give_back()

    def _handle(self, frame: Frame) -> None:
        if frame.kind is Kind.EPOCH:
            self._enter(frame)
            return
        if frame.epoch != self._transport.epoch:
            return
        actions = {
            Kind.LOAD: self._take_model,
            Kind.REQUEST: self._take_request,
            Kind.HANDOVER: self._take_handover,
            Kind.CREDIT: self._stages.take_credit,
        }
        action = actions.get(frame.kind)
        if action is None:
            log.warning("device %d sent %s, which is not for a worker", frame.sender, frame.kind.name)
            return
        try:
            action(frame)
        except RequestAborted:
            log.info("request %d was given up", frame.request)
        except Exception as exc:  # whatever it is, the coordinator has to know, and this worker lives on
            log.warning("request %d failed here: %s", frame.request, exc, exc_info=not isinstance(exc, EdgeprismError))
            self._report(frame, exc)

    def _enter(self, frame: Frame) -> None:
        """Drops all older work, and takes the place that the coordinator says."""
        epoch = frame.epoch
        if "introduction" in frame.info and isinstance(self._transport, ZmqTransport):
            try:
                known = Introduction.from_json(frame.info["introduction"])
                self._transport.introduce(known.rank, known.peers)
            except (FrameError, InputError) as exc:
                log.warning("the coordinator's introduction cannot be used: %s", exc)
                return
        if epoch > self._transport.epoch or frame.info.get("texts_ended"):
            self._stages.forget_texts()
        self._transport.epoch = max(self._transport.epoch, epoch)
        if self._order_number is not None and frame.info.get("order") == self._order_number:
            self._lost_at = None  # it has come back
        try:
            meta = {"links": sorted(self._transport.connected()), "holds": self._order_number}
            self._transport.send(COORDINATOR, Kind.READY, epoch=epoch, meta=meta)
        except PeerError as exc:
            log.info("the coordinator gets no answer, and will ask once more: %s", exc)

    def _report(self, frame: Frame, exc: Exception) -> None:
        blamed = list(exc.peers) if isinstance(exc, PeerError) else []
        if frame.kind is Kind.HANDOVER and isinstance(exc, FrameError):
            blamed = [frame.sender]  # it sent what cannot be used
        text = str(exc) if isinstance(exc, EdgeprismError) else f"{type(exc).__name__}: {exc}"
        causes = {PeerTimeout: "timeout", PeerLost: "lost", InputError: "input"}
        cause = next((name for kind, name in causes.items() if isinstance(exc, kind)), "")
        if frame.kind is Kind.LOAD:
            cause = ""  # files that cannot be used are this worker's own trouble
        if frame.kind is Kind.HANDOVER and isinstance(exc, MemoryError | torch.OutOfMemoryError):
            cause, text = "input", f"this micro-batch needs more memory than device {self._transport.rank} has: {text}"
        meta = {"message": text[:2000], "blamed": blamed, "cause": cause}
        try:
            self._transport.send(
                COORDINATOR, Kind.FAULT, epoch=frame.epoch, request=frame.request, block=frame.block, meta=meta
            )
        except PeerError:
            log.warning("the coordinator cannot be told: it is gone")

    def _take_model(self, frame: Frame) -> None:
        if self._model is None or self._order_number != frame.request:
            self._load_model(frame)
        assert self._model is not None and self._staging is not None
        self._lost_at = None
        meta = {"macs_per_s": measure_speed(self._model), "versions": versions()}
        rows = self._staging.to_wire([block_rows(self._model).to(self._model.device)], Meter())
        self._transport.send(
            COORDINATOR, Kind.LOADED, epoch=frame.epoch, request=frame.request, meta=meta, buffers=rows
        )

    def _load_model(self, frame: Frame) -> None:
        self._model, self._order_number, self._calibrations = None, None, {}
        self._stages.forget_texts()
        give_back()  # before the new one comes; or what is left of one that did not
        self._model = self._load(LoadOrder.from_json(frame.info), Fetch(self._transport, frame, self._ends))
        self._staging = Staging(self._model.device)
        tables = tables_received(frame.info.get("calibrations", []), self._staging.from_wire(frame, Meter()))
        self._calibrations = ready_for(self._model.spec, tables, self._model.device)
        self._order_number = frame.request

    def _take_request(self, frame: Frame) -> None:
        if self._model is None or self._staging is None:
            raise FrameError("a request came before a model")
        job = Job.from_json(frame.info)
        self._transport.take_stats()
        part = JobRun(
            self._model, job, self._transport, self._staging, epoch=frame.epoch, request=frame.request,
            calibrations=self._calibrations,
        )  # fmt: skip
        tensors = as_received(job, self._staging.from_wire(frame, part.meter))
        results = part.run(tensors, self._emit(frame, part)).in_pieces(self._transport.limits.max_array_bytes)
        self._transport.check_epoch(frame.epoch)
        buffers = self._staging.to_wire([tensor.contiguous() for tensor in results.tensors], part.meter)
        meta = {"trace": asdict(part.trace()), "names": list(results.names)}
        self._transport.send(
            COORDINATOR, Kind.RESULT, epoch=frame.epoch, request=frame.request, meta=meta, buffers=buffers
        )

    def _take_handover(self, frame: Frame) -> None:
        if self._model is None or self._staging is None:
            raise FrameError("a micro-batch came before a model")
        self._stages.take(frame, self._model, self._staging)

    def _emit(self, frame: Frame, part: JobRun) -> Callable[[Tensor], None]:
        """Sends each new token to the coordinator, and notices when it is no longer wanted."""

        def emit(ids: Tensor) -> None:
            assert self._staging is not None
            buffers = self._staging.to_wire([ids.contiguous()], part.meter)
            self._transport.check_epoch(frame.epoch)
            self._transport.send(COORDINATOR, Kind.TOKEN, epoch=frame.epoch, request=frame.request, buffers=buffers)

        return emit
