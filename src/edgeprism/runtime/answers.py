"""What `submit` gives, and the queue in which requests wait for a device.

A queue has room for so many requests that wait; those that devices have in hand do not count. When it is full a
request waits for room (block), the one that waits longest is dropped (drop_oldest: a camera wants the newest picture),
or the new one is refused (reject). What was dropped or refused is counted, and never silently gone: its caller gets
QueueFull.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Literal, get_args

from transformers.utils import ModelOutput

from edgeprism.errors import EdgeprismError, InputError, QueueFull
from edgeprism.runtime.trace import Trace
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan

log = logging.getLogger(__name__)

WhenFull = Literal["block", "drop_oldest", "reject"]


class Answer(Future[ModelOutput]):
    """The future of one request. Callbacks run on device 0's thread, so they should be short; they cannot use the
    engine."""

    def __init__(
        self, inputs: dict[str, Any], plan: str | Plan, codec: CodecSpec, *, can_be_dropped: bool, note: str = ""
    ) -> None:  # fmt: skip
        super().__init__()
        self.trace: Trace | None = None
        """What the request did; set when it is done, None where it was dropped or refused."""
        self._inputs, self._plan, self._codec = inputs, plan, codec
        self._can_be_dropped, self._note = can_be_dropped, note
        self._submitted_s = time.monotonic()
        self._began_s: float | None = None  # when a device first had it
        self._failures: tuple[str, ...] = ()

    @property
    def _is_droppable(self) -> bool:
        """What a device has begun is finished, also when that device failed."""
        return self._can_be_dropped and self._began_s is None


class RequestQueue:
    """Requests that wait, oldest first. ``put`` is for any thread, the rest for device 0's."""

    def __init__(self, max_pending: int, when_full: WhenFull, *, keep_order: bool, wake: Callable[[], None]) -> None:
        if max_pending < 1:
            raise InputError(f"max_pending must be at least 1, not {max_pending}")
        if when_full not in get_args(WhenFull):
            raise InputError(f"when_full is {', '.join(get_args(WhenFull))}, not {when_full!r}")
        self._max_pending, self._when_full, self._wake = max_pending, when_full, wake
        self._waiting: deque[Answer] = deque()
        self._has_room = threading.Condition()
        self._order: deque[Answer] | None = deque() if keep_order else None
        self._done: dict[Answer, ModelOutput | BaseException] = {}  # that earlier ones keep waiting
        self._closed_why: str | None = None
        self.num_dropped = 0
        self.num_rejected = 0

    @property
    def is_closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed_why is not None

    @property
    def has_waiting(self) -> bool:
        """Whether a request waits to be begun."""
        return bool(self._waiting)

    def put(self, answer: Answer) -> None:
        """Takes a request in. QueueFull if it is full and rejects; InputError once it is closed."""
        dropped: list[Answer] = []
        with self._has_room:
            while answer._can_be_dropped and len(self._waiting) >= self._max_pending and self._closed_why is None:
                if self._when_full == "reject":
                    self.num_rejected += 1
                    raise QueueFull(f"{len(self._waiting)} requests wait already, and max_pending is their limit")
                if self._when_full == "block":
                    self._has_room.wait()
                    continue
                oldest = next((waiting for waiting in self._waiting if waiting._is_droppable), None)
                if oldest is None:
                    break
                self._waiting.remove(oldest)
                dropped.append(oldest)
                self.num_dropped += 1
            if self._closed_why is not None:
                raise InputError(self._closed_why)
            self._waiting.append(answer)
            if self._order is not None:
                self._order.append(answer)
        self._refuse(dropped, QueueFull("dropped: newer requests came than max_pending has room for"))
        self._wake()

    def pop(self) -> Answer | None:
        """The oldest that waits and was not cancelled."""
        while True:
            with self._has_room:
                if not self._waiting:
                    return None
                answer = self._waiting.popleft()
                self._has_room.notify()
            if answer.running() or answer.set_running_or_notify_cancel():
                return answer
            self.deliver()  # it was cancelled, and may have kept others waiting

    def put_back(self, answer: Answer) -> None:
        """In front of all others."""
        with self._has_room:
            self._waiting.appendleft(answer)

    def finish(self, answer: Answer, outcome: ModelOutput | BaseException) -> None:
        """The outcome is for the caller, at the next ``deliver``; where the order is kept, when all before it have
        theirs."""
        with self._has_room:
            self._done[answer] = outcome

    def close(self, why: str) -> None:
        """Refuses what comes, and what waits."""
        with self._has_room:
            self._closed_why = why
            waiting = list(self._waiting)
            self._waiting.clear()
            self._has_room.notify_all()
        self._refuse(waiting, InputError(why))
        self._wake()

    def _refuse(self, answers: Iterable[Answer], why: EdgeprismError) -> None:
        for answer in answers:
            if answer.running() or answer.set_running_or_notify_cancel():
                self.finish(answer, why)

    def deliver(self) -> None:
        """Gives out what is done and waits for none before it; callbacks run."""
        with self._has_room:
            ready = list(self._done) if self._order is None else []
            while self._order and (self._order[0] in self._done or self._order[0].cancelled()):
                first = self._order.popleft()
                ready += [] if first.cancelled() else [first]
            outcomes = [(answer, self._done.pop(answer)) for answer in ready]
        for answer, outcome in outcomes:
            try:
                if isinstance(outcome, BaseException):
                    answer.set_exception(outcome)
                else:
                    answer.set_result(outcome)
            except BaseException:  # a callback's SystemExit must not end the thread that everybody waits for
                log.exception("a callback of an answer failed")
