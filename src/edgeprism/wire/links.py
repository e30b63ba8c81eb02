"""Links: the connection with one peer, as one device sees it. Of two devices the lower rank dials the higher.

The dialler has a DEALER of its own for each peer; the one that is dialled has one ROUTER for all. A link is *new*
until it first stands (what is sent is kept), then *up* or *lost* (what is sent is refused). The dialler speaks first:
an empty message, by which the dialled one learns whose connection this is.

[Note: pieces] A part of a message travels as one or more ZeroMQ frames, its pieces: one of exactly ``PIECE_BYTES``
continues the part, a shorter one, which may be empty, ends it. Heartbeats make it necessary: libzmq takes a peer to be
gone when no complete ZeroMQ frame has come from it within the time-out, however many bytes have, and a megabyte takes
8 s at 1 Mbit/s. Besides, libzmq encrypts and decrypts frame by frame, so that this is done while other pieces travel;
and what a stranger can make it take in is no more than a piece.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import zmq
from zmq.utils.monitor import recv_monitor_message

from edgeprism.errors import PeerLost
from edgeprism.wire.frame import Limits, Part
from edgeprism.wire.gate import DOMAIN
from edgeprism.wire.keys import KeyPair, Peer

Socket: TypeAlias = "zmq.Socket[bytes]"
HELLO = b""
PIECE_BYTES = 65_536
"""Note: pieces. 175 kbit/s carry one in 3 s, the usual time-out."""
REDIAL_S = 0.25
HANDSHAKE_MS = 5_000  # a connection that says nothing holds a file descriptor for so long, whoever it is

_FAILURES = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: "it refuses this device's key",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "it does not speak this protocol, or has another key than expected",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "it ended the handshake: no edgeprism there, or another key than expected",
}
_MAX_OUTBOX = 256
_WITH_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_CURVE_BYTES = 33  # what encryption adds to a ZeroMQ frame, and libzmq counts: command name, nonce, check sum, flags


class Link:
    """The connection with one peer. ``prefix`` is what the socket needs in front to find it."""

    def __init__(self, peer: Peer, socket: Socket | None) -> None:
        self.peer = peer
        self.socket = socket
        self.prefix: tuple[bytes, ...] = ()
        self.waiting: list[tuple[bytes, ...]] = []
        """Prefixes of further connections with the same key: the next one when this one ends."""
        self.is_up = False
        self.trouble = ""
        """Why it is not up, as far as is known."""
        self._was_up = False
        self._outbox: list[list[bytes]] = []

    def post(self, parts: Sequence[Part]) -> None:
        """Send, or keep until the link first stands. PeerLost if it is lost."""
        if self.is_up:
            self._write(parts)
        elif self._was_up or len(self._outbox) >= _MAX_OUTBOX:
            raise PeerLost(f"device {self.peer.rank} is gone: {self.trouble}", (self.peer.rank,))
        else:
            self._outbox.append([bytes(part) for part in parts])

    def rise(self) -> None:
        """The link stands: send what was kept."""
        self.is_up = self._was_up = True
        self.trouble = ""
        outbox, self._outbox = self._outbox, []
        with suppress(PeerLost):  # gone again at once: the monitor will say so
            for parts in outbox:
                self._write(parts)

    def fall(self, trouble: str) -> bool:
        """The link is gone; True if it stood before."""
        was_up, self.is_up = self.is_up, False
        self.trouble = trouble
        return was_up

    def _write(self, parts: Sequence[Part]) -> None:
        assert self.socket is not None
        try:
            write_message(self.socket, [*self.prefix, *parts])
        except zmq.ZMQError as exc:
            reason = "it has stopped reading" if exc.errno == zmq.EAGAIN else exc.strerror
            raise PeerLost(f"device {self.peer.rank} cannot be sent to: {reason}", (self.peer.rank,)) from exc


class DialledLink(Link):
    """A link that we dial, and dial again: libzmq would not after a refusal, and would send again what is outdated."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer, None)
        self.monitor: Socket | None = None
        self.redial_at_s = 0.0

    def dial(self, context: zmq.Context[Socket], keys: KeyPair, heartbeat_s: tuple[float, float]) -> None:
        """Begin to connect; the monitor tells how it went."""
        self.socket = make_socket(context, zmq.DEALER, keys, heartbeat_s)
        self.socket.curve_serverkey = self.peer.public_key.encode()
        # Not ZMQ_IMMEDIATE: with it, libzmq throws away what the peer said before its connection ended.
        self.monitor = self.socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self.socket.connect(self.peer.address)

    def rise(self) -> None:
        """Greet first."""
        self._outbox.insert(0, [HELLO])
        super().rise()

    def hang_up(self) -> None:
        """Close the sockets, and dial again a little later."""
        close_monitored(self.socket, self.monitor)
        self.socket = self.monitor = None
        self.redial_at_s = time.monotonic() + REDIAL_S


class Received(NamedTuple):
    """One message, its parts put together (Note: pieces) in memory of their own, which is writable and aligned."""

    parts: list[bytearray]
    last: zmq.Frame
    """Its last piece, which knows the connection."""
    flaw: str
    """Why nothing can be made of it, and ``parts`` is empty; or nothing."""

    @property
    def key(self) -> str:
        """The public key of the connection it came by (``gate``); for messages of a ROUTER."""
        return str(self.last.get("User-Id"))

    @property
    def source(self) -> int:
        """The file descriptor of the connection it came by."""
        return int(self.last.get(zmq.SRCFD))


def make_socket(context: zmq.Context[Socket], kind: int, keys: KeyPair, heartbeat_s: tuple[float, float]) -> Socket:
    """A socket with the bounds and heartbeats of every link. ``heartbeat_s``: the interval, and how long to wait."""
    socket: Socket = context.socket(kind)
    socket.linger = 0
    socket.curve_publickey = keys.public.encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.setsockopt(zmq.MAXMSGSIZE, PIECE_BYTES + _CURVE_BYTES)  # a longer frame ends the connection, unread
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, round(heartbeat_s[0] * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(heartbeat_s[1] * 1000))
    return socket


def make_router(context: zmq.Context[Socket], keys: KeyPair, heartbeat_s: tuple[float, float]) -> tuple[Socket, Socket]:
    """The socket that is dialled, not bound yet, and its monitor. It picks routing ids: a peer could pick another's."""
    router = make_socket(context, zmq.ROUTER, keys, heartbeat_s)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.curve_server = True
    router.setsockopt(zmq.ZAP_DOMAIN, DOMAIN.encode())
    return router, router.get_monitor_socket(zmq.EVENT_DISCONNECTED)


def close_monitored(socket: Socket | None, monitor: Socket | None, linger_s: float = 0.0) -> None:
    """Close a socket and its monitor; fine if they are closed. What is not sent yet has ``linger_s`` to go."""
    if socket is not None and not socket.closed:
        socket.disable_monitor()
        socket.close(round(1000 * linger_s))
    if monitor is not None and not monitor.closed:
        monitor.close(0)


def write_message(socket: Socket, parts: Sequence[Part]) -> None:
    """Queue one message or raise ZMQError; never blocks.

    Copied into libzmq's memory: a copy of 300 kB takes some 50 us, sharing the memory costs a wake-up of pyzmq's
    collector thread and binds the caller not to touch the array until an unknown moment.
    """
    pieces = _pieces(parts)
    last = len(pieces) - 1
    for index, piece in enumerate(pieces):
        flags = _WITH_MORE if index < last else zmq.NOBLOCK
        try:
            socket.send(piece, flags)
        except zmq.Again:
            if index:
                raise
            socket.getsockopt(zmq.EVENTS)  # makes the socket notice a connection made a moment ago
            socket.send(piece, flags)


def read_message(socket: Socket, limits: Limits, num_prefixes: int = 0) -> Received | None:
    """The next message, or None. ``num_prefixes``: parts that the socket puts in front of it.

    One that is larger than ``limits`` is read to its end, without keeping it, and has a flaw. libzmq hands a message
    over when all of it has come, and until then keeps it itself.
    """
    try:
        piece: zmq.Frame = socket.recv(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    parts: list[bytearray] = []
    pieces: list[memoryview] = []
    num_bytes, max_bytes, max_parts = 0, limits.max_part_bytes, limits.max_arrays + 1
    while True:
        length = len(piece)
        num_bytes += length
        if num_bytes > max_bytes:
            return Received([], _read_on(socket, piece), f"a part of more than {max_bytes} bytes")
        if len(parts) == num_prefixes + max_parts:
            return Received([], _read_on(socket, piece), f"more than {max_parts} parts")
        pieces.append(piece.buffer)
        if length < PIECE_BYTES:
            parts.append(bytearray().join(pieces))
            pieces, num_bytes = [], 0
        if not piece.more:
            break
        piece = socket.recv(zmq.NOBLOCK, copy=False)
    return Received([], piece, "its last part does not end") if pieces else Received(parts, piece, "")


def _pieces(parts: Sequence[Part]) -> list[Part]:
    """What travels as one ZeroMQ frame each (Note: pieces)."""
    pieces: list[Part] = []
    for part in parts:
        if len(part) < PIECE_BYTES:
            pieces.append(part)
        else:
            view = memoryview(part)
            pieces += [view[start : start + PIECE_BYTES] for start in range(0, len(part) + 1, PIECE_BYTES)]
    return pieces


def _read_on(socket: Socket, piece: zmq.Frame) -> zmq.Frame:
    """The last piece of a message; what is before it is thrown away."""
    while piece.more:
        piece = socket.recv(zmq.NOBLOCK, copy=False)
    return piece


def read_events(monitor: Socket) -> list[tuple[zmq.Event, int]]:
    """Events of a monitor with their values (a file descriptor, for DISCONNECTED)."""
    events: list[tuple[zmq.Event, int]] = []
    while True:
        try:
            message: dict[str, Any] = dict(recv_monitor_message(monitor, zmq.NOBLOCK))
        except zmq.Again:
            return events
        events.append((zmq.Event(message["event"]), message["value"]))


def failure(event: zmq.Event) -> str | None:
    """What a failed handshake means; None for other events."""
    return _FAILURES.get(event)
