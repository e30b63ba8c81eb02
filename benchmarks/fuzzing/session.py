"""The fuzzer as coordinator and as a peer of one real worker, with listed keys, over CURVE.

Messages go out in bursts. After each the fuzzer announces a new epoch, as a coordinator does, and the worker must
answer: so a message that makes it hang, or lose its way, is known at once. An order that is right in form does what it
says, also when it came about by mutation; the fuzzer reads its own messages, follows, and counts them apart:

CLOSE     the worker frees its model; it gets it again
LOAD      it loads what is named, or asks for weights, and gets damaged ones
EPOCH     the fuzzer goes on from that number; from the highest there is only a new connection leads on
REQUEST   it is computed, or refused by name
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter

import torch

from benchmarks.fuzzing.mutate import Mutator
from benchmarks.fuzzing.orders import Loaded, addresses_in, of_coordinator, of_peer
from benchmarks.fuzzing.target import Target
from edgeprism.errors import FrameError, PeerError
from edgeprism.runtime.job import Results
from edgeprism.runtime.messages import Introduction
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import DEFAULT_LIMITS, ORDERS, Frame, Kind, decode
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.links import PIECE_BYTES
from edgeprism.wire.transport import Transport
from edgeprism.wire.zmq import ZmqTransport

BURST = 250
HANG_S = 10.0
TELL_AGAIN_S = 0.5
PEER_SHARE = 0.3
NOISE, HUGE = 0.03, 0.0002
TOP_EPOCH = 2**32 - 2
REACH = 1e-4

Parts = list[bytearray]


class Session:
    """Holds both connections. ``counts`` says what was sent; every method fails when the worker does wrong."""

    def __init__(self, target: Target, keys: KeyPair, model: Loaded, rng: random.Random, num_rare: int) -> None:
        """``num_rare``: how many CLOSE and LOAD orders, and raised epochs, may be sent in all; each takes its time."""
        self.counts: Counter[str] = Counter()
        self.slowest_answer_s = 0.0
        self.rss_mb: list[float] = []
        """The worker's memory, at each check."""
        self._target, self._keys, self._model, self._rng = target, keys, model, rng
        self._rare_left = {"CLOSE": num_rare, "LOAD": num_rare, "EPOCH": num_rare}
        self._peer_keys = KeyPair.generate()
        self._peer = ZmqTransport(2, self._peer_keys)
        self._coordinator = self._connected()
        self._epoch, self._order_number = 0, 7
        self._introduction = Introduction(
            rank=1,
            peers=(
                Peer(rank=0, public_key=keys.public),
                target.peer,
                Peer(rank=2, address=self._peer.address, public_key=self._peer_keys.public),
            ),
        )
        self._safe = {"", target.peer.address, self._peer.address}
        self._peer.connect([Peer(rank=1, public_key=target.keys.public)])
        orders = of_coordinator(model, self._introduction, self._order_number)
        self._from_coordinator = Mutator(orders, rng, noise=NOISE, huge=HUGE)
        self._from_peer = Mutator(of_peer(model), rng, noise=NOISE, huge=HUGE)

    def fuzz(self, num_messages: int, check_every: int) -> None:
        """That many messages, about a third of them as a peer; ``check_every`` so many a right request is answered."""
        sent = checked = 0
        while sent < num_messages:
            sent += sum(self._send_one() for _ in range(min(BURST, num_messages - sent)))
            self.synchronise()
            if sent - checked >= check_every:
                checked = sent
                self.check()
                print(f"\rfuzz: socket {sent:,} of {num_messages:,} messages", end="", file=sys.stderr, flush=True)
        self.check()
        print(f"\rfuzz: socket {sent:,} of {num_messages:,} messages", file=sys.stderr)

    def synchronise(self) -> None:
        """A new epoch; the worker must take it, with its place in the cluster, and hold the model afterwards."""
        if self._epoch >= TOP_EPOCH:
            self.reconnect()
        holds = self._new_epoch()
        if holds != self._order_number:
            self._load()
        deadline = time.monotonic() + HANG_S
        while not self._peer.connected():
            assert time.monotonic() < deadline, "the worker does not dial its peer any more"
            self._peer.receive(0.05)
        while self._peer.receive(0.0) is not None:
            pass

    def check(self) -> None:
        """A right request; its answer is compared with transformers' own."""
        self.rss_mb.append(round(self._target.rss_bytes / 1e6, 1))
        self.synchronise()
        kind, meta, buffers = self._model.request()
        self._coordinator.send(1, kind, epoch=self._epoch, request=1, meta=meta, buffers=buffers)
        frame = self._answer({Kind.RESULT, Kind.FAULT})
        assert frame.kind is Kind.RESULT, f"a right request was answered with {frame.info}"
        results = Results.of_samples(frame, Staging(torch.device("cpu")), len(self._model.wanted)).named()
        difference = float((results["logits"] - self._model.wanted).abs().max())
        assert difference <= REACH, f"a right request was answered wrong, by {difference}"
        self.counts["right requests, answered right"] += 1

    def send_oversized(self) -> None:
        """A part that is larger than any may be, in one ZeroMQ frame: the worker's socket cuts the connection before it
        reads it, and the connection comes back."""
        self.synchronise()
        self._send_raw(b"EPRM", bytes(DEFAULT_LIMITS.max_array_bytes + 2**20))
        deadline = time.monotonic() + HANG_S
        while not self._coordinator.lost():
            assert time.monotonic() < deadline, "an oversized message was not refused"
            self._coordinator.receive(0.05)
        self._coordinator.wait_connected(time.monotonic() + HANG_S)
        self.counts["oversized messages"] += 1
        self.check()

    def send_many_parts(self, num_parts: int) -> None:
        """One message of very many parts, and one whose only part has pieces, and no end."""
        self.synchronise()
        self._coordinator._post(1, [b"x" * 100] * num_parts)
        self._send_raw(*[bytes(PIECE_BYTES)] * 3)
        self.counts["messages of very many parts"] += 1
        self.check()

    def reconnect(self) -> None:
        """As a coordinator that was started again, and counts its epochs anew."""
        self._coordinator.close()
        self._coordinator = self._connected()
        self._epoch = 0
        self.counts["coordinators started again"] += 1

    def close(self) -> None:
        """Leaves the worker alone."""
        self._coordinator.send(1, Kind.CLOSE, epoch=self._epoch)
        self._new_epoch()  # by its answer CLOSE has been read
        self._coordinator.close()
        self._peer.close()

    def _send_raw(self, *pieces: bytes) -> None:
        """One message of these ZeroMQ frames, whether they are right or not."""
        socket = self._coordinator._links[1].socket
        assert socket is not None
        socket.send_multipart(pieces)

    def _connected(self) -> ZmqTransport:
        coordinator = ZmqTransport(0, self._keys)
        coordinator.connect([self._target.peer])
        coordinator.wait_connected(time.monotonic() + HANG_S)
        return coordinator

    def _send_one(self) -> int:
        """One mutated message; 0 when it was kept back."""
        is_peer = self._rng.random() < PEER_SHARE
        mutator, transport = (self._from_peer, self._peer) if is_peer else (self._from_coordinator, self._coordinator)
        parts = mutator.next(self._epoch)
        if not parts or (not is_peer and not self._follow(parts)):
            return 0
        return self._post(transport, parts, "peer" if is_peer else "coordinator")

    def _post(self, transport: Transport, parts: Parts, who: str) -> int:
        try:
            transport._post(1, parts)
        except PeerError:
            if who == "coordinator":
                raise
            return 0  # an order cut the peer off; the next epoch brings it back
        self.counts[f"as {who}"] += 1
        return 1

    def _follow(self, parts: Parts) -> bool:
        """Whether to send this as coordinator; takes in what it will do."""
        try:
            frame = decode(parts)
        except FrameError:
            self.counts["refused by the decoder"] += 1
            return True
        if frame.kind not in ORDERS or frame.sender != 0:
            return True
        raises = frame.kind is Kind.EPOCH and frame.epoch > self._epoch
        if frame.kind in (Kind.CLOSE, Kind.LOAD) or raises:
            if not self._rare_left[frame.kind.name] or self._rng.random() > 0.02:
                return False
            self._rare_left[frame.kind.name] -= 1
        if frame.kind is Kind.EPOCH and not addresses_in(frame) <= self._safe | self._model.dead_addresses:
            return False  # the worker would dial somebody else
        if raises:
            self._epoch = frame.epoch
        self.counts[f"orders right in form: {frame.kind.name}"] += 1
        return True

    def _new_epoch(self) -> object:
        """Announces it, and returns what the worker says that it holds."""
        self._epoch += 1
        began_s = time.monotonic()
        meta = {"introduction": self._introduction.to_json()}
        frame = None
        while frame is None:
            try:
                self._coordinator.send(1, Kind.EPOCH, epoch=self._epoch, meta=meta)
            except PeerError as exc:
                time.sleep(0.5)  # whether it has died is soon known
                self._target.check_alive()
                self._target.fail(str(exc))
            frame = self._next({Kind.READY}, TELL_AGAIN_S)  # what came together with a CLOSE is dropped
            if frame is None and time.monotonic() - began_s > HANG_S:
                self._target.fail("the worker hangs")
        self.slowest_answer_s = max(self.slowest_answer_s, time.monotonic() - began_s)
        return frame.info.get("holds")

    def _load(self) -> None:
        kind, meta, buffers = self._model.load_order()
        self._coordinator.send(1, kind, epoch=self._epoch, request=self._order_number, meta=meta, buffers=buffers)
        frame = self._answer({Kind.LOADED, Kind.FAULT})
        assert frame.kind is Kind.LOADED, f"a right model was not loaded: {frame.info}"

    def _answer(self, kinds: set[Kind]) -> Frame:
        """The next frame of these kinds in this epoch."""
        frame = self._next(kinds, HANG_S)
        return self._target.fail("the worker does not answer") if frame is None else frame

    def _next(self, kinds: set[Kind], timeout_s: float) -> Frame | None:
        """The same, or None when time is out; what else comes is thrown away."""
        deadline = time.monotonic() + timeout_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            frame = self._coordinator.receive(remaining_s)
            if frame is not None and frame.kind in kinds and frame.epoch == self._epoch:
                return frame
            self._target.check_alive()
            self._peer.lost()  # takes in what came
        return None
