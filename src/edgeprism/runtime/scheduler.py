"""What device 0 does next: begin a request that waits, take in what others have done, look after the cluster.

Requests are begun in the order in which they came. Most take all devices, so one runs at a time; requests of one
sample under plan `replica` take one device each and run side by side (``singles``), those under `pipeline` one behind
the other (``pipelined``). Of the three kinds only one is under way at a time.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from edgeprism.codecs.calibration import Calibration
from edgeprism.errors import InputError, RequestAborted
from edgeprism.models.model import Model, only
from edgeprism.policy.choose import Decision
from edgeprism.runtime.adaptive import Adaptive
from edgeprism.runtime.answers import Answer, RequestQueue
from edgeprism.runtime.coordinator import Coordinator
from edgeprism.runtime.heap import give_back
from edgeprism.runtime.holders import Holders, OrderOf
from edgeprism.runtime.membership import Membership
from edgeprism.runtime.messages import Introduction
from edgeprism.runtime.patience import Patience
from edgeprism.runtime.pipelined import Pipelined
from edgeprism.runtime.singles import Singles
from edgeprism.runtime.text import Text
from edgeprism.runtime.trace import Trace
from edgeprism.runtime.weights import WeightFiles
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan, Stage
from edgeprism.strategies.replica.forward import batch_of
from edgeprism.wire.frame import Frame
from edgeprism.wire.transport import Transport

log = logging.getLogger(__name__)

NOT_OURS = "this engine is closed, or its cluster was given to a newer one; make a new engine"
AUTO_GENERATES = "auto: local, which is how it generates; name plan sequence to prefill over all devices"
AUTO_NOTE = "auto: local, since there is no performance map to choose by"

LOOK_AROUND_S = 0.5
CLOSED = partial(InputError, "the engine was closed while this request ran")
# Orders to load have random numbers below: no answer to one is taken for an answer to the other.
_FIRST_REQUEST = 2**31


class Scheduler:
    """Owned by device 0's thread, which takes ``step`` after ``step``."""

    def __init__(
        self,
        transport: Transport,
        model: Model,
        queue: RequestQueue,
        introductions: Mapping[int, Introduction] | None,
        cores: tuple[int, ...] | None,
        calibrations: Mapping[str, Calibration],
    ) -> None:
        self._transport, self._model, self._queue = transport, model, queue
        self.at_end: list[Callable[[], None]] = []
        """Called once when this ends."""
        numbers = itertools.count(_FIRST_REQUEST)
        patience = Patience()
        self._members = Membership(transport, introductions)
        self.coordinator = Coordinator(transport, model, self._members, patience, numbers, calibrations)
        self._singles = Singles(transport, model, self._members, patience, queue, numbers, cores)
        self._pipelined = Pipelined(transport, model, self._members, patience, queue, numbers, cores)
        self._members.pass_on = self._pass_on
        self._adaptive: Adaptive | None = None
        self._lesson: tuple[Trace, Plan] | None = None
        self._is_watching = False  # the links, while nothing is to be done: after a request under plan `auto`

    def step(self) -> None:
        """Begins a request if one can be begun; else waits until something happens, half a second at most."""
        answer = self._queue.pop()
        if answer is None:
            self.look_around()
        elif not self._begin(answer):
            self._queue.put_back(answer)
            self.look_around()
        self._queue.deliver()
        self._learn()

    def choose_by(self, adaptive: Adaptive | None) -> None:
        """What chooses under plan `auto` from now on; None: it runs here."""
        self._adaptive = adaptive

    def share_out(self, holders: Holders, order_of: OrderOf, weights: WeightFiles | None) -> None:
        """Has every device load its own stage's pieces, now and whenever stages have to change."""

        def share(stages: tuple[Stage, ...]) -> None:
            holders.stages = stages
            self._pipelined.forget_texts()
            self._model.release()
            give_back()
            self._model.become(holders.own())
            self.coordinator.load_workers(holders.orders(order_of), weights)

        self._pipelined.stages.hold(holders.stages, share)
        self.coordinator.load_workers(holders.orders(order_of), weights)

    def generate(self, texts: Sequence[Text], plan: str | Plan, codec: CodecSpec, check: Callable[[], None]) -> Trace:
        """Continues texts under plan `pipeline`; see `Pipelined.generate`."""
        return self._pipelined.generate(texts, plan, codec, check)

    @property
    def num_devices(self) -> int:
        """Of the cluster, this one included."""
        return self._transport.num_devices

    def check_interrupted(self) -> None:
        """RequestAborted when the cluster is being closed."""
        self._transport.check_interrupted()

    @property
    def is_busy(self) -> bool:
        """Whether devices have requests in hand."""
        return self._singles.num_in_hand + self._pipelined.num_in_hand > 0

    def close(self) -> None:
        """Refuses what waits, ends what devices have in hand, and removes what was made for this engine."""
        self._queue.close(NOT_OURS)
        self._singles.close(CLOSED())
        self._pipelined.close(CLOSED())
        self._queue.deliver()
        for remove in self.at_end:
            remove()

    def _begin(self, answer: Answer) -> bool:
        """False when it has to wait."""
        self._is_watching = answer._plan == "auto"
        try:
            only(answer._inputs, *self._model.input_names)
            if self._is_pipelined(answer):
                return self._singles.num_in_hand == 0 and self._pipelined.offer(answer)
            if self._pipelined.num_in_hand:
                return False
            if self._is_single(answer):
                return self._singles.offer(answer)
            decision = self._decision(answer)
            if decision is not None and decision.is_stream:
                return self._singles.offer(answer)
            if self._singles.num_in_hand:
                return False
            began_s = time.monotonic()  # the decision, and a probe before it, are part of the wait
            if decision is not None and self._adaptive is not None:
                plan, patience_s = decision.chosen.plan, self._adaptive.patience_s(decision)
                outcome = self.coordinator.forward(answer._inputs, plan, patience_s=patience_s)
                trace = replace(outcome.trace, note=decision.reason)
            else:
                plan = self.coordinator.plan_of(answer._plan, answer._codec)
                outcome = self.coordinator.forward(answer._inputs, plan)
                trace = noted(outcome.trace, answer._plan, self._transport.num_devices)
            versions, queued_s = self.coordinator.versions_of(trace), began_s - answer._submitted_s
            answer.trace = replace(trace, versions=versions, queued_s=queued_s)
        except RequestAborted:
            self._queue.finish(answer, CLOSED())
            return True
        except BaseException as exc:
            self._queue.finish(answer, exc)
            return True
        self._queue.finish(answer, outcome.output)
        if decision is not None:
            self._lesson = outcome.trace, plan
        return True

    def _learn(self) -> None:
        """From the last request, when its answer is out: nobody waits for this."""
        lesson, self._lesson = self._lesson, None
        if lesson is not None and self._adaptive is not None:
            try:
                self._adaptive.learn(*lesson)
            except Exception:  # a lesson that is lost is no reason to end the thread that everybody waits for
                log.exception("a request under plan auto taught nothing")

    def _decision(self, answer: Answer) -> Decision | None:
        """What the policy says to a request under plan `auto`; None where there is none, or it is not asked."""
        if answer._plan != "auto" or self._adaptive is None:
            return None
        ready, inputs = self.coordinator.ready(), answer._inputs
        if not self._singles.num_in_hand:
            self._adaptive.probe(ready)
        return self._adaptive.decide(batch_of(inputs), self._model.num_tokens(inputs), ready)

    def _is_single(self, answer: Answer) -> bool:
        return answer._plan == "replica" and self._transport.num_devices > 1 and batch_of(answer._inputs) == 1

    def _is_pipelined(self, answer: Answer) -> bool:
        strategy = answer._plan.strategy if isinstance(answer._plan, Plan) else answer._plan
        return strategy == "pipeline" and self._transport.num_devices > 1

    def _pass_on(self, frame: Frame) -> None:
        (self._pipelined if self._pipelined.holds(frame) else self._singles).take(frame)

    def look_around(self) -> None:
        """Waits until something happens, half a second at most, and takes it in."""
        self._transport.watch(max(0.0, min(LOOK_AROUND_S, self._singles.patience_s, self._pipelined.patience_s)))
        if self._transport.num_devices > 1:
            self._members.ready()  # takes in what came, tells and asks those that have to be
            if self._adaptive is not None and self._is_watching and not self.is_busy and not self._queue.has_waiting:
                self._adaptive.probe(self.coordinator.ready())
        self._singles.collect()
        self._pipelined.collect()
        self._queue.deliver()  # here, where a callback finds everything in order


def noted(trace: Trace, plan: str | Plan, num_devices: int, *, auto_note: str = AUTO_NOTE) -> Trace:
    """The trace with a note where another plan ran than its name says."""
    if plan != "local" and num_devices == 1:
        return replace(trace, note="one device: it runs local")
    if plan == "auto":
        return replace(trace, note=auto_note)
    return trace
