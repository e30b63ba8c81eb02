"""Visits: questions to a device that leave its coordinator's connection as it is; answers to PINGs on any transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import numpy as np
import pytest

from edgeprism.errors import PeerLost, PeerTimeout
from edgeprism.runtime.probe import MAX_ECHO_BYTES, ask_facts, measure, serve_probe
from edgeprism.wire.frame import Buffer, Kind
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.transport import Transport
from edgeprism.wire.visit import Visit
from edgeprism.wire.zmq import ZmqTransport
from tests.wire.meshes import Mesh, soon

pytestmark = pytest.mark.alone

OURS, THEIRS, NOBODYS = KeyPair.generate(), KeyPair.generate(), KeyPair.generate()


@contextmanager
def running(transport: Transport, each_time: Callable[[Transport], object] = lambda _: None) -> Iterator[None]:
    """Has a thread live on a transport, as a worker does."""
    ends = Event()

    def live() -> None:
        while not ends.is_set():
            transport.receive(0.05)
            each_time(transport)

    thread = Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def worker() -> Iterator[ZmqTransport]:
    """A device that answers PINGs of whoever holds the coordinator's key, OURS."""
    with ZmqTransport(1, THEIRS) as transport:
        transport.connect([Peer(rank=0, public_key=OURS.public)])
        serve_probe(transport, lambda: "cpu")
        yield transport


def peer(worker: ZmqTransport, keys: KeyPair = THEIRS) -> Peer:
    """The worker, as who visits it knows it."""
    return Peer(rank=1, address=worker.address, public_key=keys.public)


def test_a_visit_learns_about_device_and_link(worker: ZmqTransport) -> None:
    """Facts, round trip, rates and clock, whatever epoch the worker is in."""
    worker.epoch = 10**6
    with running(worker), Visit(peer(worker), OURS) as visit:
        visit.wait_connected(soon())
        assert ask_facts(visit)["versions"].keys() == {"edgeprism", "Python", "torch", "transformers"}
        link = measure(visit)
    assert 0 < link.round_trip_s < 1
    assert link.jitter_s >= 0
    assert min(link.to_bytes_per_s, link.from_bytes_per_s) > 1e5
    assert abs(link.clock_ahead_s) < 0.5
    assert worker.epoch == 10**6


@pytest.mark.parametrize("echo_bytes", [-1, MAX_ECHO_BYTES + 1, "many", None])
def test_no_more_bytes_come_back_than_are_allowed(worker: ZmqTransport, echo_bytes: object) -> None:
    """Such a PING gets no answer, and the next one does."""
    with running(worker), Visit(peer(worker), OURS) as visit:
        visit.wait_connected(soon())
        with pytest.raises(PeerTimeout, match="did not answer"):
            visit.ask(time.monotonic() + 0.1, meta={"echo_bytes": echo_bytes})
        (echo,) = visit.ask(soon(), meta={"echo_bytes": MAX_ECHO_BYTES}).arrays
        assert (echo.data.shape, echo.data.any()) == ((MAX_ECHO_BYTES,), False)


def test_the_coordinator_keeps_its_connection(worker: ZmqTransport) -> None:
    """Before, during and after a visit with the same key, what the worker sends to device 0 reaches the coordinator,
    which loses nothing."""

    def say_ready(transport: Transport) -> None:
        if 0 in transport.connected():
            transport.send(0, Kind.READY, epoch=0)

    with ZmqTransport(0, OURS) as coordinator, running(worker, say_ready):
        coordinator.connect([peer(worker)])
        coordinator.wait_connected(soon())

        def hears() -> None:
            frame = coordinator.receive(5.0)
            assert frame is not None
            assert frame.kind is Kind.READY

        hears()
        with Visit(peer(worker), OURS) as visit:
            visit.wait_connected(soon())
            for _ in range(5):
                visit.ask(soon(), buffers=[Buffer.of(np.zeros(10**6, np.uint8))])
                hears()
        for _ in range(20):
            hears()
        assert coordinator.num_losses.total() == 0
    assert worker.num_losses.total() <= 1  # when the coordinator has closed


def test_why_a_visit_fails(worker: ZmqTransport) -> None:
    """A stranger is refused; another key than expected, and a device that goes, end the connection; one that does not
    look at its sockets runs into the deadline."""
    with running(worker):
        with Visit(peer(worker), NOBODYS) as visit, pytest.raises(PeerLost, match="refuses this device's key"):
            visit.wait_connected(soon())
        with Visit(peer(worker, NOBODYS), OURS) as visit, pytest.raises(PeerLost, match="another key than expected"):
            visit.wait_connected(soon())
    with Visit(peer(worker), OURS) as visit:
        with pytest.raises(PeerTimeout, match="does not answer"):
            visit.wait_connected(time.monotonic() + 0.2)
        with running(worker):
            visit.wait_connected(soon())
            visit.ask(soon())
        with pytest.raises(PeerTimeout, match="did not answer a PING"):
            visit.ask(time.monotonic() + 0.2)
        worker.close()
        for _ in range(2):
            with pytest.raises(PeerLost, match="its connection ended"):
                visit.ask(soon())


def test_a_late_answer_is_not_taken_for_the_next(worker: ZmqTransport) -> None:
    """The answer to a question that was given up is dropped when it comes."""
    with Visit(peer(worker), OURS) as visit:
        with running(worker):
            visit.wait_connected(soon())
        with pytest.raises(PeerTimeout):
            visit.ask(time.monotonic() + 0.1, meta={"echo_bytes": 1})
        with running(worker):
            assert len(visit.ask(soon(), meta={"echo_bytes": 2}).arrays[0].data) == 2


def test_a_coordinator_may_ask_too(mesh: Mesh) -> None:
    """On every transport, while the worker waits for something else; a worker may not."""
    one, two = mesh(2)
    serve_probe(one, lambda: "cpu")
    serve_probe(two, lambda: "cpu")
    two.send(0, Kind.PING, epoch=0)
    two.send(0, Kind.READY, epoch=0)
    with running(two):
        one.send(1, Kind.PING, epoch=3, request=8, meta={"echo_bytes": 5, "facts": True})
        pong = one.wait_control((Kind.PONG,), (1,), soon(), epoch=3, request=8)[1]
        ready = one.receive(5.0)
    assert len(pong.arrays[0].data) == 5
    assert pong.info["facts"]["num_cores"] >= 1
    assert abs(pong.info["clock_s"] - time.time()) < 60
    assert ready is not None
    assert ready.kind is Kind.READY
    assert two.receive(0.05) is None  # no PONG: a PING that is no order is refused
