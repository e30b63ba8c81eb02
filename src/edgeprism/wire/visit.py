"""A visit: a connection that asks one device PINGs, and leaves everything there as it was.

A coordinator greets, and from then on the device's work is sent to it. A visitor holds the coordinator's key and never
greets: it is answered by the connection that it asked on, so a coordinator that uses the device meanwhile keeps it. One
question is under way at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import zmq

from edgeprism.errors import FrameError, PeerFault, PeerLost, PeerTimeout
from edgeprism.wire.frame import DEFAULT_LIMITS, Buffer, Frame, Kind, decode, dump_meta, encode
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.links import DialledLink, Socket, failure, read_events, read_message, write_message
from edgeprism.wire.transport import COORDINATOR

_HEARTBEAT_S = (1.0, 3.0)


class Visit:
    """Dials at once; ``wait_connected``, then ``ask``, then ``close``. For one thread, and good for one connection:
    once it has ended, every call raises PeerLost."""

    def __init__(self, peer: Peer, keys: KeyPair) -> None:
        self._rank = peer.rank
        self._context: zmq.Context[Socket] = zmq.Context()
        self._link = DialledLink(peer)
        self._link.dial(self._context, keys, _HEARTBEAT_S)
        self._poller = zmq.Poller()
        for socket in (self._link.socket, self._link.monitor):
            assert socket is not None
            self._poller.register(socket, zmq.POLLIN)
        self._stands = False
        self._ended = ""  # why
        self._num_asked = 0

    def wait_connected(self, deadline: float) -> None:
        """``deadline`` is in seconds of ``time.monotonic``. PeerLost says why it is refused, PeerTimeout that nothing
        was heard."""
        while not self._stands:
            self._wait(deadline, "it does not answer")

    def ask(self, deadline: float, *, meta: Mapping[str, Any] | None = None, buffers: Sequence[Buffer] = ()) -> Frame:
        """The PONG to a PING with these contents. PeerTimeout, PeerLost, or PeerFault if the answer is none."""
        assert self._link.socket is not None
        self._num_asked += 1
        question = Frame(
            kind=Kind.PING, epoch=0, request=self._num_asked, sender=COORDINATOR,
            meta=dump_meta(meta), arrays=tuple(buffers),
        )  # fmt: skip
        try:
            write_message(self._link.socket, encode(question))
        except zmq.ZMQError as exc:
            raise PeerLost(f"it cannot be sent to: {exc.strerror}", (self._rank,)) from exc
        while True:
            answer = self._next_answer()
            if answer is not None:
                return answer
            self._wait(deadline, "it did not answer a PING")

    def close(self) -> None:
        """Leave. Closing twice is fine."""
        self._link.hang_up()
        self._context.term()

    def __enter__(self) -> Visit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_answer(self) -> Frame | None:
        """What answers the newest question, if it has come; what is left of older ones is dropped."""
        assert self._link.socket is not None
        while (received := read_message(self._link.socket, DEFAULT_LIMITS)) is not None:
            try:
                if received.flaw:
                    raise FrameError(received.flaw)
                frame = decode(received.parts)
            except FrameError as exc:
                raise PeerFault(f"its answer cannot be read: {exc}", (self._rank,)) from exc
            if frame.kind is Kind.PONG and frame.request == self._num_asked:
                return frame
        return None

    def _wait(self, deadline: float, silence: str) -> None:
        """Until something has happened."""
        assert self._link.monitor is not None
        if self._ended:
            raise PeerLost(self._ended, (self._rank,))
        remaining_s = deadline - time.monotonic()
        # What has come by the deadline counts, also when nobody has looked before.
        if not self._poller.poll(max(0, math.ceil(remaining_s * 1000))) and remaining_s <= 0:
            raise PeerTimeout(silence, (self._rank,))
        for event, _ in read_events(self._link.monitor):
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._stands = True
            else:  # libzmq would connect again by itself, and may not be wanted there
                self._ended = self._ended or failure(event) or "its connection ended"
