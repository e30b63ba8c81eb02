"""The link between two gloo devices: a group of two, made anew whenever it fails.

gloo receives into buffers that were made ready before, and has nothing that could be polled; so two threads serve each
link. One meets the peer, keeps receives posted and hands on what comes; the other waits for what was sent, and sends a
sign of life when nothing else was. The owner's thread sends by itself, without waiting. A peer that is stopped or cut
off is lost when a wait for it ends in vain.

An envelope's first ``FIRST_BYTES`` travel as one message, the rest, of which the receiver knows the length by then, as
another. gloo ends the whole process where more comes than there is room for, so the sender must keep to this: one more
reason for trusted networks only.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprism.errors import FrameError, PeerLost
from edgeprism.wire.envelope import Bytes, Envelope, pack
from edgeprism.wire.frame import Limits, Part
from edgeprism.wire.gloo_meet import Heed, Place, Unmet, break_off, meet
from edgeprism.wire.transport import Event, Lost, Message, Up

if TYPE_CHECKING:
    from torch.distributed import ProcessGroupGloo, Work

FIRST_BYTES = 2**22
_FIRST, _REST = 0, 1  # tags
_NUM_POSTED = 2
_COPIED_BYTES = 2**16  # up to here a receive buffer is used again
_MAX_UNSENT_BYTES = 2**30
_MAX_UNREAD_BYTES, _MAX_UNREAD = 2**30, 4096
_JOIN_S = 3.0
_AGAIN_S = 0.2
_LINGER_S = 0.3


class _Line:
    """What belongs to one group: it, and what was sent into it."""

    def __init__(self, group: ProcessGroupGloo) -> None:
        self.group = group
        self.unsent: queue.SimpleQueue[tuple[Work, Bytes] | None] = queue.SimpleQueue()
        self.num_bytes_posted = self.num_bytes_sent = 0


class GlooLink:
    """One peer. ``put`` takes events from the link's threads; ``note`` is said in offers, and what a peer of lower rank
    said in its offer goes to ``heed``, which may return why the peer cannot be used."""

    def __init__(
        self,
        place: Place,
        own: int,
        peer: int,
        limits: Limits,
        timeout_s: float,
        *,
        put: Callable[[Event], None],
        note: Mapping[str, Any],
        heed: Heed,
    ) -> None:
        self._place, self._own, self.peer, self._limits, self._timeout_s = place, own, peer, limits, timeout_s
        self._put, self._note, self._heed = put, note, heed
        self.trouble = ""
        self.num_read = self.num_bytes_read = 0  # counted by the owner of the transport
        self._num_put = self._num_bytes_put = 0  # counted by the reader
        self._line: _Line | None = None
        self._sent_at_s = 0.0
        self._send_lock = threading.Lock()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"edgeprism-gloo-{own}-{peer}", daemon=True)
        self._thread.start()

    @property
    def is_up(self) -> bool:
        """Whether a frame would reach the peer now."""
        return self._line is not None

    def post(self, parts: Sequence[Part], *, waits: bool = False) -> None:
        """Send a frame, without blocking; or ``waits`` until the network has it. PeerLost if the peer is gone."""
        works = self._send(pack(parts, self._limits), keeps=not waits)
        if waits:
            try:
                for work, _ in works:
                    work.wait(timedelta(seconds=self._timeout_s))
            except RuntimeError as exc:
                raise PeerLost(f"device {self.peer} is gone: {self._why(exc)}", (self.peer,)) from exc

    def close(self) -> None:
        """What is not sent yet has a moment to go."""
        line, deadline = self._line, time.monotonic() + _LINGER_S
        while line is not None and line is self._line and time.monotonic() < deadline:
            if line.num_bytes_sent == line.num_bytes_posted:
                break
            time.sleep(0.002)
        self._ends.set()
        if line is not None:
            break_off(line.group, 1 - self._index)

    def join(self) -> None:
        """After ``close``: wait for the threads, which must not outlive the interpreter."""
        self._thread.join(_JOIN_S + 1.0)

    # Sending

    def _send(self, envelope: Bytes, *, keeps: bool) -> list[tuple[Work, Bytes]]:
        import torch

        line = self._line
        if line is None or self._ends.is_set():
            why = self.trouble or ("this device has left" if self._ends.is_set() else "no connection yet")
            raise PeerLost(f"device {self.peer} is gone: {why}", (self.peer,))
        if line.num_bytes_posted - line.num_bytes_sent > _MAX_UNSENT_BYTES:
            raise PeerLost(f"device {self.peer} takes nothing: {_MAX_UNSENT_BYTES} bytes wait for it", (self.peer,))
        works = []
        with self._send_lock:  # the sign of life comes from another thread
            for tag, data in ((_FIRST, envelope[:FIRST_BYTES]), (_REST, envelope[FIRST_BYTES:])):
                if len(data):
                    try:
                        work = line.group.send(  # type: ignore[attr-defined]
                            [torch.from_numpy(data)], 1 - self._index, tag
                        )
                    except RuntimeError as exc:
                        raise PeerLost(f"device {self.peer} is gone: {self._why(exc)}", (self.peer,)) from exc
                    works.append((work, data))
                    if keeps:
                        line.num_bytes_posted += len(data)
                        line.unsent.put(works[-1])
        self._sent_at_s = time.monotonic()
        return works

    def _keep_alive(self, line: _Line) -> None:
        """The thread that waits for what was sent, until the group fails or None comes."""
        beat_s = self._timeout_s / 4
        sign = pack((), self._limits)
        try:
            while line is self._line:
                try:
                    item = line.unsent.get(timeout=beat_s)
                except queue.Empty:
                    if time.monotonic() - self._sent_at_s >= beat_s:
                        self._send(sign, keeps=True)
                    continue
                if item is None:
                    return
                item[0].wait(timedelta(seconds=self._timeout_s))
                line.num_bytes_sent += len(item[1])
        except (RuntimeError, PeerLost):
            break_off(line.group, 1 - self._index)  # the reader will see it

    # Meeting and receiving

    @property
    def _index(self) -> int:
        """This device's rank in the group of two."""
        return int(self._own > self.peer)

    def _live(self) -> None:
        pause_s = 0.0
        while not self._ends.wait(pause_s):
            pause_s = _AGAIN_S  # in many cases what has just ended is the whole cluster
            try:
                group = meet(
                    self._place, self._own, self.peer, self._note, _JOIN_S, heed=self._heed, is_over=self._ends.is_set
                )
            except Unmet as exc:
                self.trouble = str(exc)
            else:
                self._serve(_Line(group))

    def _serve(self, line: _Line) -> None:
        self._line, self.trouble = line, ""
        keeper = threading.Thread(target=self._keep_alive, args=(line,), name=f"{self._thread.name}-sent", daemon=True)
        keeper.start()
        self._put(Up(self.peer))
        try:
            self._receive(line.group)
            reason = "this device has left"
        except (RuntimeError, FrameError) as exc:
            reason = self._why(exc)
        self.trouble, self._line = reason, None
        self._put(Lost(self.peer, reason))
        line.unsent.put(None)
        break_off(line.group, 1 - self._index)
        keeper.join()

    def _receive(self, group: ProcessGroupGloo) -> None:
        posted = deque(self._post_receive(group, np.empty(FIRST_BYTES, np.uint8)) for _ in range(_NUM_POSTED))
        while not self._ends.is_set():
            work, data = posted.popleft()
            work.wait(timedelta(seconds=self._timeout_s))
            envelope = Envelope.read(data.data, self._limits)
            if envelope.num_bytes > FIRST_BYTES:
                whole = np.empty(envelope.num_bytes, np.uint8)
                rest, _ = self._post_receive(group, whole[FIRST_BYTES:], _REST)
                whole[:FIRST_BYTES] = data
                rest.wait(timedelta(seconds=self._timeout_s))
            elif envelope.num_bytes > _COPIED_BYTES:
                whole, data = data[: envelope.num_bytes], np.empty(FIRST_BYTES, np.uint8)
            else:
                whole = data[: envelope.num_bytes].copy()
            posted.append(self._post_receive(group, data))
            if envelope.starts:
                self._hand_on(envelope.parts(whole))

    def _post_receive(self, group: ProcessGroupGloo, data: Bytes, tag: int = _FIRST) -> tuple[Work, Bytes]:
        import torch

        return group.recv([torch.from_numpy(data)], 1 - self._index, tag), data  # type: ignore[attr-defined]

    def _hand_on(self, parts: list[Part]) -> None:
        self._num_put += 1
        self._num_bytes_put += sum(map(len, parts))  # as the owner counts them
        self._put(Message(self.peer, parts))
        while not self._ends.is_set() and (
            self._num_put - self.num_read > _MAX_UNREAD or self._num_bytes_put - self.num_bytes_read > _MAX_UNREAD_BYTES
        ):
            time.sleep(0.01)  # the peer's sends wait meanwhile

    def _why(self, exc: Exception) -> str:
        text = str(exc)
        if isinstance(exc, FrameError):
            return text
        if "Timed out" in text:
            return f"nothing was heard of it for {self._timeout_s:g} s"
        return self.trouble or "its connection ended"
