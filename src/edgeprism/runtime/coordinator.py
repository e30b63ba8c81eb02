"""The coordinator, device 0: hands out a request, computes its own part and gathers the rest.

When another device fails the request is finished here alone, with the right answer (see ``membership`` for what happens
to the device).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from edgeprism.codecs.calibration import Calibration
from edgeprism.errors import PeerError, PeerFault, PeerTimeout
from edgeprism.models.model import Model, Tokens
from edgeprism.runtime.accelerator import TOLERANCES, block_rows, difference
from edgeprism.runtime.calibrations import ready_for, tables_to_send
from edgeprism.runtime.job import JobRun, Results
from edgeprism.runtime.membership import Membership
from edgeprism.runtime.messages import MAX_TIMEOUT_S, Job, LoadOrder
from edgeprism.runtime.orders import Request, TimeoutOf, sample_request, token_request
from edgeprism.runtime.patience import Patience
from edgeprism.runtime.probe import versions
from edgeprism.runtime.speed import measure_speed
from edgeprism.runtime.trace import DeviceTrace, Trace
from edgeprism.runtime.weights import WeightFiles
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.cost import Cost
from edgeprism.specs.plan import Plan
from edgeprism.strategies.greedy import GreedySettings
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.registry import load_cost
from edgeprism.strategies.replica.forward import batch_of, merge
from edgeprism.strategies.staging import Layout, Staging
from edgeprism.wire.frame import Frame, Kind
from edgeprism.wire.transport import Transport

EVERYBODY = "everybody"
NEW_SPEED_WEIGHT = 0.3  # of what a request tells about a device's speed, against what was known

Emit = Callable[[Tensor], None]


class Outcome(NamedTuple):
    """A request's output and what is known of how it ran."""

    output: ModelOutput
    trace: Trace


class Coordinator:
    """Runs requests on the devices behind ``transport``. Not for several threads at once; the engine sees to that."""

    def __init__(
        self,
        transport: Transport,
        model: Model,
        members: Membership,
        patience: Patience,
        numbers: Iterator[int],
        calibrations: Mapping[str, Calibration],
    ) -> None:
        self._transport, self._model, self._members, self._patience = transport, model, members, patience
        self._staging = Staging(model.device)
        self._tables = tables_to_send(calibrations)
        self._calibrations = ready_for(model.spec, calibrations, model.device)
        self._members.macs_per_s[0] = measure_speed(model)
        self._members.versions[0] = ", ".join(f"{name} {number}" for name, number in versions().items())
        self._members.check = self._what_is_wrong
        self._reference = block_rows(model)
        self._numbers, self._request_number = numbers, 0
        self._running: Request | None = None

    def load_workers(self, orders: LoadOrder | Mapping[int, LoadOrder], weights: WeightFiles | None = None) -> None:
        """Has every worker load the model, or the part that its own order names; those that cannot are left out, with a
        warning. ``weights`` are sent to those that lack them."""
        if self._transport.num_devices > 1:
            self._members.load(orders, weights, self._tables)

    def _what_is_wrong(self, loaded: Frame) -> str:
        try:
            (rows,) = self._staging.from_wire(loaded, Meter())
        except (PeerFault, ValueError, RuntimeError):
            return "it did not say what it computes; run the same edgeprism on both"
        off, tolerance = difference(rows.double().cpu(), self._reference), TOLERANCES[self._model.dtype]
        if rows.dtype == torch.float64 and off <= tolerance:
            return ""
        return (
            f"its first block is off by {off:.1e} of the largest value, and {self._dtype} allows {tolerance:.0e}: its "
            f"hardware or its torch ({loaded.info.get('versions')}) computes something else"
        )

    def ready(self, *, linked: bool = True) -> tuple[int, ...]:
        """The devices that a request would use now, the coordinator first; ``linked`` as in `Membership.ready`."""
        return self._members.ready(linked=linked) if self._transport.num_devices > 1 else (0,)

    def versions_of(self, trace: Trace) -> dict[int, str]:
        """What the devices of a request run."""
        return {device.device: self._members.versions.get(device.device, "") for device in trace.devices}

    def plan_of(self, plan: str | Plan, codec: CodecSpec) -> Plan:
        """The plan of the next request, with shares, for a strategy's name."""
        num_devices = self._transport.num_devices
        if isinstance(plan, Plan):
            return plan
        if plan in ("auto", "local") or num_devices == 1:
            return Plan.local()
        if plan == "sequence":
            return Plan.even("sequence", num_devices, self._model.spec.narrower(codec))
        speeds = self.speeds()
        return Plan(strategy=plan, shares=tuple(speed / sum(speeds) for speed in speeds))

    def speeds(self) -> tuple[float, ...]:
        """Multiply-accumulates per second of every device, 0 where it is unknown.

        A device within a tenth of the coordinator's speed counts as equal to it: measurements are no better than that,
        and an odd sample need not travel for nothing.
        """
        speeds, own = self._members.macs_per_s, self._members.macs_per_s[0]
        known = (speeds.get(device, 0.0) for device in range(self._transport.num_devices))
        return tuple(own if abs(speed - own) <= 0.1 * own else speed for speed in known)

    def forward(self, inputs: dict[str, Any], plan: Plan, *, patience_s: float | None = None) -> Outcome:
        """One forward pass. A device that fails is named in the trace; the output is right all the same. After
        ``patience_s`` it is run here, whatever the others do."""
        started_s, limit_s = time.monotonic(), MAX_TIMEOUT_S if patience_s is None else patience_s
        plan, left_out = self._feasible(plan)
        if plan.strategy == "local":
            return self._local(inputs, started_s, left_out=left_out)
        run = self._sequence if plan.strategy == "sequence" else self._replica
        try:
            output, trace = run(inputs, plan, started_s, limit_s)
            return Outcome(output, replace(trace, left_out=left_out))
        except PeerError as exc:
            return self._local(inputs, started_s, failures=self._recover(exc, plan), left_out=left_out)
        except BaseException:
            self._members.new_epoch()  # others may be waiting for us
            raise

    def generate(self, tokens: Tokens, plan: Plan, settings: GreedySettings, emit: Emit) -> Trace:
        """Prefill by ``plan``, then greedy decoding on the last partition's device; ``emit`` gets each step's ids.

        When a device fails, the trace's ``failures`` say so: what was emitted until then is right, and the caller goes
        on from there.
        """
        started_s = time.monotonic()
        plan, left_out = self._feasible(plan)
        request = token_request(tokens, plan, settings, self._timeout_of(plan, MAX_TIMEOUT_S))
        try:
            run = self._hand_out(request, started_s)
            if request.job.devices[0] == 0:
                run.run(request.tensors_of(0), emit)
            last = request.job.devices[-1]
            have = {} if last == 0 else {last: self._follow(request, last, emit)}
            _, traces = self._collect(request, time.monotonic() + request.timeout_s, have)
        except PeerError as exc:
            trace = self._trace(request, started_s, ())
            return replace(trace, failures=self._recover(exc, plan), left_out=left_out)
        except BaseException:
            self._members.new_epoch()
            raise
        return replace(self._trace(request, started_s, (run.trace(), *traces)), left_out=left_out)

    def _feasible(self, plan: Plan) -> tuple[Plan, tuple[str, ...]]:
        """The plan over the devices that are ready: the shares of the others go to those, in proportion. And which
        others there are, and why they are left out."""
        if plan.strategy == "local":
            return plan, ()
        linked = plan.strategy != "replica"  # whose devices send each other nothing
        ready = self.ready(linked=linked)
        shares = [share if device in ready else 0.0 for device, share in enumerate(plan.shares)]
        used = [device for device, share in enumerate(shares) if share > 0]
        # whole samples may all go to one other device; tokens are shared by several or not at all
        is_shared = len(used) > 1 or (plan.strategy == "replica" and used not in ([], [0]))
        if shares == list(plan.shares):
            return plan if is_shared else Plan.local(), ()
        absent, total = self._members.absent(linked=linked), sum(shares)
        left_out = tuple(f"device {p}: {why}" for p, why in absent.items() if p < len(shares) and plan.shares[p])
        if not is_shared:
            return Plan.local(), left_out
        return Plan(strategy=plan.strategy, shares=tuple(share / total for share in shares), codec=plan.codec), left_out

    def _recover(self, exc: PeerError, plan: Plan) -> tuple[str, ...]:
        """After a failure: the devices are told to drop the request. Says in words what happened."""
        if isinstance(exc, PeerTimeout) and self._running is not None:
            self._patience.learn_timeout(self._running.kind)
        return self._members.recover(exc, [device for device, share in enumerate(plan.shares) if share])

    def _local(
        self,
        inputs: dict[str, Any],
        started_s: float,
        *,
        failures: tuple[str, ...] = (),
        left_out: tuple[str, ...] = (),
    ) -> Outcome:
        batch = batch_of(inputs)
        job = Job(kind="replica", tensors=(), timeout_s=0.0, devices=(0,), bounds=((0, batch),))
        self._transport.take_stats()
        run = JobRun(self._model, job, self._transport, self._staging, epoch=0, request=0, started_s=started_s)
        results = run.run(inputs, _ignore)
        output = self._model.output(**results.named())
        plan, num_tokens = Plan.local(), self._model.num_tokens(inputs)
        trace = Trace(
            plan=plan, dtype=self._dtype, batch=batch, num_tokens=num_tokens, total_s=time.monotonic() - started_s,
            devices=(run.trace(),), failures=failures, left_out=left_out,
        )  # fmt: skip
        return Outcome(output, trace)

    def _sequence(self, inputs: dict[str, Any], plan: Plan, started_s: float, limit_s: float) -> Outcome:
        tokens = self._model.tokens(inputs)
        request = token_request(tokens, plan, None, self._timeout_of(plan, limit_s))
        run = self._hand_out(request, started_s)
        mine = [run.run(request.tensors_of(0), _ignore)] if request.job.devices[0] == 0 else []
        frames, traces = self._collect(request, run.deadline)
        others = [
            Results.of_parts(frames[device], self._staging, self._part_layouts(request, index))
            for index, device in enumerate(request.job.devices)
            if device != 0
        ]
        joined = tokens.reads.join([results.tensors for results in (*mine, *others)], request.job.bounds)
        output = self._model.head(joined)
        return Outcome(output, self._trace(request, started_s, (run.trace(), *traces)))

    def _replica(self, inputs: dict[str, Any], plan: Plan, started_s: float, limit_s: float) -> Outcome:
        request = sample_request(self._model, inputs, plan, self._timeout_of(plan, limit_s))
        run = self._hand_out(request, started_s)
        mine = [run.run(request.tensors_of(0), _ignore)] if request.job.devices[0] == 0 else []
        frames, traces = self._collect(request, run.deadline)
        others = [
            Results.of_samples(frames[device], self._staging, stop - start)
            for device, (start, stop) in zip(request.job.devices, request.job.bounds, strict=True)
            if device != 0
        ]
        output = merge([results.named() for results in (*mine, *others)], self._model.output)
        return Outcome(output, self._trace(request, started_s, (run.trace(), *traces)))

    def _hand_out(self, request: Request, started_s: float) -> JobRun:
        """Sends every other device its part; returns our own, not begun yet."""
        self._request_number = next(self._numbers)
        self._transport.take_stats()
        epoch, number, job = self._members.epoch, self._request_number, request.job
        run = JobRun(
            self._model, job, self._transport, self._staging, epoch=epoch, request=number, started_s=started_s,
            timeout_s=request.timeout_s, calibrations=self._calibrations,
        )  # fmt: skip
        self._running = request
        for index, device in enumerate(job.devices):
            if device != 0:
                sent, tensors = request.order(self._model, index)
                meta, buffers = sent.to_json(), self._staging.to_wire(tensors, run.meter)
                self._transport.send(device, Kind.REQUEST, epoch=epoch, request=number, meta=meta, buffers=buffers)
        return run

    def _follow(self, request: Request, device: int, emit: Emit) -> Frame:
        """Passes on the tokens that ``device`` decodes; returns its closing RESULT."""
        while True:
            deadline = time.monotonic() + request.timeout_s
            frame = self._wait((Kind.TOKEN, Kind.RESULT), (device,), deadline)[device]
            if frame.kind is Kind.RESULT:
                return frame
            (ids,) = self._staging.from_wire(frame, Meter(), ((torch.int64, (request.batch,)),))
            emit(ids)

    def _collect(
        self, request: Request, deadline: float, have: Mapping[int, Frame] | None = None
    ) -> tuple[dict[int, Frame], list[DeviceTrace]]:
        """The RESULT frames of the other devices, and their traces; ``have`` has come already."""
        others = [device for device in request.job.devices if device != 0]
        missing = [device for device in others if device not in (have or {})]
        frames = {**self._wait((Kind.RESULT,), missing, deadline), **(have or {})}
        return frames, [Results.trace_of(frames[device]) for device in others]

    def _part_layouts(self, request: Request, index: int) -> tuple[Layout, ...]:
        """What the device at ``index`` owes of what the head reads."""
        job = request.job
        assert job.reads is not None
        return job.reads.layouts(*job.bounds[index], request.batch, self._model.config.hidden_size, self._model.dtype)

    def _wait(self, kinds: tuple[Kind, ...], devices: Sequence[int], deadline: float) -> dict[int, Frame]:
        return self._transport.wait_control(
            kinds, devices, deadline, epoch=self._members.epoch, request=self._request_number
        )

    def _timeout_of(self, plan: Plan, limit_s: float) -> TimeoutOf:
        """How long to wait for others: what a request was counted to take, or was seen to; ``limit_s`` at most, and
        somewhat more for the first of its kind."""

        def timeout_s(kind: Hashable, batch: int, num_tokens: int) -> float:
            cost = self._cost(plan, batch, num_tokens)
            speeds = [speed for speed, share in zip(self.speeds(), plan.shares, strict=False) if share and speed]
            compute_s = cost.busiest.macs / min(speeds, default=self._members.macs_per_s[0])
            num_bytes = sum(device.bytes_sent for device in cost.devices)
            found_s = self._patience.timeout_s(kind, of=EVERYBODY, compute_s=compute_s, num_bytes=num_bytes)
            slack = self._patience.slack(kind, of=EVERYBODY)
            return found_s if slack is None else min(found_s, slack * limit_s)

        return timeout_s

    def _trace(self, request: Request, started_s: float, devices: tuple[DeviceTrace, ...]) -> Trace:
        trace = Trace(
            plan=request.plan,
            dtype=self._dtype,
            batch=request.batch,
            num_tokens=request.num_tokens,
            total_s=time.monotonic() - started_s,
            devices=devices,
        )
        if request.job.greedy is None:
            self._patience.learn(request.kind, trace.total_s, of=EVERYBODY)
        if request.plan.strategy == "replica":
            self._learn_speeds(trace)
        return trace

    def _learn_speeds(self, trace: Trace) -> None:
        """Speeds as seen at work: whole samples on every device, so the figures can be compared."""
        cost, speeds = self._cost(trace.plan, trace.batch, trace.num_tokens), self._members.macs_per_s
        for device in trace.devices:
            macs = cost.devices[device.device].macs
            if device.compute_s > 0 and macs > 0 and device.device in speeds:
                seen = self._members.plausible(macs / device.compute_s)
                speeds[device.device] += NEW_SPEED_WEIGHT * (seen - speeds[device.device])

    def _cost(self, plan: Plan, batch: int, num_tokens: int) -> Cost:
        element_bytes = self._model.dtype.itemsize
        return load_cost(plan.strategy)(
            self._model.spec, plan, num_tokens=num_tokens, batch=batch, element_bytes=element_bytes
        )

    @property
    def _dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")


def _ignore(ids: Tensor) -> None:
    """For requests that emit nothing."""
