"""torch.distributed's gloo: the transport that the published systems used, and the baseline to compare with.

Each two devices have a group of their own (``gloo_link``), so that one failure is one failure, and what they say
travels as ZeroMQ's frames do, without pickle. With mode ``all_gather`` an exchange in which all send to all is one
collective (``gloo_gather``) instead of point-to-point messages. ``overlaps=False`` is the published baseline: an
exchange is over before anything is computed. gloo has no keys; see ``gloo_meet`` for where it may be used.
"""

from __future__ import annotations

import queue
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from edgeprism.errors import InputError, PeerLost, PeerTimeout
from edgeprism.need_torch import need_torch
from edgeprism.wire.envelope import pack
from edgeprism.wire.frame import DEFAULT_LIMITS, Buffer, Frame, Kind, Limits, Part, encode
from edgeprism.wire.gloo_gather import GATHERED, Gathering
from edgeprism.wire.gloo_link import GlooLink
from edgeprism.wire.gloo_meet import Place
from edgeprism.wire.transport import COORDINATOR, Event, Exchange, Lost, Transport, Up

Mode = Literal["send_recv", "all_gather"]
_MODES: dict[str, Mode] = {"send_recv": "send_recv", "all_gather": "all_gather"}
_BLOCKING = "blocking"
_MAX_EVENTS_A_POLL = 64
_MAX_POLL_S = 3600.0


@dataclass(frozen=True, slots=True)
class GlooMode:
    """How exchanges travel. As text: ``gloo``, ``gloo:all_gather``, ``gloo:blocking``, ``gloo:all_gather,blocking``."""

    mode: Mode = "send_recv"
    overlaps: bool = True

    @classmethod
    def parse(cls, text: str) -> GlooMode:
        """InputError for anything else."""
        name, _, rest = text.partition(":")
        words = rest.split(",") if rest else []
        modes = [_MODES[word] for word in words if word in _MODES]
        if name != "gloo" or len(modes) > 1 or not set(words) <= {*_MODES, _BLOCKING}:
            raise InputError(
                f"transport {text!r} must be zmq, gloo, gloo:all_gather, gloo:blocking or gloo:all_gather,blocking"
            )
        return cls(mode=modes[0] if modes else "send_recv", overlaps=_BLOCKING not in words)

    def __str__(self) -> str:
        words = [self.mode] * (self.mode != "send_recv") + [_BLOCKING] * (not self.overlaps)
        return ":".join(["gloo", ",".join(words)]) if words else "gloo"


@final
class GlooTransport(Transport):
    """One device on a gloo cluster. ``store`` is ``host:port``, where device 0 keeps it, or the path of a file.

    Device 0 says how exchanges travel, the others take it up. ``interface``: the network that is used, else that of the
    route to the store. A peer of which nothing is heard for ``timeout_s`` is lost, and used again when it is back.
    InputError for a store or interface that cannot be used, off loopback without ``insecure``, and where torch has no
    gloo. What is sent before a link first stands is refused.
    """

    def __init__(
        self,
        rank: int,
        num_devices: int,
        store: str,
        *,
        interface: str | None = None,
        timeout_s: float = 5.0,
        mode: Mode = "send_recv",
        overlaps: bool = True,
        insecure: bool = False,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(rank, num_devices, limits)
        _need_gloo()
        if not 0 <= rank < num_devices:
            raise InputError(f"rank {rank} is none of {num_devices} devices, which count from 0")
        self.how = GlooMode(mode, overlaps)
        self._timeout_s = timeout_s
        self._place = Place(store, interface, insecure)
        if rank == COORDINATOR:
            self._place.keep()
        self._inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # None: wake up
        self._gatherings: dict[tuple[int, tuple[int, ...]], Gathering] = {}
        self._up: set[int] = set()
        self._waits_for_sends = False
        note = {"devices": num_devices, "how": str(self.how)}
        self._links = {
            peer: GlooLink(
                self._place, rank, peer, limits, timeout_s, put=self._inbox.put, note=note, heed=self._heed
            )
            for peer in range(num_devices)
            if peer != rank
        }  # fmt: skip
        # also at the interpreter's end, which threads that wait inside gloo must not outlive
        self._end = weakref.finalize(self, _end, self._place, self._links, self._gatherings, timeout_s)

    @property
    def store(self) -> str:
        """Where the others find this cluster."""
        return self._place.store

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
        """As everywhere; without overlap it returns when all is sent and received, or at the deadline, or after
        ``timeout_s``."""
        peers = set(send_to)  # a collective without one of them would bring nothing to the others either
        gathers = self.how.mode == "all_gather" and peers and peers == set(receive_from) and peers <= self.connected()
        self._waits_for_sends = not self.how.overlaps
        try:
            if gathers:
                frame = Frame(
                    kind=Kind.DATA, epoch=epoch, request=request, block=block, sender=self.rank, arrays=tuple(buffers)
                )
                self._start_gathering(frame, tuple(sorted({self.rank, *send_to})))
            exchange = super().start(
                buffers, send_to=() if gathers else send_to, receive_from=receive_from,
                epoch=epoch, request=request, block=block,
            )  # fmt: skip
        finally:
            self._waits_for_sends = False
        if not self.how.overlaps:
            try:
                in_time = time.monotonic() + self._timeout_s
                exchange.wait_here(in_time if deadline is None else min(in_time, deadline))
            except PeerTimeout:
                pass  # the exchange's own wait has the deadline that counts, and says who is late
        return exchange

    def connected(self) -> set[int]:
        """The peers whose link is up, as far as the events tell that were taken in."""
        return set(self._up)

    def close(self) -> None:
        """What is not sent yet has a moment to go."""
        self._end()

    def _post(self, peer: int, parts: Sequence[Part]) -> None:
        link = self._links.get(peer)
        if link is None:
            raise PeerLost(f"device {peer} is none of the {self.num_devices} of this cluster", (peer,))
        link.post(parts, waits=self._waits_for_sends)

    def _poll(self, timeout_s: float | None) -> list[Event]:
        came: list[Event | None] = []
        try:
            came.append(self._inbox.get_nowait() if timeout_s == 0 else self._inbox.get(timeout=_bounded(timeout_s)))
            while len(came) < _MAX_EVENTS_A_POLL:
                came.append(self._inbox.get_nowait())
        except queue.Empty:
            pass
        events = [event for event in came if event is not None]
        for event in events:
            if isinstance(event, Up):
                self._up.add(event.peer)
            elif isinstance(event, Lost):
                self._up.discard(event.peer)
            elif event.route != GATHERED:
                link = self._links[event.sender]
                link.num_read += 1
                link.num_bytes_read += sum(map(len, event.parts))
        return events

    def _wake(self) -> None:
        self._inbox.put(None)

    def _describe(self, peer: int) -> str:
        link = self._links.get(peer)
        return "" if link is None or link.is_up else link.trouble or "no connection yet"

    def _heed(self, peer: int, note: Mapping[str, Any]) -> str:
        """From a link's thread: what the offer of a lower rank says."""
        if note.get("devices") != self.num_devices:
            return f"device {peer} counts {note.get('devices')} devices, this one {self.num_devices}"
        if peer == COORDINATOR:
            try:
                self.how = GlooMode.parse(str(note.get("how")))
            except InputError as exc:
                return f"device {peer} wants what this one does not know: {exc}"
        return ""

    def _start_gathering(self, frame: Frame, devices: tuple[int, ...]) -> None:
        began = time.perf_counter()
        parts = encode(frame, self.limits)
        key = (frame.epoch, devices)
        if key not in self._gatherings:
            for old in [old for old in self._gatherings if old[0] != frame.epoch]:
                self._gatherings.pop(old).end()
            self._gatherings[key] = Gathering(
                self._place, devices, self.rank, frame.epoch, self.limits, self._timeout_s, self._inbox.put
            )
        self._gatherings[key].post(pack(parts, self.limits))
        self.stats.frames_sent += len(devices) - 1
        self.stats.bytes_sent += (len(devices) - 1) * sum(map(len, parts))
        self.stats.send_s += time.perf_counter() - began


def _end(
    place: Place,
    links: Mapping[int, GlooLink],
    gatherings: Mapping[tuple[int, tuple[int, ...]], Gathering],
    timeout_s: float,
) -> None:
    for gathering in gatherings.values():
        gathering.end()
    for link in links.values():
        link.close()
    for link in links.values():
        link.join()
    for gathering in gatherings.values():
        gathering.join(timeout_s)
    place.leave()


def _bounded(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else min(timeout_s, _MAX_POLL_S)


def _need_gloo() -> None:
    need_torch()
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_gloo_available()):
        raise InputError("the torch of this device was built without gloo: use --transport zmq")
