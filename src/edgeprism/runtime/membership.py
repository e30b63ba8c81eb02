"""Which devices can be used right now: epochs, readiness, models, and what is done when one fails.

A device is *ready* when it has answered the newest epoch and holds the model; a strategy whose devices send each other
something needs a link between every two of them, too. Whenever something goes wrong the coordinator announces a new
epoch: everyone drops what it was doing and says READY, and which others it has a link with. Who does not is left out
until it does; who lacks the model is asked to load it. So a device that was stopped, cut off or late comes back by
itself.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from edgeprism.errors import FrameError, PeerError, PeerFault, PeerTimeout
from edgeprism.runtime.messages import Introduction, LoadOrder, linked_ranks
from edgeprism.runtime.weights import WeightFiles
from edgeprism.wire.frame import Buffer, Frame, Kind
from edgeprism.wire.transport import COORDINATOR, Transport

log = logging.getLogger(__name__)
progress = logging.getLogger("edgeprism.progress")

Tables = tuple[list[dict[str, Any]], tuple[Buffer, ...]]
"""Calibrations as they are sent: see ``calibrations.tables_to_send``."""

NO_TABLES: Tables = ([], ())

LOAD_TIMEOUT_S = 60.0  # without progress; a device that takes longer is used when it is done
JOIN_TIMEOUT_S = 30.0
LINK_TIMEOUT_S = 2.0
READY_TIMEOUT_S = 0.25  # an idle or waiting worker answers within milliseconds, one in a block when that block ends
TELL_AGAIN_S = 0.5
RETRY_S = 5.0  # a device that failed is left out for this long, even if it answers
RETRY_LOAD_S = 30.0  # one that could not load the model
RETRY_WRONG_S = 600.0  # one that computes something else
SILENT = "it does not answer"
BUSY = "it serves another coordinator with this key; it is used when that one has ended"
FAILED = "it failed a moment ago"


class Membership:
    """The coordinator's view of its workers."""

    def __init__(self, transport: Transport, introductions: Mapping[int, Introduction] | None = None) -> None:
        self._transport = transport
        self.pass_on: Callable[[Frame], None] = lambda frame: None
        """Is given the frames that are answers to requests."""
        self.check: Callable[[Frame], str] = lambda loaded: ""
        """Says what is wrong with what a device computes, as its LOADED frame shows; empty if nothing."""
        self.versions: dict[int, str] = {}
        """What each device runs, as it says."""
        self._introductions = introductions or {}
        self._peers = frozenset(range(transport.num_devices)) - {transport.rank}
        self._num_losses = dict(transport.num_losses)
        self._told_at: dict[int, float] = {}  # when the newest epoch was last sent to a device
        self._answered: set[int] = set()
        self._busy: set[int] = set()  # serve another coordinator
        self._links: dict[int, frozenset[int]] = {}  # what each device that answered has a link with
        self._orders: dict[int, LoadOrder] = {}
        self._order_number = 0
        self._weights: WeightFiles | None = None
        self._tables = NO_TABLES
        self._shown: dict[int, int] = {}  # per cent of the weights, as last said
        self._num_chunks = 0  # of weights that devices have asked for
        self._asked: dict[int, int] = {}  # the epoch in which a device was last asked to load the model
        self._holds_model: set[int] = set()
        self._checked: set[int] = set()  # those whose LOADED frame for this order was as it should be
        self._used: frozenset[int] = frozenset()  # when ``ready`` was last asked
        self._left_out: dict[int, tuple[float, str]] = {}  # until when, and why
        self.epoch = transport.epoch
        self.macs_per_s: dict[int, float] = {}

    def load(
        self,
        orders: LoadOrder | Mapping[int, LoadOrder],
        weights: WeightFiles | None = None,
        tables: Tables = NO_TABLES,
    ) -> None:
        """Has all workers load the model at the same time, or those that have an order of their own; one that cannot is
        left out for now, with a warning.

        ``weights`` are sent to workers that ask for them, ``tables`` (of calibrations) with the order.
        """
        self._weights, self._tables = weights, tables
        self._transport.serve(Kind.FETCH, self._send_weights)
        self._checked.clear()
        self.new_epoch()
        self._orders = dict.fromkeys(self._peers, orders) if isinstance(orders, LoadOrder) else dict(orders)
        self._order_number = 1 + secrets.randbelow(2**31 - 1)
        self._await_answers(self._orders.keys() & self._transport.connected(), JOIN_TIMEOUT_S)
        self._ask_to_load()
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while self._loading() - self._transport.lost().keys() and time.monotonic() < deadline:
            had = self._num_chunks
            self._take_answers(0.05)
            if self._num_chunks > had:  # it goes on
                deadline = time.monotonic() + LOAD_TIMEOUT_S
        deadline = time.monotonic() + LINK_TIMEOUT_S
        while self._holds_model - set(self.ready()) - self._transport.lost().keys() and time.monotonic() < deadline:
            self._take_answers(0.05)  # workers that have just been introduced are still dialling each other
        for peer, reason in self.absent(linked=False).items():
            log.warning("device %d is left out for now: %s", peer, reason)
        for peer in sorted(set(self.ready(linked=False)) - set(self.ready())):
            log.warning("device %d %s; it gets whole samples only", peer, self._no_link(peer, self.ready()))

    def ready(self, *, linked: bool = True) -> tuple[int, ...]:
        """The devices that can be used now, the coordinator first. ``linked``: by a strategy whose devices send each
        other something, so that each of them needs a link with every other."""
        self._forget_lost()
        self._tell_new_epoch()
        self._take_answers(0.0)
        self._ask_to_load()
        now = time.monotonic()
        usable = {peer for peer in self._answered & self._holds_model if not self._is_left_out(peer, now)}
        while linked and (unlinked := {peer: count for peer in usable if (count := len(self._unlinked(peer, usable)))}):
            usable.remove(max(unlinked, key=lambda peer: (unlinked[peer], peer)))
        if linked:
            for peer in sorted(usable - self._used):
                log.info("device %d is used from now on", peer)
            self._used = frozenset(usable)
        return (0, *sorted(usable))

    def absent(self, *, linked: bool = True) -> dict[int, str]:
        """The devices that ``ready`` leaves out, and why."""
        ready, now = self.ready(linked=linked), time.monotonic()
        return {peer: self._why(peer, ready, now) for peer in sorted(self._peers - set(ready))}

    def lost(self) -> dict[int, str]:
        """Devices that are known to be gone, with the reason."""
        return self._transport.lost()

    def wait_for(self, devices: Collection[int], timeout_s: float) -> None:
        """Until these have answered the newest epoch, or are lost, or time is out: who computes answers when that is
        done."""
        now = time.monotonic()
        asked = {device for device in devices if device and not self._is_left_out(device, now)}
        self._await_answers(asked & self._transport.connected(), timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Takes in what devices say for so long."""
        self._take_answers(timeout_s)
        self._tell_new_epoch()
        self._ask_to_load()

    @property
    def loading(self) -> set[int]:
        """The devices that were asked to load the model in this epoch, and have not said how it went."""
        return self._loading() - self._transport.lost().keys()

    @property
    def answering(self) -> tuple[int, ...]:
        """The devices that could be given an order to load, the coordinator first."""
        now = time.monotonic()
        return (0, *sorted(peer for peer in self._answered if not self._is_left_out(peer, now)))

    def introduce(self, timeout_s: float) -> tuple[int, ...]:
        """Tells everybody that is connected who it is; those that have answered, and serve nobody else."""
        self.new_epoch()
        self._await_answers(self._peers & self._transport.connected(), timeout_s)
        return tuple(sorted(self._answered))

    def new_epoch(self) -> None:
        """Everyone drops what it is doing; nobody is ready until it has answered."""
        self.epoch += 1
        self._transport.epoch = self.epoch
        self._told_at.clear()
        self._answered.clear()
        self._tell_new_epoch()

    def end_texts(self, devices: Collection[int]) -> None:
        """Tells these that no text is continued any more: they need not keep keys and values."""
        for peer in {*devices} & self._transport.connected() - {COORDINATOR}:
            with suppress(PeerError):  # who is gone keeps nothing
                meta = {"order": self._order_number, "texts_ended": True}
                self._transport.send(peer, Kind.EPOCH, epoch=self.epoch, meta=meta)

    def recover(self, exc: PeerError, devices: Collection[int]) -> tuple[str, ...]:
        """After a failure among ``devices``: a new epoch, and those to blame are left out. Says in words what happened.
        Takes 0.25 s at most."""
        lost = self._transport.lost()
        self.new_epoch()
        workers = set(devices) - {0}
        self._await_answers(workers - lost.keys(), READY_TIMEOUT_S)
        silent = workers - self._answered
        blamed = workers & set(exc.peers)
        if isinstance(exc, PeerTimeout) and blamed & silent:
            blamed &= silent  # the others sent nothing because they waited, too
        failures = [] if isinstance(exc, PeerFault) else [f"device {p}: {lost.get(p, SILENT)}" for p in blamed & silent]
        late = [] if exc.peers else sorted(silent - lost.keys())
        unheard = "".join(f"; device {peer} does not answer yet" for peer in late)
        failures = sorted(failures) or [f"{exc}{unheard}"]
        failures += [f"device {peer}: {lost[peer]}" for peer in sorted(lost.keys() & workers - blamed)]
        until = time.monotonic() + RETRY_S
        self._left_out.update(dict.fromkeys(blamed, (until, FAILED)))
        for failure in failures:
            log.warning("%s; the request %s", failure, "goes on without it" if blamed else "begins anew")
        return tuple(failures)

    def suspect(self, peer: int, reason: str) -> None:
        """A device failed while others go on: it is left out, and has to answer again before it is used."""
        self._answered.discard(peer)
        self._told_at.pop(peer, None)
        self._left_out[peer] = (time.monotonic() + RETRY_S, FAILED)
        log.warning("%s; its requests go on without it", reason)

    def _forget_lost(self) -> None:
        """Who was lost, if only for a moment, has to answer again, and may have dropped what it was asked to load."""
        self._transport.lost()  # takes in what has happened
        for peer, count in self._transport.num_losses.items():
            if count != self._num_losses.get(peer, 0):
                self._num_losses[peer] = count
                self._answered.discard(peer)
                self._told_at.pop(peer, None)
                self._asked.pop(peer, None)

    # Saying

    def _tell_new_epoch(self) -> None:
        """Tells those who have not answered, again and again: they may have been away, or their answer may be lost.
        Those who lacked a link may have it by now."""
        now = time.monotonic()
        silent = self._peers - self._answered
        unlinked = {peer for peer in self._answered if self._unlinked(peer, self._answered)}
        for peer in (silent | unlinked) & self._transport.connected():
            if now - self._told_at.get(peer, -TELL_AGAIN_S) < TELL_AGAIN_S:
                continue
            try:
                meta: dict[str, Any] = {"order": self._order_number}
                if known := self._introductions.get(peer):
                    meta["introduction"] = known.to_json()
                self._transport.send(peer, Kind.EPOCH, epoch=self.epoch, meta=meta)
                self._told_at[peer] = now
            except PeerError:
                continue  # it has just gone

    def _ask_to_load(self) -> None:
        """Asks those who lack the model. One that answered a newer epoch than it was asked in has dropped the order."""
        now = time.monotonic()
        for peer in sorted((self._answered & self._orders.keys()) - self._holds_model - self._loading()):
            if self._is_left_out(peer, now):
                continue
            try:
                names, tables = self._tables
                meta = {**self._orders[peer].to_json(), "calibrations": names}
                self._transport.send(
                    peer, Kind.LOAD, epoch=self.epoch, request=self._order_number, meta=meta, buffers=tables
                )
                self._asked[peer] = self.epoch
            except PeerError:
                continue  # it has just gone

    def _send_weights(self, question: Frame) -> None:
        """As soon as they are asked for, also in the middle of a request: so the link to a board that comes late is
        busy, and a chunk costs those at work little."""
        peer = question.sender
        if self._weights is None or question.request != self._order_number:
            return
        try:
            self._num_chunks += 1
            meta, buffers = self._weights.answer(question.info)
            self._transport.send(
                peer, Kind.CHUNK, epoch=question.epoch, request=question.request, meta=meta, buffers=buffers
            )
            if had := self._weights.had_before(question.info):
                self._show_progress(peer, *had)
        except (FrameError, OSError, PeerError) as exc:
            log.warning("device %d gets no weights: %s", peer, exc)

    def _show_progress(self, peer: int, had_bytes: int, wanted_bytes: int) -> None:
        percent, shown = 100 * had_bytes // max(1, wanted_bytes), self._shown.get(peer, -1)
        if percent > shown or percent == 0:
            self._shown[peer] = percent
            if percent // 10 != shown // 10:
                progress.info("device %d has %d %% of %.1f MB of weights", peer, percent, wanted_bytes / 1e6)

    # Hearing

    def _await_answers(self, peers: Collection[int], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (
            set(peers) - self._answered - self._busy - self._transport.lost().keys() - self._transport.foreign().keys()
        ):
            self._tell_new_epoch()
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return
            self._take_answers(min(remaining_s, 0.05))

    def _take_answers(self, timeout_s: float) -> None:
        frame = self._transport.receive(timeout_s)
        while frame is not None:
            try:
                self._take_answer(frame)
            except Exception as exc:  # whatever a device says is its own failure, and nobody else's
                log.warning("what device %d says cannot be used: %s: %s", frame.sender, type(exc).__name__, exc)
                self.suspect(frame.sender, f"device {frame.sender} sent what cannot be used")
            frame = self._transport.receive(0.0)

    def _take_answer(self, frame: Frame) -> None:
        peer = frame.sender
        if frame.kind is Kind.READY and frame.info.get("busy"):
            self._busy.add(peer)
        elif frame.kind is Kind.READY and frame.epoch == self.epoch:
            self._busy.discard(peer)
            self._answered.add(peer)
            self._links[peer] = linked_ranks(frame)
            if frame.info.get("holds") == self._order_number and peer in self._checked:
                self._holds_model.add(peer)
            else:  # it was restarted, has served another coordinator since, or was never checked
                self._holds_model.discard(peer)
        elif frame.request == self._order_number and frame.kind is Kind.LOADED:
            self._take_loaded(frame)
        elif frame.request == self._order_number and frame.kind is Kind.FAULT and peer in self._loading():
            del self._asked[peer]
            reason = f"it could not load the model: {frame.info.get('message', 'no reason given')}"
            self._left_out[peer] = (time.monotonic() + RETRY_LOAD_S, reason)
        else:
            self.pass_on(frame)

    def _take_loaded(self, frame: Frame) -> None:
        """A device holds the model: it may be used if it computes what this one does."""
        peer, info = frame.sender, frame.info
        self._asked.pop(peer, None)
        self._checked.discard(peer)
        speed, versions = info.get("macs_per_s"), info.get("versions")
        trouble = self.check(frame)
        if trouble:
            self._left_out[peer] = (time.monotonic() + RETRY_WRONG_S, trouble)
            log.warning("device %d is left out: %s", peer, trouble)
            return
        self.macs_per_s[peer] = self.plausible(speed)
        self.versions[peer] = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""
        self._holds_model.add(peer)
        self._checked.add(peer)
        log.info("device %d holds the model", peer)

    # Knowing

    def _loading(self) -> set[int]:
        """The devices that were asked to load the model and have not said how it went."""
        return {peer for peer, epoch in self._asked.items() if epoch == self.epoch} - self._holds_model

    def plausible(self, macs_per_s: object) -> float:
        """A speed that a device claims, at most a thousand times faster or slower than this one: deadlines follow."""
        own = self.macs_per_s.get(0, 1.0)
        claimed = macs_per_s if isinstance(macs_per_s, int | float) else own
        return float(min(max(claimed, own / 1000), own * 1000))

    def _is_left_out(self, peer: int, now: float) -> bool:
        return peer in self._left_out and self._left_out[peer][0] > now

    def _unlinked(self, peer: int, others: Collection[int]) -> set[int]:
        """Those of ``others`` that ``peer`` has no link with, as either of the two sees it."""
        return {
            other
            for other in others
            if other != peer and not (other in self._links[peer] and peer in self._links[other])
        }

    def _why(self, peer: int, ready: Collection[int], now: float) -> str:
        if trouble := self._transport.why_absent(peer):
            return trouble
        if self._is_left_out(peer, now):
            return self._left_out[peer][1]
        if peer not in self._answered:
            return BUSY if peer in self._busy else SILENT
        if peer not in self._holds_model:
            return "it does not hold the model yet"
        return f"it {self._no_link(peer, ready)}"

    def _no_link(self, peer: int, ready: Collection[int]) -> str:
        unlinked = self._unlinked(peer, self._answered & set(ready))
        return f"has no link with device {', '.join(map(str, sorted(unlinked)))}"
