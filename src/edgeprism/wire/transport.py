"""The transport: how a device talks to the others. All of its rules live here; an implementation only moves bytes.

Life story. One thread owns a transport. It waits until its peers are there (``wait_connected``), then lives on
``receive``, which hands it control frames. Inside a block it calls ``start``, computes while the bytes travel, and
``wait``s. Every wait has a deadline, and names the devices that it waited for in vain. When the coordinator announces
a newer epoch, waits end in RequestAborted; the thread unwinds to ``receive``, reads the EPOCH frame and sets
``epoch``. ``close`` ends it.

Other threads may call ``wake``, which ends a ``watch`` early, and ``interrupt``, after which every wait ends in
RequestAborted.

An implementation gives ``_post``, ``_poll``, ``_wake``, ``connected`` and ``close``.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from edgeprism.errors import ForeignProtocol, FrameError, PeerError, PeerFault, PeerLost, PeerTimeout, RequestAborted
from edgeprism.wire.frame import (
    DEFAULT_LIMITS,
    NO_RANK,
    ORDERS,
    Buffer,
    Frame,
    Kind,
    Limits,
    Part,
    decode,
    dump_meta,
    encode,
)
from edgeprism.wire.mailbox import Mailbox
from edgeprism.wire.stats import Stats

log = logging.getLogger(__name__)

COORDINATOR = 0
TELL_FOREIGNER_S = 5.0


class Message(NamedTuple):
    """A peer, whose rank the implementation vouches for, sent these parts."""

    sender: int
    parts: Sequence[Part]
    route: tuple[bytes, ...] = ()
    """Where an answer goes that is for the connection it came by, where that need not be the peer's link."""
    is_of_link: bool = True
    """Whether it came by the peer's link; False for a second connection with the same key."""


class Lost(NamedTuple):
    """A peer is gone."""

    peer: int
    reason: str


class Up(NamedTuple):
    """A peer is there (again)."""

    peer: int


Event: TypeAlias = Message | Lost | Up
_Transport = TypeVar("_Transport", bound="Transport")  # not Self: beartype takes it in decorated classes only


class Transport(ABC):
    """See the module. ``rank`` is this device's index, 0 the coordinator's; ``num_devices`` counts this device too."""

    rank: int
    num_devices: int

    def __init__(self, rank: int, num_devices: int, limits: Limits = DEFAULT_LIMITS) -> None:
        self.rank = rank
        self.num_devices = num_devices
        self.limits = limits
        self.stats = Stats()
        self.is_orphan = False
        """The process that started this one is gone, for good; a peer in ``lost`` may come back."""
        self._mailbox = Mailbox()
        self._is_interrupted = self._is_woken = False
        self._handlers_by_kind: dict[Kind, Callable[[Frame], None]] = {}
        self._handled: Message | None = None  # while a handler runs
        self._foreign: dict[int, str] = {}
        self._told_foreigner_at: dict[int, float] = {}
        self._lost: dict[int, str] = {}
        self._num_refused = 0
        self.num_losses: Counter[int] = Counter()
        """How often each peer was lost, also for a moment."""
        self.forgets_with_coordinator = False
        """Whether all that the coordinator said is void once it is lost: the next one may be another, which counts its
        epochs anew."""

    @property
    def epoch(self) -> int:
        """Work of an older epoch is dropped. Setting it drops what was kept of older ones, too."""
        return self._mailbox.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.stats.frames_dropped += self._mailbox.advance(epoch)

    def send(
        self,
        peer: int,
        kind: Kind,
        *,
        epoch: int,
        request: int = 0,
        block: int = -1,
        meta: Mapping[str, Any] | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> int:
        """Queue one frame, its buffers copied, and return its bytes; never blocks. PeerLost if it cannot be taken."""
        frame = Frame(
            kind=kind, epoch=epoch, request=request, block=block, sender=self.rank,
            meta=dump_meta(meta), arrays=tuple(buffers),
        )  # fmt: skip
        return self._send(frame, (peer,))

    def start(
        self,
        buffers: Sequence[Buffer],
        *,
        send_to: Sequence[int],
        receive_from: Sequence[int],
        epoch: int,
        request: int,
        block: int,
        deadline: float | None = None,
    ) -> Exchange:
        """Send the buffers to some peers at once; the returned exchange waits for what others send for the same block.

        The buffers are copied: they may change as soon as this returns. ``deadline``: that of the wait to come, for
        transports that can be told not to overlap (gloo), which wait in here.
        PeerLost if some peers cannot take it; the rest were sent to.
        """
        if send_to:
            frame = Frame(
                kind=Kind.DATA, epoch=epoch, request=request, block=block, sender=self.rank, arrays=tuple(buffers)
            )
            self._send(frame, send_to)
        return Exchange(self, tuple(receive_from), epoch, request, block)

    def receive(self, timeout_s: float | None) -> Frame | None:
        """The next control frame of any peer; None when time is out, or a peer has just been lost (see ``lost``)."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        is_last = False
        while True:
            frame = self._mailbox.next_control()
            if frame is not None or is_last:
                return frame
            remaining_s = None if end is None else end - time.monotonic()
            is_last = self._pump(remaining_s) or (remaining_s is not None and remaining_s <= 0)

    def watch(self, timeout_s: float) -> None:
        """Take in what happens, until something has or time is out; frames stay for ``receive``. Returns at once when
        ``wake`` was called since the last time."""
        is_woken, self._is_woken = self._is_woken, False
        self._pump(0.0 if is_woken else timeout_s)

    def wake(self) -> None:
        """From any thread: a ``watch`` that waits ends now, or the next one at once."""
        self._is_woken = True
        self._wake()

    def interrupt(self) -> None:
        """From any thread: from now on every wait ends in RequestAborted, for this device is about to close."""
        self._is_interrupted = True
        self._wake()

    def serve(self, kind: Kind, handler: Callable[[Frame], None]) -> None:
        """Have frames of this control kind handled as they come, whatever else is waited for."""
        self._handlers_by_kind[kind] = handler

    def answer(
        self, question: Frame, kind: Kind, *, meta: Mapping[str, Any] | None = None, buffers: Sequence[Buffer] = ()
    ) -> None:
        """For a handler: answer the frame in hand by the connection that it came by. PeerLost if that is gone."""
        assert self._handled is not None, "only the frame that a handler has in hand can be answered"
        frame = Frame(
            kind=kind, epoch=question.epoch, request=question.request, sender=self.rank,
            meta=dump_meta(meta), arrays=tuple(buffers),
        )  # fmt: skip
        self._post_back(self._handled, encode(frame, self.limits))

    def wait_control(
        self, kinds: Collection[Kind], from_peers: Iterable[int], deadline: float, *, epoch: int, request: int = 0
    ) -> dict[int, Frame]:
        """One control frame of these kinds from each peer; other control frames stay for ``receive``.

        ``deadline`` is in seconds of ``time.monotonic``. Raises PeerTimeout, PeerLost, what the FAULT of a peer for
        this epoch and request says (PeerFault, or whom it blames for what), or RequestAborted.
        """
        wanted = frozenset(kinds)

        def take(peer: int) -> Frame | None:
            return self._mailbox.take_control(wanted, (peer,), epoch, request)

        return self._gather(take, from_peers, deadline, epoch, request, "/".join(kind.name for kind in kinds))

    def wait_connected(self, deadline: float, peers: Iterable[int] | None = None) -> None:
        """Wait until the peers (all, if none are given) can be reached. PeerTimeout names those that cannot."""
        wanted = set(range(self.num_devices) if peers is None else peers) - {self.rank}
        is_last = False
        while missing := wanted - self.connected():
            if is_last:
                raise PeerTimeout(f"no connection with {self._name_all(missing)}", tuple(sorted(missing)))
            remaining_s = deadline - time.monotonic()
            is_last = remaining_s <= 0
            self._pump(remaining_s)

    def lost(self) -> dict[int, str]:
        """Peers known to be gone, with the reason. One that speaks again leaves."""
        self._pump(0.0)
        return dict(self._lost)

    def foreign(self) -> dict[int, str]:
        """Peers that speak another protocol, and what to do about it."""
        return dict(self._foreign)

    def why_absent(self, peer: int) -> str:
        """What is known of a peer that is lost, was never reached or speaks another protocol; empty if nothing."""
        return self._lost.get(peer) or self._foreign.get(peer) or self._describe(peer)

    def check_interrupted(self) -> None:
        """RequestAborted once ``interrupt`` was called."""
        if self._is_interrupted:
            raise RequestAborted("this device is closing")

    def check_epoch(self, epoch: int) -> None:
        """RequestAborted if a newer epoch has been announced, or the coordinator was lost: for long work without
        exchanges. Never blocks."""
        self._pump(0.0)
        if self.epoch != epoch:
            raise RequestAborted("the coordinator that wanted this is gone")
        if self._mailbox.newest_epoch > epoch:
            raise RequestAborted(f"the coordinator went from epoch {epoch} to {self._mailbox.newest_epoch}")

    def forget(self) -> None:
        """Drops all that has come, and the epoch: the coordinator has ended, and the next one counts anew."""
        self._mailbox.forget()

    def take_stats(self) -> Stats:
        """The counters since the last call."""
        taken, self.stats = self.stats, Stats()
        return taken

    @abstractmethod
    def connected(self) -> set[int]:
        """The peers that a frame would reach now."""

    @abstractmethod
    def close(self) -> None:
        """Leave; the others see this device as lost. Frames not sent within a moment are dropped. Closing twice is
        fine."""

    @abstractmethod
    def _post(self, peer: int, parts: Sequence[Part]) -> None:
        """Queue a message without blocking. Raises PeerLost."""

    def _post_back(self, message: Message, parts: Sequence[Part]) -> None:
        """Queue an answer for the connection that a message came by, without blocking. Raises PeerLost."""
        self._post(message.sender, parts)

    @abstractmethod
    def _poll(self, timeout_s: float | None) -> list[Event]:
        """What has happened, in order; waits up to ``timeout_s`` (None: for ever) if nothing has. May return early."""

    @abstractmethod
    def _wake(self) -> None:
        """From any thread: make ``_poll`` return, now or as soon as it is called."""

    def _describe(self, peer: int) -> str:
        """What is known of a peer that does not answer, for the error message; empty if nothing."""
        return ""

    def __enter__(self: _Transport) -> _Transport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, frame: Frame, peers: Sequence[int]) -> int:
        began = time.perf_counter()
        parts = encode(frame, self.limits)
        num_bytes = sum(map(len, parts))
        gone: dict[int, str] = {}
        for peer in peers:
            assert peer != self.rank, "a device does not send to itself"
            try:
                self._post(peer, parts)
                self.stats.frames_sent += 1
                self.stats.bytes_sent += num_bytes
            except PeerLost as exc:
                gone[peer] = str(exc)
        self.stats.send_s += time.perf_counter() - began
        if gone:
            raise PeerLost("; ".join(gone.values()), tuple(gone))
        return num_bytes

    def _gather(
        self,
        take: Callable[[int], Frame | None],
        peers: Iterable[int],
        deadline: float,
        epoch: int,
        request: int,
        what: str,
    ) -> dict[int, Frame]:
        missing = set(peers)
        frames: dict[int, Frame] = {}
        is_last = False
        while True:
            frames.update((peer, frame) for peer in missing if (frame := take(peer)) is not None)
            missing -= frames.keys()
            if not missing:
                return frames
            self._raise_if_hopeless(missing, epoch, request, what)
            if is_last:
                message = f"{self._name_all(missing)} sent no {what} before the deadline"
                raise PeerTimeout(message, tuple(sorted(missing)))
            remaining_s = deadline - time.monotonic()
            is_last = remaining_s <= 0
            self._pump(remaining_s)

    def _raise_if_hopeless(self, missing: Collection[int], epoch: int, request: int, what: str) -> None:
        if self._mailbox.newest_epoch > epoch:
            raise RequestAborted(f"the coordinator went from epoch {epoch} to {self._mailbox.newest_epoch}")
        fault = self._mailbox.take_control((Kind.FAULT,), missing, epoch, request)
        if fault is not None:
            raise self._as_error(fault)
        gone = sorted(peer for peer in missing if peer in self._lost)
        if gone:
            reasons = "; ".join(f"device {peer} is gone: {self._lost[peer]}" for peer in gone)
            raise PeerLost(f"{reasons} (waiting for {what})", tuple(gone))

    def _as_error(self, fault: Frame) -> PeerError:
        """What a FAULT says: its sender failed, or blames others that failed it, or was given what cannot be used."""
        reason, cause = fault.info.get("message", "no reason given"), fault.info.get("cause")
        if cause == "input":
            return PeerFault(f"device {fault.sender} refused the request: {reason}")
        blamed = fault.info.get("blamed")
        ranks = {rank for rank in blamed if rank in range(self.num_devices)} if isinstance(blamed, list) else set()
        if not ranks:
            return PeerFault(f"device {fault.sender} failed: {reason}", (fault.sender,))
        kind = {"timeout": PeerTimeout, "lost": PeerLost}.get(str(cause), PeerFault)
        return kind(f"{reason} (said device {fault.sender})", tuple(sorted(ranks - {self.rank})))

    def _name_all(self, peers: Iterable[int]) -> str:
        texts = ((peer, self.why_absent(peer)) for peer in sorted(peers))
        return ", ".join(f"device {peer} ({text})" if text else f"device {peer}" for peer, text in texts)

    def _pump(self, timeout_s: float | None) -> bool:
        """Take in what has happened; True if a peer was lost by it."""
        self.check_interrupted()
        began = time.perf_counter()
        events = self._poll(None if timeout_s is None else max(0.0, timeout_s))
        polled = time.perf_counter()
        has_lost = False
        for event in events:
            if isinstance(event, Message):
                self._accept(event)
            elif isinstance(event, Lost):
                has_lost = True
                self._lost[event.peer] = event.reason
                self.num_losses[event.peer] += 1
                if event.peer == COORDINATOR and self.forgets_with_coordinator:
                    self._mailbox.forget()
                log.info("device %d is gone: %s", event.peer, event.reason)
            elif self._lost.pop(event.peer, None):
                log.info("device %d is back", event.peer)
        self.stats.wait_s += polled - began
        self.stats.receive_s += time.perf_counter() - polled
        return has_lost

    def _accept(self, message: Message) -> None:
        try:
            frame = decode(message.parts, self.limits)
            if frame.sender == NO_RANK:
                frame = replace(frame, sender=message.sender)
            if frame.sender != message.sender:
                raise FrameError(f"it says that it comes from device {frame.sender}")
            if frame.kind in ORDERS and frame.sender != COORDINATOR:
                raise FrameError(f"{frame.kind.name} may come from the coordinator only")
        except ForeignProtocol as exc:
            self._meet_foreigner(message, str(exc))
            return
        except FrameError as exc:
            self._drop(f"a frame of device {message.sender} is refused: {exc}")
            return
        self._foreign.pop(message.sender, None)
        if not message.is_of_link and frame.kind not in self._handlers_by_kind:
            self._turn_away(message, frame)
            return
        self._lost.pop(message.sender, None)
        self.stats.frames_received += 1
        self.stats.bytes_received += sum(map(len, message.parts))
        handler = self._handlers_by_kind.get(frame.kind)
        if handler is not None:
            self._handled = message
            handler(frame)
            self._handled = None
        elif not self._mailbox.put(frame):
            self.stats.frames_dropped += 1

    def _meet_foreigner(self, message: Message, why: str) -> None:
        """Names both numbers here, and sends a frame so that the other side does, too."""
        self._foreign[message.sender] = why
        self._drop(f"device {message.sender} is left out: {why}")
        now = time.monotonic()
        if now - self._told_foreigner_at.get(message.sender, -TELL_FOREIGNER_S) >= TELL_FOREIGNER_S:
            self._told_foreigner_at[message.sender] = now
            with suppress(PeerLost):
                self._post_back(message, encode(Frame(kind=Kind.READY, epoch=0, sender=NO_RANK), self.limits))

    def _turn_away(self, message: Message, frame: Frame) -> None:
        """Tells a second coordinator with the same key that it has to wait for the end of the first."""
        if frame.kind is Kind.EPOCH:
            busy = Frame(kind=Kind.READY, epoch=frame.epoch, sender=NO_RANK, meta=dump_meta({"busy": True}))
            with suppress(PeerLost):
                self._post_back(message, encode(busy, self.limits))

    def _drop(self, why: str) -> None:
        self.stats.frames_dropped += 1
        self._num_refused += 1
        if self._num_refused & (self._num_refused - 1) == 0:  # 1, 2, 4, 8...: a flood must not flood the log
            log.warning("%s (%d refused so far)", why, self._num_refused)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange under way, made by ``Transport.start``."""

    transport: Transport
    receive_from: tuple[int, ...]
    epoch: int
    request: int
    block: int

    def wait(self, deadline: float) -> dict[int, Frame]:
        """The DATA frame of each peer. ``deadline`` is in seconds of ``time.monotonic``; what has come by then is
        taken.

        Raises PeerTimeout or PeerLost (``peers``: those that sent nothing), what a peer's FAULT says, or RequestAborted
        when an EPOCH frame announced a newer epoch; that frame stays for ``receive``.
        """
        mailbox = self.transport._mailbox

        def take(peer: int) -> Frame | None:
            return mailbox.take_data(peer, self.epoch, self.request, self.block)

        return self._wait(take, deadline)

    def wait_here(self, deadline: float) -> None:
        """Wait likewise until all frames are here, and leave them for ``wait``."""
        mailbox = self.transport._mailbox

        def look(peer: int) -> Frame | None:
            return mailbox.look_for_data(peer, self.epoch, self.request, self.block)

        self._wait(look, deadline)

    def _wait(self, take: Callable[[int], Frame | None], deadline: float) -> dict[int, Frame]:
        return self.transport._gather(
            take, self.receive_from, deadline, self.epoch, self.request, f"rows of block {self.block}"
        )
