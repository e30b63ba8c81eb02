"""ZeroMQ over TCP, encrypted and authenticated with CURVE: the transport between processes and machines.

Each device binds one ROUTER and dials every device of higher rank with a DEALER, so that each pair shares one
connection. Only listed keys get in (``gate``), and a frame counts only if its sender's rank is that of the key which
authenticated its connection. libzmq's I/O thread encrypts and moves the bytes while the owner computes, piece by piece
(Note: pieces), so that encryption, the wire and decryption overlap; it inherits the CPU affinity of the thread that
makes the transport. [Note: gone at once] The kernel closes the connections of a killed process, the socket monitor
reports it, and the peer is lost within milliseconds; one that is stopped or cut off is lost when heartbeats fail.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import final

import zmq

from edgeprism.errors import InputError, PeerLost
from edgeprism.wire.frame import DEFAULT_LIMITS, Limits, Part
from edgeprism.wire.gate import Gate
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.links import (
    HELLO,
    DialledLink,
    Link,
    Received,
    Socket,
    close_monitored,
    failure,
    make_router,
    read_events,
    read_message,
    write_message,
)
from edgeprism.wire.transport import Event, Lost, Message, Transport, Up

_MAX_MESSAGES_A_POLL = 64
_MAX_ENDED = 64
_MAX_WAITING = 16  # connections with the key of one that stands
_NUM_PREFIXES = 1  # a ROUTER puts the routing id in front
_MAX_POLL_S = 3600.0  # libzmq counts milliseconds in 32 bits
_LINGER_S = 0.3


@final
class ZmqTransport(Transport):
    """One device on a ZeroMQ cluster. InputError if ``bind`` cannot be bound.

    ``watch_fd`` is a file descriptor whose end of file means that the coordinator is gone for good (a worker's standard
    input): device 0 is lost then, and ``is_orphan`` is set.
    Sending copies, so a buffer may change as soon as ``send`` or ``start`` returns.
    """

    def __init__(
        self,
        rank: int,
        keys: KeyPair,
        bind: str = "tcp://127.0.0.1:*",
        *,
        limits: Limits = DEFAULT_LIMITS,
        heartbeat_s: float = 1.0,
        heartbeat_timeout_s: float = 3.0,
        watch_fd: int | None = None,
    ) -> None:
        super().__init__(rank, 1, limits)
        self._keys = keys
        self._heartbeat_s = (heartbeat_s, heartbeat_timeout_s)
        self._links: dict[int, Link] = {}
        self._ranks: dict[str, int] = {}  # of public keys
        self._fds: dict[int, tuple[str, tuple[bytes, ...]]] = {}  # of greeted connections: whose key, and their prefix
        self._ended: deque[tuple[bytes, ...]] = deque(maxlen=_MAX_ENDED)  # prefixes of connections that are no more
        self._ended_unheard: set[int] = set()  # descriptors of those whose greeting was not read yet
        self._poller = zmq.Poller()
        self._handlers: dict[Socket | int, Callable[[list[Event]], object]] = {}
        self._context: zmq.Context[Socket] = zmq.Context()
        self._gate = Gate(self._context)
        self._router, self._router_monitor = make_router(self._context, keys, self._heartbeat_s)
        self._wake_lock = threading.Lock()
        self._wake_fd, self._waker_fd = os.pipe()
        os.set_blocking(self._waker_fd, False)
        self._bind(bind)
        self._watch(self._wake_fd, lambda _: os.read(self._wake_fd, 4096))
        self._watch(self._gate.socket, lambda _: self._gate.answer())
        self._watch(self._router_monitor, self._on_router_event)  # before the router: see _on_router_event
        self._watch(self._router, self._read_router)
        if watch_fd is not None:
            self._watch(watch_fd, lambda events: self._read_fd(watch_fd, events))

    @property
    def address(self) -> str:
        """Where this device is dialled."""
        return self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def num_refused(self) -> int:
        """Handshakes of strangers that were turned away."""
        return self._gate.num_refused

    def connect(self, peers: Iterable[Peer]) -> None:
        """Make these the peers: list their keys, and begin to dial the higher ranks. Call again when one is replaced.

        Peers that stay as they were keep their connection. What is sent before a connection first stands is kept for
        it.
        """
        wanted = {peer.rank: peer for peer in peers if peer.rank != self.rank}
        for rank, link in list(self._links.items()):
            if wanted.get(rank) != link.peer:
                self._forget(self._links.pop(rank))
        self._ranks = {peer.public_key: peer.rank for peer in wanted.values()}
        self._gate.admit(self._ranks)
        self.num_devices = len(wanted) + 1
        for rank, peer in wanted.items():
            if rank not in self._links:
                self._lost.pop(rank, None)
                self._links[rank] = self._make_link(peer)

    def introduce(self, rank: int, peers: Iterable[Peer]) -> None:
        """Take another rank, as the coordinator says, and these peers. Device 0 stays what it is: this device's owner
        gave its key, and an introduction that changed it, or gave it to another, would lock the coordinator out."""
        coordinator = [link.peer for link in self._links.values() if link.peer.rank == 0]
        if rank != self.rank:
            self.connect(coordinator)
            self.rank = rank
        taken = {peer.public_key for peer in coordinator}
        self.connect([*coordinator, *(peer for peer in peers if peer.rank != 0 and peer.public_key not in taken)])

    def connected(self) -> set[int]:
        """The peers whose link is up."""
        return {rank for rank, link in self._links.items() if link.is_up}

    def close(self) -> None:
        """Close every socket. What is not sent yet has a moment to go: a result, or the word that this is the end."""
        for link in self._links.values():
            if isinstance(link, DialledLink):
                close_monitored(link.socket, link.monitor, _LINGER_S)
        close_monitored(self._router, self._router_monitor, _LINGER_S)
        self._gate.socket.close(0)
        self._context.term()
        with self._wake_lock:  # or a late wake-up would go to whoever gets the number of this descriptor next
            for fd in {self._wake_fd, self._waker_fd} - {-1}:
                os.close(fd)
            self._wake_fd = self._waker_fd = -1

    def _post(self, peer: int, parts: Sequence[Part]) -> None:
        link = self._links.get(peer)
        if link is None:
            raise PeerLost(f"device {peer} is not a peer of this transport", (peer,))
        link.post(parts)

    def _post_back(self, message: Message, parts: Sequence[Part]) -> None:
        """A connection that has never greeted (``visit``) is answered, too, and the peer's link stays as it is."""
        if not message.route:
            self._post(message.sender, parts)
            return
        try:
            write_message(self._router, [*message.route, *parts])
        except zmq.ZMQError as exc:
            raise PeerLost(f"who asked is gone: {exc.strerror}", (message.sender,)) from exc

    def _poll(self, timeout_s: float | None) -> list[Event]:
        timeout_s = self._redial(timeout_s)
        events: list[Event] = []
        timeout_ms = None if timeout_s is None else math.ceil(min(timeout_s, _MAX_POLL_S) * 1000)
        for source, _ in self._poller.poll(timeout_ms):
            handler = self._handlers.get(source)
            if handler is not None:  # an earlier handler may have closed it
                handler(events)
        return events

    def _wake(self) -> None:
        with self._wake_lock, suppress(OSError):  # full: it will wake up anyway; closed: nobody is to be woken
            os.write(self._waker_fd, b"!")

    def _describe(self, peer: int) -> str:
        link = self._links.get(peer)
        return "" if link is None or link.is_up else link.trouble or "no connection yet"

    def _bind(self, address: str) -> None:
        try:
            self._router.bind(address)
        except zmq.ZMQError as exc:
            self.close()
            raise InputError(_why_not_bound(address, exc)) from exc

    def _watch(self, source: Socket | int, handler: Callable[[list[Event]], object]) -> None:
        self._poller.register(source, zmq.POLLIN)
        self._handlers[source] = handler

    def _unwatch(self, source: Socket | int) -> None:
        self._poller.unregister(source)
        del self._handlers[source]

    # Links

    def _make_link(self, peer: Peer) -> Link:
        if peer.rank < self.rank:
            return self._adopt(Link(peer, self._router))
        if not peer.address:
            raise InputError(f"device {peer.rank} must be dialled by device {self.rank}, and has no address")
        link = DialledLink(peer)
        self._dial(link)
        return link

    def _adopt(self, link: Link) -> Link:
        """A link over what stands already. [Note: greeted once] A dialler greets once, and learns nothing of it when
        the dialled one drops its link, because it was introduced to others meanwhile, or was greeted before it learned
        that it is the dialled one: without this, the two would never have a link again."""
        prefixes = [prefix for key, prefix in self._fds.values() if key == link.peer.public_key]
        if prefixes:
            link.prefix, *link.waiting = prefixes
            link.rise()
        return link

    def _dial(self, link: DialledLink) -> None:
        try:
            link.dial(self._context, self._keys, self._heartbeat_s)
        except zmq.ZMQError as exc:  # this is no address, or there is no file descriptor left: tried again later
            link.fall(f"it cannot be dialled at {link.peer.address}: {exc.strerror}")
            link.hang_up()
            return
        assert link.socket is not None
        assert link.monitor is not None
        self._watch(link.monitor, lambda events: self._on_dealer_event(link, events))
        self._watch(link.socket, lambda events: self._read_dealer(link, events))

    def _hang_up(self, link: DialledLink) -> None:
        if link.socket is not None and link.monitor is not None:
            self._unwatch(link.socket)
            self._unwatch(link.monitor)
        link.hang_up()

    def _forget(self, link: Link) -> None:
        self._lost.pop(link.peer.rank, None)
        if isinstance(link, DialledLink):
            self._hang_up(link)

    def _redial(self, timeout_s: float | None) -> float | None:
        """Dial again where it is time to; returns how long to wait at most."""
        for link in self._links.values():
            if isinstance(link, DialledLink) and link.socket is None:
                wait_s = link.redial_at_s - time.monotonic()
                if wait_s <= 0:
                    self._dial(link)
                else:
                    timeout_s = wait_s if timeout_s is None else min(timeout_s, wait_s)
        return timeout_s

    # What the sockets report

    def _on_dealer_event(self, link: DialledLink, events: list[Event]) -> None:
        if link.monitor is None:
            return
        for event, _ in read_events(link.monitor):
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                link.rise()
                events.append(Up(link.peer.rank))
                continue
            self._read_dealer(link, events, math.inf)  # what it said before it went counts
            reason = failure(event) or link.trouble or "its connection ended"
            if link.fall(reason):
                events.append(Lost(link.peer.rank, reason))
            self._hang_up(link)
            return

    def _read_dealer(self, link: DialledLink, events: list[Event], limit: float = _MAX_MESSAGES_A_POLL) -> None:
        while link.socket is not None and limit > 0:
            received = read_message(link.socket, self.limits)
            if received is None:
                return
            limit -= 1
            if received.flaw:
                self._drop(f"a frame of device {link.peer.rank} is refused: {received.flaw}")
            elif received.parts != [HELLO]:  # the other end asked whether this connection stands
                events.append(Message(link.peer.rank, received.parts))

    def _on_router_event(self, events: list[Event]) -> None:
        """Connections that ended. Looked up before reading on: a new connection may have got the same descriptor."""
        gone = [(fd, self._fds.pop(fd, None)) for _, fd in read_events(self._router_monitor)]
        routes = [route for _, route in gone if route is not None]
        self._ended.extend(prefix for _, prefix in routes)
        self._ended_unheard = {fd for fd, route in gone if route is None}
        self._read_router(events, math.inf)  # what they said before they went counts
        self._ended_unheard = set()
        for key, prefix in routes:
            link = self._links.get(self._ranks.get(key, -1))
            if link is None or isinstance(link, DialledLink):
                continue
            if link.prefix != prefix:
                link.waiting = [other for other in link.waiting if other != prefix]
            elif link.fall("its connection ended"):
                events.append(Lost(link.peer.rank, link.trouble))
                if link.waiting:
                    self._raise_link(link, link.waiting.pop(0), events)

    def _read_router(self, events: list[Event], limit: float = _MAX_MESSAGES_A_POLL) -> None:
        while limit > 0:
            received = read_message(self._router, self.limits, _NUM_PREFIXES)
            if received is None:
                return
            limit -= 1
            link = self._links.get(self._ranks.get(received.key, -1))
            dials_us = link is not None and not isinstance(link, DialledLink)
            if not received.flaw and received.parts[1:] == [HELLO]:
                self._greet(link if dials_us else None, received, events)
            elif link is None or not dials_us:
                self._drop("a frame is refused: its connection's key does not belong to a device that dials this one")
            elif received.flaw:
                self._drop(f"a frame of device {link.peer.rank} is refused: {received.flaw}")
            else:
                route = (bytes(received.parts[0]),)
                is_of_link = route == link.prefix or not link.prefix
                events.append(Message(link.peer.rank, received.parts[1:], route, is_of_link))

    def _greet(self, link: Link | None, received: Received, events: list[Event]) -> None:
        """A new connection is the link, unless one stands: two coordinators may have the same key, and what they want
        must not be mixed. The second one waits; heartbeats end a connection that is only thought to stand. One whose
        key dials us no more, or not yet, is remembered (Note: greeted once)."""
        prefix = (bytes(received.parts[0]),)
        if prefix in self._ended or any(prefix == known for _, known in self._fds.values()):
            return  # no greeting: another empty message, perhaps of a connection that has ended since
        source = received.source
        if source in self._ended_unheard and not self._stands(prefix):  # it greeted and ended while this one was busy
            self._ended.append(prefix)
            return
        self._fds[source] = (received.key, prefix)
        if link is None:
            return
        if not link.is_up:
            self._raise_link(link, prefix, events)
        elif len(link.waiting) < _MAX_WAITING:
            link.waiting.append(prefix)

    def _stands(self, prefix: tuple[bytes, ...]) -> bool:
        """Whether a connection is there. Descriptors do not tell: a new connection may have that of one that ended."""
        try:
            write_message(self._router, [*prefix, HELLO])
        except zmq.ZMQError:
            return False
        return True

    def _raise_link(self, link: Link, prefix: tuple[bytes, ...], events: list[Event]) -> None:
        link.prefix = prefix
        link.rise()
        events.append(Up(link.peer.rank))

    def _read_fd(self, fd: int, events: list[Event]) -> None:
        if not os.read(fd, 4096):
            self._unwatch(fd)
            self.is_orphan = True
            events.append(Lost(0, "the process that started this one is gone"))


def _why_not_bound(address: str, exc: zmq.ZMQError) -> str:
    advice = {
        errno.EADDRINUSE: "does a worker run here already (ss -ltnp shows who listens)? Else take another port",
        errno.EADDRNOTAVAIL: "no interface of this device has that address: give one that it has, or 0.0.0.0 for all",
        errno.ENODEV: "no interface of this device has that address: give one that it has, or 0.0.0.0 for all",
    }.get(exc.errno or 0, "give an address of this device, and a port above 1023")
    return f"cannot listen on {address.removeprefix('tcp://')}: {zmq.strerror(exc.errno or 0)}; {advice}"
