"""Which devices can be used right now: epochs, readiness, and what is done when one fails.

A device is *ready* when it holds the model and has answered the newest epoch. Whenever something goes wrong the
coordinator announces a new epoch: everyone drops what it was doing and says READY, and which others it has a link with.
Who does not is left out until it does, so a device that was stopped or cut off comes back by itself; and devices that
cannot reach each other are not used together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from edgeprism.errors import PeerError
from edgeprism.runtime.messages import LoadOrder, linked_ranks
from edgeprism.wire.frame import Frame, Kind
from edgeprism.wire.transport import Transport

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 600.0
JOIN_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 0.25  # an idle or waiting worker answers within milliseconds, one in a block when that block ends
TELL_AGAIN_S = 0.5
RETRY_FAULT_S = 5.0  # a device that failed, and yet answers, is left out for this long


class Membership:
    """The coordinator's view of its workers."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._peers = frozenset(range(transport.num_devices)) - {transport.rank}
        self._told_at: dict[int, float] = {}  # when the newest epoch was last sent to a device
        self._answered: set[int] = set()
        self._links: dict[int, frozenset[int]] = {}  # what each device that answered has a link with
        self._holds_model: set[int] = set()
        self._left_out_until: dict[int, float] = {}
        self.epoch = transport.epoch
        self.macs_per_s: dict[int, float] = {}

    def load(self, order: LoadOrder) -> None:
        """Has all workers load the model at the same time; one that cannot is left out, with a warning."""
        self.new_epoch()
        self._await_answers(self._peers, JOIN_TIMEOUT_S)
        for silent in sorted(self._peers - self._answered):
            log.warning("device %d is left out: %s", silent, self._transport.lost().get(silent, "it does not answer"))
        asked = [peer for peer in sorted(self._answered) if self._order(peer, order)]
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        for peer in asked:
            try:
                loaded = self._transport.wait_control((Kind.LOADED,), (peer,), deadline, epoch=self.epoch)[peer]
            except PeerError as exc:
                log.warning("device %d is left out: %s", peer, exc)
                continue
            self.macs_per_s[peer] = max(1.0, float(loaded.info.get("macs_per_s", 0.0)))
            self._holds_model.add(peer)

    def ready(self) -> tuple[int, ...]:
        """The devices that can be used now, the coordinator first."""
        self._answered -= self._transport.lost().keys()  # who comes back has to answer again
        self._tell_new_epoch()
        self._take_answers(0.0)
        now = time.monotonic()
        usable = {peer for peer in self._answered & self._holds_model if self._left_out_until.get(peer, 0.0) <= now}
        while unlinked := {peer: count for peer in usable if (count := len(self._unlinked(peer, usable)))}:
            usable.remove(max(unlinked, key=lambda peer: (unlinked[peer], peer)))
        return (0, *sorted(usable))

    def new_epoch(self) -> None:
        """Everyone drops what it is doing; nobody is ready until it has answered."""
        self.epoch += 1
        self._transport.epoch = self.epoch
        self._told_at.clear()
        self._answered.clear()
        self._tell_new_epoch()

    def recover(self, exc: PeerError, devices: Collection[int]) -> tuple[str, ...]:
        """After a failure among ``devices``: a new epoch, and who is to blame, in words. Takes 0.25 s at most."""
        lost = self._transport.lost()
        self.new_epoch()
        workers = set(devices) - {0}
        self._await_answers(workers - lost.keys(), READY_TIMEOUT_S)
        silent = workers - self._answered
        if not silent:
            for peer in exc.peers:
                self._left_out_until[peer] = time.monotonic() + RETRY_FAULT_S
        failures = [f"device {peer}: {lost.get(peer, 'it does not answer')}" for peer in sorted(silent)] or [str(exc)]
        for failure in failures:
            log.warning("%s; the request goes on without it", failure)
        return tuple(failures)

    def close(self) -> None:
        """Tells the workers that the coordinator has ended."""
        for peer in self._peers:
            try:
                self._transport.send(peer, Kind.CLOSE, epoch=self.epoch)
            except PeerError:
                continue  # it is gone already

    def _order(self, peer: int, order: LoadOrder) -> bool:
        try:
            self._transport.send(peer, Kind.LOAD, epoch=self.epoch, meta=order.to_json())
        except PeerError as exc:
            log.warning("device %d is left out: %s", peer, exc)
            return False
        return True

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
                self._transport.send(peer, Kind.EPOCH, epoch=self.epoch)
                self._told_at[peer] = now
            except PeerError:
                continue  # it has just gone

    def _await_answers(self, peers: Collection[int], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while set(peers) - self._answered - self._transport.lost().keys():
            self._tell_new_epoch()
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return
            self._take_answers(min(remaining_s, 0.05))

    def _take_answers(self, timeout_s: float) -> None:
        frame = self._transport.receive(timeout_s)
        while frame is not None:
            self._take_answer(frame)
            frame = self._transport.receive(0.0)

    def _take_answer(self, frame: Frame) -> None:
        if frame.kind is Kind.READY and frame.epoch == self.epoch:
            if frame.sender not in self._answered:
                log.info("device %d is ready", frame.sender)
            self._answered.add(frame.sender)
            self._links[frame.sender] = linked_ranks(frame)

    def _unlinked(self, peer: int, others: Collection[int]) -> set[int]:
        """Those of ``others`` that ``peer`` has no link with, as either of the two sees it."""
        return {
            other
            for other in others
            if other != peer and not (other in self._links[peer] and peer in self._links[other])
        }
