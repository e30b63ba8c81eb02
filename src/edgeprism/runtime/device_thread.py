"""The thread of device 0: it owns the transport and computes this device's part of every request.

So a program that uses an engine keeps its own threads as they were: their cores, their number of torch threads, their
autograd mode. OpenMP's helper threads are born of the thread that first needs them and keep its cores, so those of an
engine are never the caller's. And the cluster is looked after while nobody calls: a board that comes late is given its
weights, one that has gone is noticed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from edgeprism.errors import InputError, RequestAborted
from edgeprism.runtime.cores import settle
from edgeprism.wire.transport import Transport

log = logging.getLogger(__name__)

_Given = TypeVar("_Given")

STOP_TIMEOUT_S = 5.0


class ClusterClosed(InputError):
    """The cluster was closed, and what needs it comes too late."""


class DeviceThread:
    """Runs calls one after the other, and ``step`` again and again while there is none.

    A step waits on the transport, which ``wake`` ends; so it must not wait on anything else.
    """

    def __init__(self, transport: Transport, cores: tuple[int, ...] | None) -> None:
        self._transport, self._cores = transport, cores
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._step: Callable[[], None] = self._idle
        self._end: Callable[[], None] = _nothing
        self._last: Callable[[], None] = _nothing
        self._is_closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="edgeprism-0", daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether the caller is this thread."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[[], _Given]) -> _Given:
        """What ``function`` gives or raises, run on the thread. ClusterClosed once the thread has ended."""
        if self.is_here:
            return function()
        future: Future[_Given] = Future()
        with self._lock:
            if self._is_closing:
                raise ClusterClosed("the cluster is closed")
            self._calls.append((function, future))
        self._transport.wake()
        return future.result()

    def serve(self, step: Callable[[], None], end: Callable[[], None]) -> None:
        """On the thread: from now on this is the step, and ``end`` is called once when it is no longer."""
        self._end()
        self._step, self._end = step, end

    def end_serving(self, end: Callable[[], None]) -> None:
        """The step that came with this ``end`` is the step no longer; nothing happens when it has been replaced."""

        def idle() -> None:
            if self._end == end:
                self.serve(self._idle, _nothing)

        try:
            self.call(idle)
        except ClusterClosed:
            pass  # and so has this

    def _idle(self) -> None:
        self._transport.watch(1.0)

    def close(self, last: Callable[[], None]) -> None:
        """Ends what runs as soon as it next waits or is done, runs ``last`` and ends the thread."""
        with self._lock:
            if self._is_closing:
                return
            self._last, self._is_closing = last, True
        self._transport.interrupt()
        if not self.is_here:
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        import torch

        settle(self._cores)
        with torch.no_grad():
            while not self._is_closing:
                if self._calls:
                    _answer(*self._calls.popleft())
                else:
                    self._take_step()
            try:
                self._end()
            finally:
                self._last()
        for _, future in self._calls:
            future.set_exception(ClusterClosed("the cluster is closed"))

    def _take_step(self) -> None:
        try:
            self._step()
        except RequestAborted:
            assert self._is_closing
        except Exception:  # our own mistake; requests that wait must not wait for ever
            log.exception("device 0 goes on after an error of edgeprism's own")
            time.sleep(0.1)


def _nothing() -> None:
    """For what has no step, and no end."""


def _answer(function: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as exc:
        future.set_exception(exc)
