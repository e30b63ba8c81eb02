"""A worker and what no right coordinator sends: it is named and dropped, and the worker can be used afterwards.

What `benchmarks.fuzz` has found stands here, each as short as it can be shown.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from edgeprism.codecs.means import SegmentMeans
from edgeprism.errors import FrameError, PeerFault, PlanError
from edgeprism.runtime.job import Results
from edgeprism.runtime.membership import Membership
from edgeprism.runtime.messages import Introduction, Job
from edgeprism.runtime.worker import Worker
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import NO_RANK, Buffer, Frame, Kind, dump_meta
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.links import write_message
from edgeprism.wire.memory import MemoryTransport
from edgeprism.wire.zmq import ZmqTransport

pytestmark = pytest.mark.alone

OURS, THEIRS, OTHER = KeyPair.generate(), KeyPair.generate(), KeyPair.generate()
NOBODY = "tcp://127.0.0.1:1"


class Bench:
    """A worker in a thread, and the coordinator that it serves."""

    def __init__(self) -> None:
        transport = ZmqTransport(NO_RANK, THEIRS)
        transport.connect([Peer(rank=0, public_key=OURS.public)])
        self.address, self._is_over = transport.address, threading.Event()
        worker = Worker(transport, lambda *_: pytest.fail("nothing is loaded"), ends=self._is_over.is_set, stays=True)
        self.transport = transport
        self.thread = threading.Thread(target=worker.serve)
        self.thread.start()
        self.coordinator = self.dial()

    def dial(self) -> ZmqTransport:
        """A coordinator, connected."""
        coordinator = ZmqTransport(0, OURS)
        coordinator.connect([Peer(rank=1, address=self.address, public_key=THEIRS.public)])
        coordinator.wait_connected(time.monotonic() + 5)
        return coordinator

    def introduction(self) -> dict[str, Any]:
        """The right one; three devices, the third of which nobody starts."""
        peers = (
            Peer(rank=0, public_key=OURS.public),
            Peer(rank=1, address=self.address, public_key=THEIRS.public),
            Peer(rank=2, address=NOBODY, public_key=OTHER.public),
        )
        return Introduction(rank=1, peers=peers).to_json()

    def say(self, kind: Kind, epoch: int, meta: dict[str, Any] | None = None, raw: bytes | None = None) -> None:
        """One order."""
        meta_bytes = dump_meta(meta) if raw is None else raw
        frame = Frame(kind=kind, epoch=epoch, request=5, sender=0, meta=meta_bytes)
        self.coordinator._send(frame, (1,))

    def hear(self, kind: Kind, epoch: int) -> Frame:
        """The answer."""
        request = 0 if kind is Kind.READY else 5
        return self.coordinator.wait_control((kind,), (1,), time.monotonic() + 5, epoch=epoch, request=request)[1]

    def close(self) -> None:
        """Ends the worker."""
        self._is_over.set()
        self.thread.join(timeout=10)
        self.coordinator.close()
        self.transport.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Closed at the end."""
    bench = Bench()
    yield bench
    bench.close()


def changed(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Sets fields of the introduction, or of a peer by its index: ``peer0={...}``."""

    def change(introduction: dict[str, Any]) -> None:
        for name, value in changes.items():
            if name.startswith("peer") and name != "peers":
                introduction["peers"][int(name[4:])].update(value)
            else:
                introduction[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed(peer0={"public_key": OTHER.public}),
        changed(peer2={"public_key": OURS.public}),
        changed(peers=[]),
        changed(rank=0),
        changed(rank=70_000),
        changed(rank=10**400),
        changed(rank="a"),
        changed(rank=2),
        changed(peer2={"address": "tcp://nowhere"}),
        changed(peer2={"address": "tcp://127.0.0.1:99999"}),
        changed(peer2={"address": ""}),
        changed(peer2={"public_key": "#" * 40}),
        changed(peers=[Peer(rank=rank, address=NOBODY, public_key=OTHER.public).to_json() for rank in range(2, 2000)]),
    ],
)
def test_a_wrong_introduction_neither_ends_a_worker_nor_locks_its_coordinator_out(
    bench: Bench, change: Callable[[dict[str, Any]], None]
) -> None:
    """After it, the right one is taken."""
    wrong = bench.introduction()
    change(wrong)
    bench.say(Kind.EPOCH, 1, raw=json.dumps({"introduction": wrong}).encode())
    time.sleep(0.1)  # not together with the next one
    bench.say(Kind.EPOCH, 2, {"introduction": bench.introduction()})
    assert bench.hear(Kind.READY, 2).info["links"] == [0]
    assert bench.thread.is_alive()


def test_a_coordinator_that_counts_anew_is_served_however_soon_it_comes(bench: Bench) -> None:
    """The highest epoch leaves nothing to come after it, but to a new connection, which may be there at once."""
    bench.say(Kind.EPOCH, 2**32 - 1, {"introduction": bench.introduction()})
    bench.hear(Kind.READY, 2**32 - 1)
    for epoch in (3, 2, 1):
        bench.coordinator.close()
        bench.coordinator = bench.dial()
        deadline = time.monotonic() + 5
        while True:  # as Membership does: what comes in the moment of the change may be dropped
            bench.say(Kind.EPOCH, epoch, {"introduction": bench.introduction()})
            frame = bench.coordinator.receive(0.3)
            if frame is not None and frame.kind is Kind.READY and frame.epoch == epoch and "links" in frame.info:
                break
            assert time.monotonic() < deadline
        bench.say(Kind.REQUEST, epoch)
        assert bench.hear(Kind.FAULT, epoch).info["message"] == "a request came before a model"


def test_a_second_connection_waits_for_the_end_of_the_first(bench: Bench) -> None:
    """It is told so; another empty message on the old one is no greeting; and the old one's end does not take the new
    one with it."""
    old, bench.coordinator = bench.coordinator, bench.dial()
    bench.say(Kind.EPOCH, 1, {"introduction": bench.introduction()})
    assert bench.hear(Kind.READY, 1).info == {"busy": True}
    socket = old._links[1].socket
    assert socket is not None
    write_message(socket, [b""])
    time.sleep(0.1)
    old.close()
    time.sleep(0.3)
    bench.say(Kind.EPOCH, 2, {"introduction": bench.introduction()})
    assert "links" in bench.hear(Kind.READY, 2).info


def job(**changes: Any) -> dict[str, Any]:
    """A REQUEST of `sequence` as JSON."""
    right = Job(kind="sequence", tensors=("ids",), timeout_s=1.0, devices=(0, 1), bounds=((0, 4), (4, 8))).to_json()
    return {**right, **changes}


@pytest.mark.parametrize("timeout_s", ["nan", "inf", -1, 1e300, 10**400])
def test_a_request_waits_for_a_time_that_ends(timeout_s: object) -> None:
    """NaN would be waited for without a pause and for ever."""
    with pytest.raises(FrameError, match="a REQUEST message that cannot be used"):
        Job.from_json(job(timeout_s=timeout_s))


def test_means_take_bounded_memory() -> None:
    """A partition of many tokens by many means is a matrix that no board holds."""
    with pytest.raises(PlanError, match="take fewer means"):
        SegmentMeans(100_000, 50_000, None)


def result(meta: dict[str, Any], *arrays: np.ndarray) -> Frame:
    """A RESULT of device 1."""
    return Frame(kind=Kind.RESULT, epoch=1, sender=1, meta=dump_meta(meta), arrays=tuple(map(Buffer.of, arrays)))


@pytest.mark.parametrize(
    ("names", "arrays"),
    [
        (["logits", "logits"], [np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32)]),
        (["logits", "logits"], [np.zeros((1, 3), np.float32), np.zeros((1, 3), np.int64)]),
        (["logits"], [np.zeros((1, 3), np.float32)]),
        (["logits"], [np.zeros((), np.float32)]),
        (["logits"], []),
        ("logits", [np.zeros((2, 3), np.float32)]),
    ],
)
def test_results_that_do_not_fit_are_the_senders_fault(names: object, arrays: list[np.ndarray]) -> None:
    """Two samples were asked for, in pieces that can be put together."""
    with pytest.raises(PeerFault, match="device 1"):
        Results.of_samples(result({"names": names}, *arrays), Staging(torch.device("cpu")), 2)


@pytest.mark.parametrize("trace", [None, 3, [], {"device": 1}, {"device": "1"}])
def test_a_trace_that_is_none_is_the_senders_fault(trace: object) -> None:
    """Missing, of another type, or without its fields."""
    with pytest.raises(PeerFault, match="device 1 sent a trace that cannot be read"):
        Results.trace_of(result({"trace": trace}))


def test_a_trace_is_of_its_sender_and_in_numbers() -> None:
    """It cannot speak for another device, and text is no time."""
    names = ("work", "total_s", "compute_s", "codec_s", "staging_s", "wire_s", "wait_s", "bytes_sent", "bytes_received")
    fields = {"device": 0, **{name: 1 if name in ("work", "bytes_sent", "bytes_received") else 1.0 for name in names}}
    assert Results.trace_of(result({"trace": fields})).device == 1
    with pytest.raises(PeerFault, match="must be numbers"):
        Results.trace_of(result({"trace": {**fields, "compute_s": "soon"}}))


@pytest.mark.parametrize(("said", "speed"), [(2e9, 2e9), (5, 1e6), ("x", 1e9), (None, 1e9), (10**400, 1e12), (-1, 1e6)])
def test_a_speed_is_a_plausible_number(said: object, speed: float) -> None:
    """Shares and deadlines are made of it."""
    members = Membership(MemoryTransport.mesh(2)[0])
    members.macs_per_s[0] = 1e9
    assert members.plausible(said) == speed
