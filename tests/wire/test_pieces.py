"""Large parts travel in pieces: they arrive as they were, slow links stay up meanwhile, and no more is kept than may
be."""

from __future__ import annotations

import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import numpy as np
import pytest
import zmq

from edgeprism.errors import PeerFault
from edgeprism.wire.frame import Buffer, Frame, Kind, Limits, encode
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.links import PIECE_BYTES, Link, read_message, write_message
from edgeprism.wire.transport import Transport
from edgeprism.wire.visit import Visit
from edgeprism.wire.zmq import ZmqTransport
from tests.wire.meshes import in_threads, soon, zmq_mesh

pytestmark = pytest.mark.alone

SIZES = (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 5 * 10**6)
RELAY_BYTES_PER_S = 400_000
SLOW_BYTES = 800_000  # takes 2 s; a piece takes 0.16 s
HEARTBEAT_S, HEARTBEAT_TIMEOUT_S = 0.1, 0.6


def noise(num_bytes: int) -> Buffer:
    """An array whose bytes differ."""
    return Buffer.of(np.random.default_rng(num_bytes).integers(0, 256, num_bytes, np.uint8))


def pair(limits: Limits) -> list[ZmqTransport]:
    """Two devices that are connected, and take no more than ``limits``."""
    keys = [KeyPair.generate(), KeyPair.generate()]
    devices = [ZmqTransport(rank, keys[rank], limits=limits) for rank in range(2)]
    for device in devices:
        device.connect([Peer(rank=d.rank, address=d.address, public_key=keys[d.rank].public) for d in devices])
    in_threads(*(lambda d=d: d.wait_connected(soon()) for d in devices))
    return devices


def link_of(device: Transport, peer: int) -> Link:
    """What the device sends to the peer by."""
    assert isinstance(device, ZmqTransport)
    return device._links[peer]


def send_raw(device: Transport, peer: int, *pieces: bytes) -> None:
    """One message of these ZeroMQ frames, whether they are right or not."""
    link = link_of(device, peer)
    assert link.socket is not None
    link.socket.send_multipart([*link.prefix, *pieces])


@pytest.mark.parametrize("sender", [0, 1])
def test_every_length_arrives_as_it_was(sender: int) -> None:
    """Alone and several in a message, from the one that dials and from the one that is dialled; in memory that may be
    written to, and is aligned."""
    mesh = zmq_mesh(2)
    with mesh[0], mesh[1]:
        for sizes in (*((size,) for size in SIZES), SIZES, SIZES[::-1]):
            sent = [noise(size) for size in sizes]
            mesh[sender].send(1 - sender, Kind.LOAD if sender == 0 else Kind.LOADED, epoch=0, buffers=sent)
            frame = mesh[1 - sender].receive(5.0)
            assert frame is not None
            assert [buffer.data.tobytes() for buffer in frame.arrays] == [buffer.data.tobytes() for buffer in sent]
            for size, buffer in zip(sizes, frame.arrays, strict=True):
                if size:
                    assert buffer.data.flags.writeable
                    assert buffer.data.ctypes.data % 8 == 0
                    buffer.data[:] = 7


def test_the_bytes_of_a_part_end_with_a_short_piece() -> None:
    """What other versions have to read; the parts of a frame that carries little travel as they are."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as two:
        one.bind("inproc://pieces")
        two.connect("inproc://pieces")
        for sizes, pieces in (
            ([0], [0]),
            ([5, 0, PIECE_BYTES - 1], [5, 0, PIECE_BYTES - 1]),
            ([5, PIECE_BYTES], [5, PIECE_BYTES, 0]),
            ([2 * PIECE_BYTES + 3, 0], [PIECE_BYTES, PIECE_BYTES, 3, 0]),
        ):
            write_message(one, [bytes(size) for size in sizes])
            assert [len(piece) for piece in two.recv_multipart()] == pieces
            write_message(one, [bytes(size) for size in sizes])
            received = read_message(two, Limits())
            assert received is not None
            assert [len(part) for part in received.parts] == sizes
        assert read_message(two, Limits()) is None


@contextmanager
def slow_relay(address: str) -> Iterator[str]:
    """An address that leads to another one by a link of ``RELAY_BYTES_PER_S`` each way."""
    host, port = address.removeprefix("tcp://").split(":")
    ends: list[socket.socket] = []
    threads: list[Thread] = []

    def forward(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while moment := source.recv(4096):
                sink.sendall(moment)
                time.sleep(len(moment) / RELAY_BYTES_PER_S)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, far = server.accept()[0], socket.create_connection((host, int(port)), timeout=5)
                far.settimeout(None)
                ends.extend((near, far))
                for ways in ((near, far), (far, near)):
                    threads.append(Thread(target=forward, args=ways))
                    threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads.append(Thread(target=serve))
        threads[0].start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)  # or accept would go on
            threads[0].join(10)
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()
            for end in ends:
                end.close()


@pytest.mark.parametrize("sender", [0, 1])
def test_a_message_that_takes_longer_than_the_heartbeats_wait_ends_no_connection(sender: int) -> None:
    """Two seconds on the link, heartbeats that wait for 0.6: both go on, whoever dials."""
    keys = [KeyPair.generate(), KeyPair.generate()]
    mesh = [
        ZmqTransport(rank, keys[rank], heartbeat_s=HEARTBEAT_S, heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S)
        for rank in range(2)
    ]
    with mesh[0], mesh[1], slow_relay(mesh[1].address) as address:
        mesh[0].connect([Peer(rank=1, address=address, public_key=keys[1].public)])
        mesh[1].connect([Peer(rank=0, public_key=keys[0].public)])
        in_threads(*(lambda t=t: t.wait_connected(soon()) for t in mesh))
        sent, began = noise(SLOW_BYTES), time.monotonic()
        mesh[sender].send(1 - sender, Kind.LOAD if sender == 0 else Kind.LOADED, epoch=0, buffers=[sent])
        frame = mesh[1 - sender].receive(10.0)
        assert frame is not None, mesh[1 - sender].lost()
        assert time.monotonic() - began > 2 * HEARTBEAT_TIMEOUT_S
        assert frame.arrays[0].data.tobytes() == sent.data.tobytes()
        mesh[1 - sender].send(sender, Kind.LOADED if sender == 0 else Kind.LOAD, epoch=0)
        assert mesh[sender].receive(5.0) is not None
        assert [device.num_losses.total() for device in mesh] == [0, 0]


@pytest.mark.parametrize("sender", [0, 1])
def test_what_is_too_large_or_has_no_end_is_refused_and_the_link_goes_on(
    sender: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Named and counted like every other frame that cannot be read."""
    mesh = pair(Limits(max_array_bytes=200_000, max_meta_bytes=10_000, max_arrays=3))
    head, array = (bytes(part) for part in encode(Frame(kind=Kind.LOAD, epoch=0, sender=0, arrays=(noise(9),))))
    with mesh[0], mesh[1]:
        receiver = mesh[1 - sender]
        for parts, flaw in (
            ([head, bytes(5 * 10**6)], "a part of more than 200000 bytes"),
            ([bytes(5 * 10**6), head], "a part of more than 200000 bytes"),
            ([head, array, array, array, array], "more than 4 parts"),
            ([b""] * 1000, "more than 4 parts"),
        ):
            receiver._num_refused = 0  # the first ones are logged, each as it comes
            mesh[sender]._post(1 - sender, parts)
            assert receiver.receive(0.3) is None
            assert f"a frame of device {sender} is refused: {flaw}" in caplog.text
            caplog.clear()
        receiver._num_refused = 0
        send_raw(mesh[sender], 1 - sender, head, b"x" * PIECE_BYTES)
        assert receiver.receive(0.3) is None
        assert "its last part does not end" in caplog.text
        assert receiver.take_stats().frames_dropped == 5
        mesh[sender].send(1 - sender, Kind.LOAD if sender == 0 else Kind.LOADED, epoch=0, buffers=[noise(200_000)])
        assert receiver.receive(5.0) is not None
        assert [device.num_losses.total() for device in mesh] == [0, 0]


def test_a_zeromq_frame_longer_than_a_piece_cuts_the_connection() -> None:
    """To the byte: ``_CURVE_BYTES`` is what libzmq counts besides."""
    mesh = pair(Limits())
    with mesh[0], mesh[1]:
        send_raw(mesh[0], 1, b"x" * PIECE_BYTES, b"")
        assert mesh[1].receive(0.3) is None
        assert mesh[1].take_stats().frames_dropped == 1
        assert mesh[1].lost() == {}
        send_raw(mesh[0], 1, b"x" * (PIECE_BYTES + 1))
        assert mesh[1].receive(5.0) is None
        assert mesh[1].lost().keys() == {0}
        assert mesh[1].take_stats().frames_dropped == 0


class Watched(zmq.Socket[bytes]):
    """A socket that counts how many of the ZeroMQ frames it gave are still held by somebody."""

    num_held = 0
    most_held = 0

    def recv(self, *args: Any, **kwargs: Any) -> Any:
        """The next one."""
        frame = super().recv(*args, **kwargs)
        self.num_held += 1
        self.most_held = max(self.most_held, self.num_held)
        weakref.finalize(frame, self._forget)
        return frame

    def _forget(self) -> None:
        self.num_held -= 1


@pytest.mark.parametrize(("piece_bytes", "flaw"), [(PIECE_BYTES, "more than 300000 bytes"), (10, "more than 4 parts")])
def test_no_more_is_kept_than_a_frame_may_hold(piece_bytes: int, flaw: str) -> None:
    """However long the message: the pieces of one part, and the next ones while they are thrown away."""
    with (
        zmq.Context() as context,
        context.socket(zmq.PAIR) as one,
        context.socket(zmq.PAIR, socket_class=Watched) as two,
    ):
        one.bind("inproc://flood")
        two.connect("inproc://flood")
        one.send_multipart([bytes(piece_bytes)] * 200)
        received = read_message(two, Limits(max_array_bytes=300_000, max_meta_bytes=10_000, max_arrays=3))
        assert received is not None
        assert received.parts == []
        assert flaw in received.flaw
        assert not received.last.more
        assert two.most_held <= 300_000 // PIECE_BYTES + 3


def test_a_visitor_names_an_answer_that_is_too_long() -> None:
    """It is not waited for."""
    ours, theirs = KeyPair.generate(), KeyPair.generate()
    with ZmqTransport(1, theirs) as worker:
        worker.connect([Peer(rank=0, public_key=ours.public)])

        def answer(question: Frame) -> None:
            assert worker._handled is not None
            worker._post_back(worker._handled, [b""] * 1000)

        worker.serve(Kind.PING, answer)
        with Visit(Peer(rank=1, address=worker.address, public_key=theirs.public), ours) as visit:

            def ask() -> None:
                visit.wait_connected(soon())
                with pytest.raises(PeerFault, match="its answer cannot be read: more than 256 parts"):
                    visit.ask(soon())

            in_threads(ask, lambda: worker.receive(1.0))
