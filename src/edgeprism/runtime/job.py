"""One device's part of one request, on the coordinator and on workers alike."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from edgeprism.codecs.calibration import Calibration
from edgeprism.codecs.levels import from_levels, to_levels
from edgeprism.errors import FrameError, PeerFault
from edgeprism.models.model import Model
from edgeprism.models.text import CausalLM
from edgeprism.runtime.messages import Handover, Job
from edgeprism.runtime.trace import DeviceTrace
from edgeprism.specs.cost import NUM_LEVELS
from edgeprism.specs.plan import MAX_DEVICES
from edgeprism.strategies.greedy import GreedyDecoder
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.replica.forward import run_samples
from edgeprism.strategies.sequence.forward import SequenceForward, Work
from edgeprism.strategies.staging import Layout, Staging
from edgeprism.wire.frame import Frame
from edgeprism.wire.transport import Transport

WORKERS_PART = 0.8  # of the coordinator's time: workers give up first, so that their word on who failed arrives
MAX_TOKENS = 2**17  # of a sample; more than any model takes
PIXELS = "pixel_values"
EVERYBODYS = ("mask", "all_positions")
"""Tensors of a `sequence` request that every device gets whole; the others are features of its own tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a job gave: the fields of an output by name, or unnamed parts of what the head reads."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of_parts(cls, frame: Frame, staging: Staging, expected: Sequence[Layout]) -> Results:
        """The parts of what the head reads that a RESULT frame holds; PeerFault unless they are as ``expected``."""
        return cls(names=(), tensors=staging.from_wire(frame, Meter(), expected))

    @classmethod
    def of_samples(cls, frame: Frame, staging: Staging, num_samples: int) -> Results:
        """The fields of an output that a RESULT frame holds, for ``num_samples`` samples each; else PeerFault."""
        names = frame.info.get("names")
        tensors = staging.from_wire(frame, Meter())
        if not isinstance(names, list) or not names or len(names) != len(tensors):
            raise PeerFault(f"device {frame.sender} sent results that do not fit their names", (frame.sender,))
        results = cls(names=tuple(map(str, names)), tensors=tensors)
        counts = Counter[str]()
        for name, tensor in zip(results.names, tensors, strict=True):
            counts[name] += tensor.shape[0] if tensor.ndim else 0
        kinds = {(name, tensor.dtype, tensor.shape[1:]) for name, tensor in zip(results.names, tensors, strict=True)}
        if set(counts.values()) != {num_samples} or len(kinds) != len(counts):  # pieces that do not fit together
            message = f"device {frame.sender} sent results for {dict(counts)} samples, and had {num_samples}"
            raise PeerFault(message, (frame.sender,))
        return results

    @staticmethod
    def trace_of(frame: Frame) -> DeviceTrace:
        """The trace that a RESULT frame holds, the frame's own bytes added to what its device sent."""
        try:
            trace = DeviceTrace.from_json(frame.info.get("trace"), device=frame.sender)
        except ValueError as exc:
            raise PeerFault(f"device {frame.sender} sent a trace that cannot be read: {exc}", (frame.sender,)) from exc
        return replace(trace, bytes_sent=trace.bytes_sent + frame.num_bytes)

    def in_pieces(self, max_bytes: int) -> Results:
        """The same with named tensors of more than ``max_bytes`` cut along their samples, so that each fits a frame."""
        pieces: list[tuple[str, Tensor]] = []
        if not self.names:
            return self
        for name, tensor in zip(self.names, self.tensors, strict=True):
            samples_a_piece = max(1, max_bytes * tensor.shape[0] // max(1, tensor.nbytes))
            pieces += [(name, piece) for piece in tensor.split(samples_a_piece)]
        return Results(names=tuple(name for name, _ in pieces), tensors=tuple(piece for _, piece in pieces))

    def named(self) -> dict[str, Tensor]:
        """The fields of an output."""
        fields: dict[str, list[Tensor]] = {}
        for name, tensor in zip(self.names, self.tensors, strict=True):
            fields.setdefault(name, []).append(tensor)
        return {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces) for name, pieces in fields.items()}


def as_computed(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The inputs of a request with pixels in the dtype that the model computes in."""
    return {
        name: value.detach().to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


_Order = TypeVar("_Order", bound=Job | Handover)


def as_sent(job: _Order, tensors: Mapping[str, Tensor]) -> tuple[_Order, list[Tensor]]:
    """An order's tensors as they travel, contiguous, and the order that says so: pictures of few levels
    (`codecs.levels`) as those, each with its table behind all tensors."""
    sent = {name: (tensor.cpu() if name == PIXELS else tensor).contiguous() for name, tensor in tensors.items()}
    tables = {}
    for name, tensor in sent.items():
        is_picture = name == PIXELS and tensor.ndim == 4
        found = to_levels(tensor) if is_picture and tensor.is_floating_point() else None
        if found is not None:
            sent[name], tables[name] = found
    order: _Order = replace(job, tensors=tuple(tensors), levels=tuple(tables))
    return order, [*sent.values(), *tables.values()]


def as_received(job: Job | Handover, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tensors of an order by name, as they were before ``as_sent``; FrameError where they are not what it says."""
    if len(job.tensors) + len(job.levels) != len(tensors) or not {*job.levels} <= {*job.tensors}:
        raise FrameError(
            f"a request names {len(job.tensors)} tensors, {len(job.levels)} with levels, and holds {len(tensors)}"
        )
    named = dict(zip(job.tensors, tensors, strict=False))
    for name, table in zip(job.levels, tensors[len(job.tensors) :], strict=True):
        numbers = named[name]
        is_right = numbers.dtype == torch.uint8 and numbers.ndim == 4 and table.is_floating_point()
        if not is_right or table.shape != (numbers.shape[1], NUM_LEVELS):
            raise FrameError(f"{name} of {list(numbers.shape)} came with a table of {list(table.shape)} levels")
        named[name] = from_levels(numbers, table)
    return named


def replica_job(
    inputs: Mapping[str, Any], devices: tuple[int, ...], bounds: tuple[tuple[int, int], ...], timeout_s: float
) -> Job:
    """The order to run whole samples: those in ``bounds`` on each device."""
    tensors = tuple(name for name, value in inputs.items() if isinstance(value, Tensor))
    options = tuple((name, bool(value)) for name, value in inputs.items() if value is not None and name not in tensors)
    return Job(kind="replica", tensors=tensors, timeout_s=timeout_s, devices=devices, bounds=bounds, options=options)


class JobRun:
    """One device's part of one request, on the coordinator and on workers alike."""

    def __init__(
        self,
        model: Model,
        job: Job,
        transport: Transport,
        staging: Staging,
        *,
        epoch: int,
        request: int,
        started_s: float | None = None,
        timeout_s: float | None = None,
        calibrations: Mapping[str, Calibration] | None = None,
    ) -> None:
        self._model, self._job, self._transport, self._staging = model, job, transport, staging
        self._epoch, self._request, self._calibrations = epoch, request, calibrations or {}
        self._started_s = time.monotonic() if started_s is None else started_s
        self._timeout_s = job.timeout_s if timeout_s is None else timeout_s
        self.meter = Meter()

    @property
    def deadline(self) -> float:
        """In seconds of time.monotonic."""
        return self._started_s + self._timeout_s

    def run(self, tensors: dict[str, Tensor], emit: Callable[[Tensor], None]) -> Results:
        """A part of what the head reads, or outputs of the own samples. ``emit`` gets tokens as they are decoded."""
        with torch.no_grad():
            if self._job.kind == "sequence":
                return Results(names=(), tensors=self._run_sequence(tensors, emit))
            output = run_samples(self._model, {**tensors, **dict(self._job.options)})
        fields = {name: value for name, value in output.items() if isinstance(value, Tensor)}
        return Results(names=tuple(fields), tensors=tuple(fields.values()))

    def _run_sequence(self, tensors: dict[str, Tensor], emit: Callable[[Tensor], None]) -> tuple[Tensor, ...]:
        job = self._job
        if job.reads is None or self._transport.rank not in job.devices or len(job.bounds) != len(job.devices):
            raise FrameError("a sequence request does not say what this device has to do")
        _check_bounds(job)
        index = job.devices.index(self._transport.rank)
        _check_place(tensors.get("place"), job.bounds[index])
        work = Work(
            devices=job.devices,
            bounds=job.bounds,
            index=index,
            codec=job.codec,
            calibration=self._calibrations.get(str(job.codec)),
            features={name: tensor for name, tensor in tensors.items() if name not in EVERYBODYS},
            mask=tensors.get("mask"),
            positions=tensors.get("all_positions"),
            reads=job.reads,
            epoch=self._epoch,
            request=self._request,
        )
        decodes = job.greedy is not None and index == len(job.devices) - 1
        forward = SequenceForward(
            self._model,
            work,
            self._transport,
            self._staging,
            deadline=self.deadline,
            meter=self.meter,
            keeps_cache=decodes,
        )
        part = forward.run()
        if not decodes:
            return part if job.greedy is None else ()
        assert isinstance(self._model, CausalLM) and job.greedy is not None
        last_position = work.features["positions"][:, -1:]
        decoder = GreedyDecoder(self._model, forward.cache, last_position, job.greedy)
        decoder.run(self._model.next_logits(part[0]), emit)
        return ()

    def trace(self) -> DeviceTrace:
        """Where the time since the start went."""
        stats, total_s = self._transport.take_stats(), time.monotonic() - self._started_s
        wire_s = stats.send_s + stats.receive_s
        counted_s = self.meter.codec_s + self.meter.staging_s + wire_s + stats.wait_s
        start, stop = self._own_bounds()
        return DeviceTrace(
            device=self._transport.rank,
            work=stop - start,
            total_s=total_s,
            compute_s=max(0.0, total_s - counted_s),
            codec_s=self.meter.codec_s,
            staging_s=self.meter.staging_s,
            wire_s=wire_s,
            wait_s=stats.wait_s,
            bytes_sent=stats.bytes_sent,
            bytes_received=stats.bytes_received,
        )

    def _own_bounds(self) -> tuple[int, int]:
        rank, job = self._transport.rank, self._job
        return job.bounds[job.devices.index(rank)] if rank in job.devices else (0, 0)


def _check_place(place: Tensor | None, bounds: tuple[int, int]) -> None:
    """FrameError unless a strip of a picture is that of the device's own tokens."""
    if place is not None and not (
        place.dtype == torch.int64 and place.shape == (5,) and tuple(place[2:4].tolist()) == bounds
    ):
        raise FrameError(f"a strip of a picture with place {place.flatten()[:5].tolist()}, for tokens {bounds}")


def _check_bounds(job: Job) -> None:
    """FrameError for bounds that no coordinator makes: memory is taken for as many tokens as they say."""
    starts, stops = [start for start, _ in job.bounds], [stop for _, stop in job.bounds]
    is_run = starts == [0, *stops[:-1]] and all(start <= stop for start, stop in job.bounds)
    if not is_run or stops[-1] > MAX_TOKENS or len(job.devices) > MAX_DEVICES:
        raise FrameError(f"bounds {job.bounds[:MAX_DEVICES]} of devices {job.devices[:MAX_DEVICES]} cannot be used")
