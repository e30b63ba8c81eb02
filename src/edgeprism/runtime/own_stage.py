"""The coordinator's own stage of a pipeline: computed on a thread beside the one that owns the sockets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from edgeprism.models.model import Model
from edgeprism.runtime.cores import settle
from edgeprism.runtime.messages import Handover
from edgeprism.runtime.stage import QUEUE_LENGTH, Caches, Done, StageRun
from edgeprism.runtime.trace import DeviceTrace
from edgeprism.specs.codec import CodecSpec
from edgeprism.strategies.kv_cache import KeyValueCache
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import Frame
from edgeprism.wire.transport import COORDINATOR


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """A micro-batch for this stage: inputs by name, or a frame from the stage before."""

    number: int
    order: Handover
    what: Frame | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """What became of it; ``error`` instead of the rest where it could not be computed."""

    given: Given
    done: Done | None = None
    trace: DeviceTrace | None = None
    error: BaseException | None = None


class OwnStage:
    """For device 0's thread, but for ``_run``. ``wake`` is called when something was computed."""

    def __init__(self, model: Model, cores: tuple[int, ...] | None, wake: Callable[[], None]) -> None:
        self._model, self._cores, self._wake = model, cores, wake
        self._staging, self._caches = Staging(model.device), Caches()
        self._inbox: deque[Given] = deque()
        self._executor: ThreadPoolExecutor | None = None
        self._results: SimpleQueue[tuple[object, Made]] = SimpleQueue()
        self._num_computing = 0
        self._stream: tuple[int, int] = (0, 0)
        self._free_since_s, self._busy_s = time.monotonic(), 0.0

    @property
    def has_room(self) -> bool:
        """Whether one more may wait for it."""
        return len(self._inbox) < QUEUE_LENGTH

    def enter(self, epoch: int, stream: int) -> None:
        """What was given in another stream is dropped; what is being computed of it will not come back."""
        self._stream = epoch, stream
        self._inbox.clear()
        self.forget_texts()

    def forget_texts(self) -> None:
        """What is kept of them is freed."""
        self._caches.clear()

    def drop(self, numbers: set[int]) -> list[int]:
        """These are no longer wanted. The devices that sent them: each may send another one instead."""
        senders = [one.what.sender for one in self._inbox if one.number in numbers and isinstance(one.what, Frame)]
        self._inbox = deque(given for given in self._inbox if given.number not in numbers)
        return senders

    def is_free(self) -> None:
        """From now on it has nothing to do: what it made is on its way, and it no longer waits for room behind it."""
        self._free_since_s = time.monotonic()

    def give(self, given: Given) -> None:
        """Lays a micro-batch in line."""
        self._inbox.append(given)

    def begin(self, codec: Callable[[Handover], CodecSpec]) -> tuple[Given, float, float] | None:
        """Begins with the next one, if one waits and nothing is computed: what it is, how long there was nothing to do,
        and how long the one before took. ``codec`` chooses what the next stage gets."""
        if self._num_computing or not self._inbox:
            return None
        given, now = self._inbox.popleft(), time.monotonic()
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "edgeprism-0-computes", settle, (self._cores,))
        cache = self._caches.of(*self._stream, given.number, given.order)
        chosen = codec(given.order)
        self._num_computing += 1
        stream, future = self._stream, self._executor.submit(self._run, given, cache, chosen)
        future.add_done_callback(lambda done: self._is_done(stream, given, done))
        return given, max(0.0, now - self._free_since_s), self._busy_s

    def results(self) -> list[Made]:
        """What was computed since the last time, of this stream."""
        found: list[Made] = []
        while True:
            try:
                stream, made = self._results.get_nowait()
            except Empty:
                return found
            self._num_computing -= 1
            self._free_since_s = time.monotonic()
            if stream == self._stream:
                found.append(made)

    def close(self) -> None:
        """Ends when it next is done."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def _run(self, given: Given, cache: KeyValueCache | None, codec: CodecSpec) -> tuple[Done, DeviceTrace]:
        meter, began_s, stage = Meter(), time.monotonic(), given.order.stage
        run = StageRun(self._model, given.order, meter, cache, codec)
        is_frame = isinstance(given.what, Frame)
        done = run.run(self._staging.from_wire(given.what, meter) if isinstance(given.what, Frame) else given.what)
        total_s = time.monotonic() - began_s
        self._busy_s = total_s
        return done, DeviceTrace(
            device=COORDINATOR, work=stage.stop - stage.start, total_s=total_s,
            compute_s=max(0.0, total_s - meter.codec_s - meter.staging_s), codec_s=meter.codec_s,
            staging_s=meter.staging_s, wire_s=0.0, wait_s=0.0, bytes_sent=0,
            bytes_received=given.what.num_bytes if isinstance(given.what, Frame) and is_frame else 0,
        )  # fmt: skip

    def _is_done(self, stream: object, given: Given, future: Future[tuple[Done, DeviceTrace]]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            made = Made(given=given, error=error)
        else:
            done, trace = future.result()
            made = Made(given=given, done=done, trace=trace)
        self._results.put((stream, made))
        self._wake()
