"""ZeroMQ: who gets in, and how soon a peer that dies, hangs or misbehaves is known."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import zmq

from edgeprism.errors import FrameError, InputError, PeerLost, PeerTimeout
from edgeprism.wire import links
from edgeprism.wire.frame import Buffer, Frame, Kind, encode
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.links import write_message
from edgeprism.wire.zmq import ZmqTransport
from tests.wire.meshes import in_threads, soon, zmq_mesh

pytestmark = pytest.mark.alone

ECHO = """
import json, sys, time
from edgeprism.wire.frame import Kind
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.zmq import ZmqTransport
own, coordinator = json.loads(sys.stdin.readline())
with ZmqTransport(1, KeyPair(**own), watch_fd=0) as transport:
    print(transport.address, flush=True)
    transport.connect([Peer(rank=0, public_key=coordinator)])
    while not transport.is_orphan:
        if frame := transport.receive(1.0):
            transport.send(0, Kind.READY, epoch=frame.epoch, request=frame.request)
"""


@contextmanager
def child_of(keys: KeyPair, own: KeyPair) -> Iterator[tuple[subprocess.Popen[str], Peer]]:
    """A process that answers each control frame with READY, and how it is reached as device 1."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", ECHO], stdin=pipe, stdout=pipe, text=True, env=environment) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps([{"public": own.public, "secret": own.secret}, keys.public]) + "\n")
            child.stdin.flush()
            yield child, Peer(rank=1, address=child.stdout.readline().strip(), public_key=own.public)
        finally:
            child.kill()


def ask(transport: ZmqTransport, request: int) -> None:
    """One question to device 1, and its answer."""
    transport.send(1, Kind.LOAD, epoch=0, request=request)
    transport.wait_control((Kind.READY,), (1,), soon(), epoch=0, request=request)


def test_a_killed_process_is_lost_at_once_and_its_successor_is_used() -> None:
    """SIGKILL is seen within 50 ms by a wait under way; another process with the same rank and key takes its place."""
    keys, own = KeyPair.generate(), KeyPair.generate()
    with ZmqTransport(0, keys) as transport:
        with child_of(keys, own) as (child, peer):
            transport.connect([peer])
            ask(transport, 1)
            child.kill()
            began = time.monotonic()
            with pytest.raises(PeerLost, match="device 1 is gone"):
                transport.wait_control((Kind.RESULT,), (1,), soon(), epoch=0)
            assert time.monotonic() - began < 0.25  # 50 ms on an idle machine
        with child_of(keys, own) as (child, peer):
            transport.connect([peer])
            transport.wait_connected(soon())
            assert transport.lost() == {}
            ask(transport, 2)


def test_a_stopped_process_is_lost_by_its_heartbeat_and_comes_back() -> None:
    """SIGSTOP: lost when heartbeats fail; resumed, it is connected again and answers, without ``connect``."""
    keys, own = KeyPair.generate(), KeyPair.generate()
    stopping = ZmqTransport(0, keys, heartbeat_s=0.1, heartbeat_timeout_s=0.3)
    with child_of(keys, own) as (child, peer), stopping as transport:
        transport.connect([peer])
        ask(transport, 1)
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(PeerLost):
            transport.wait_control((Kind.RESULT,), (1,), soon(), epoch=0)
        child.send_signal(signal.SIGCONT)
        transport.wait_connected(soon())
        ask(transport, 2)


def test_a_worker_ends_when_its_parents_pipe_does() -> None:
    """End of file on ``watch_fd`` loses device 0."""
    keys, own = KeyPair.generate(), KeyPair.generate()
    with child_of(keys, own) as (child, _):
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(5.0) == 0


def test_a_strangers_key_is_refused() -> None:
    """A key that is not listed gets no connection; the listed one does, before and after."""
    ours, theirs, stranger = KeyPair.generate(), KeyPair.generate(), KeyPair.generate()
    with ZmqTransport(1, ours) as server, ZmqTransport(0, theirs) as friend, ZmqTransport(0, stranger) as foe:
        server.connect([Peer(rank=0, public_key=theirs.public)])
        door = Peer(rank=1, address=server.address, public_key=ours.public)
        foe.connect([door])
        foe.send(1, Kind.CLOSE, epoch=0)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert server.receive(0.02) is None
            assert foe.receive(0.02) is None
        assert server.num_refused > 0
        assert foe.connected() == server.connected() == set()
        with pytest.raises(PeerTimeout, match="refuses this device's key"):
            foe.wait_connected(time.monotonic())
        friend.connect([door])
        in_threads(lambda: friend.wait_connected(soon()), lambda: server.wait_connected(soon()))


def test_a_dialler_that_greets_and_ends_unheard_keeps_nobody_out() -> None:
    """It came and went while the other side computed: the next one with its key is served."""
    ours, theirs = KeyPair.generate(), KeyPair.generate()
    with ZmqTransport(1, ours) as server:
        server.connect([Peer(rank=0, public_key=theirs.public)])
        door = Peer(rank=1, address=server.address, public_key=ours.public)
        with ZmqTransport(0, theirs) as first:
            first.connect([door])
            end = soon()
            while not first.connected() and time.monotonic() < end:
                if server._gate.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                    server._gate.answer()  # that it is admitted, and nothing else, is said beside the computation
                first.receive(0.01)
            assert first.connected() == {1}
            time.sleep(0.2)
        time.sleep(0.3)
        for _ in range(3):
            server.receive(0.1)
        assert server.connected() == set()
        with ZmqTransport(0, theirs) as second:
            second.connect([door])
            second.send(1, Kind.EPOCH, epoch=1)
            end, heard = soon(), None
            while heard is None and time.monotonic() < end:
                heard = server.receive(0.02)
                second.receive(0.02)
            assert heard is not None and heard.kind is Kind.EPOCH and server.connected() == {0}
            server.send(0, Kind.READY, epoch=1)
            end, answer = soon(), None
            while answer is None and time.monotonic() < end:
                answer = second.receive(0.02)
            assert answer is not None and answer.kind is Kind.READY and "busy" not in answer.info


def test_who_was_too_busy_for_a_handshake_hears_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first connection was given up unheard, and the next one got its file descriptor: both are noticed at once."""
    monkeypatch.setattr(links, "HANDSHAKE_MS", 300)
    ours, theirs = KeyPair.generate(), KeyPair.generate()
    with ZmqTransport(1, ours) as server, ZmqTransport(0, theirs) as first:
        server.connect([Peer(rank=0, public_key=theirs.public)])
        first.connect([Peer(rank=1, address=server.address, public_key=ours.public)])
        end = time.monotonic() + 0.7  # the first has ended, and the second has begun
        while time.monotonic() < end:
            first.receive(0.02)
        end = soon()
        while not first.connected() and time.monotonic() < end:
            server._gate.answer()
            first.receive(0.01)
        time.sleep(0.2)
        first.send(1, Kind.EPOCH, epoch=1)
        end, heard = soon(), None
        while heard is None and time.monotonic() < end:
            heard = server.receive(0.02)
            first.receive(0.02)
        assert heard is not None and heard.kind is Kind.EPOCH and server.connected() == {0}


def test_a_server_with_another_key_is_not_believed() -> None:
    """The dialler knows whom it dials: without the listed key's secret half no handshake succeeds."""
    ours, theirs, expected = KeyPair.generate(), KeyPair.generate(), KeyPair.generate()
    with ZmqTransport(1, ours) as server, ZmqTransport(0, theirs) as dialler:
        server.connect([Peer(rank=0, public_key=theirs.public)])
        dialler.connect([Peer(rank=1, address=server.address, public_key=expected.public)])
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            server.receive(0.02)
            dialler.receive(0.02)
        assert dialler.connected() == set()
        with pytest.raises(PeerTimeout, match="device 1"):
            dialler.wait_connected(time.monotonic())


def test_a_plain_connection_gets_nowhere() -> None:
    """Without CURVE at all: nothing is delivered, and the server goes on."""
    friend, server = zmq_mesh(2)
    with friend, server, zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        plain.connect(server.address)
        plain.send(b"hello")
        assert server.receive(0.3) is None
        assert server.connected() == {0}


def test_a_connection_that_says_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise anybody could hold all file descriptors of a device for half a minute."""
    monkeypatch.setattr(links, "HANDSHAKE_MS", 300)
    with ZmqTransport(0, KeyPair.generate()) as server:
        port = int(server.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as silent:
            while silent.recv(100):  # its greeting, and then the end
                pass


def test_a_listed_key_cannot_speak_for_another() -> None:
    """A frame whose sender is not the rank of the key is dropped, whatever routing id its connection chose."""
    one, two, three = zmq_mesh(3)
    with one, two, three:
        write_message(two._links[2].socket, encode(Frame(kind=Kind.CLOSE, epoch=0, sender=0)))
        two.send(2, Kind.READY, epoch=0)
        frame = three.receive(5.0)
        assert frame is not None
        assert (frame.kind, frame.sender) == (Kind.READY, 1)
        assert three.take_stats().frames_dropped == 1


def test_a_removed_peer_is_not_heard_any_more() -> None:
    """``connect`` without a peer takes its key off the list; its open connection counts for nothing."""
    one, two, three = zmq_mesh(3)
    with one, two, three:
        three.connect([two._links[2].peer, Peer(rank=0, public_key=one._keys.public)])
        two.send(2, Kind.READY, epoch=0)
        one.send(2, Kind.LOAD, epoch=0)
        frame = three.receive(5.0)
        assert frame is not None
        assert frame.sender == 0
        dropped, deadline = three.take_stats().frames_dropped, soon()  # two connections: either may arrive first
        while not dropped and time.monotonic() < deadline:
            assert three.receive(0.05) is None
            dropped += three.take_stats().frames_dropped
        assert dropped == 1
        with pytest.raises(PeerLost):
            three.send(1, Kind.READY, epoch=0)


def test_a_peer_that_is_listed_again_is_heard_by_the_connection_that_stands() -> None:
    """The dialler greets once, and does not know that it was taken off the list and put on it again; nor that the one
    it dials believed, when it greeted, to be the one that dials."""
    one, two, three = zmq_mesh(3)
    with one, two, three:
        coordinator = Peer(rank=0, public_key=one._keys.public)
        for rank in (2, 1):  # meanwhile the dialled one keeps its rank, or takes that of the other
            dials = Peer(rank=1, address=two.address, public_key=two._keys.public)
            three.introduce(rank, [coordinator])
            assert three.connected() == {0}
            three.introduce(2, [coordinator, dials])
            assert three.connected() == {0, 1}
            two.send(2, Kind.READY, epoch=0)
            three.send(1, Kind.READY, epoch=0)
            frames = three.receive(5.0), two.receive(5.0)
            assert [frame.kind for frame in frames if frame] == [Kind.READY] * 2
    keys = [KeyPair.generate(), KeyPair.generate()]
    with ZmqTransport(3, keys[0]) as dialler, ZmqTransport(2, keys[1]) as dialled:
        before = Peer(rank=3, address=dialler.address, public_key=keys[0].public)
        dialled.connect([before])
        dialler.connect([Peer(rank=4, address=dialled.address, public_key=keys[1].public)])
        in_threads(lambda: dialler.wait_connected(soon(), [4]), lambda: dialled.receive(0.5))
        dialled.introduce(4, [before])
        dialled.wait_connected(soon(), [3])
        dialled.send(3, Kind.READY, epoch=0)
        assert dialler.receive(5.0) is not None


@pytest.mark.parametrize("sender", [0, 1])
def test_an_oversized_zeromq_frame_cuts_the_connection_which_comes_back(sender: int) -> None:
    """The receiver's socket refuses it unread; both name the other as lost, then go on. (``test_pieces``: what comes of
    an array that is too large.)"""
    mesh = zmq_mesh(2)
    with mesh[0], mesh[1]:
        with pytest.raises(FrameError, match="split the batch"):
            mesh[sender].send(1 - sender, Kind.LOAD, epoch=0, buffers=[Buffer.of(np.zeros(2**28 + 1, np.int8))])
        link = mesh[sender]._links[1 - sender]
        link.socket.send_multipart([*link.prefix, b"x" * 100_000])
        for t in mesh:
            assert t.receive(5.0) is None
            assert t.lost().keys() == {1 - t.rank}
        in_threads(*(lambda t=t: t.wait_connected(soon()) for t in mesh))
        mesh[sender].send(1 - sender, Kind.READY, epoch=0)
        assert mesh[1 - sender].receive(5.0) is not None


def test_what_is_sent_before_the_connection_stands_is_kept() -> None:
    """Both ways; the order stays."""
    keys = [KeyPair.generate(), KeyPair.generate()]
    with ZmqTransport(0, keys[0]) as one, ZmqTransport(1, keys[1]) as two:
        one.connect([Peer(rank=1, address=two.address, public_key=keys[1].public)])
        two.connect([Peer(rank=0, public_key=keys[0].public)])
        for request in range(3):
            one.send(1, Kind.REQUEST, epoch=0, request=request)
            two.send(0, Kind.RESULT, epoch=0, request=request)

        def read(transport: ZmqTransport) -> None:
            transport.wait_connected(soon())
            frames = [transport.receive(5.0) for _ in range(3)]
            assert [frame.request for frame in frames if frame] == [0, 1, 2]

        in_threads(lambda: read(one), lambda: read(two))


def test_keys_and_peers_check_themselves() -> None:
    """A wrong key or address is refused by name; the secret half is not shown; JSON comes back."""
    pair = KeyPair.generate()
    assert pair.secret not in repr(pair)
    peer = Peer(rank=2, address="tcp://10.0.0.1:5000", public_key=pair.public)
    assert Peer.from_json(json.loads(json.dumps(peer.to_json()))) == peer
    with pytest.raises(InputError, match="40 characters"):
        Peer(rank=1, public_key="short")
    with pytest.raises(InputError, match="40 characters"):
        KeyPair(public=pair.public, secret="\u00e9" * 40)
    with pytest.raises(InputError, match="40 characters"):
        Peer(rank=1, public_key="#" * 40)  # every character is one of Z85, the number is too large
    with pytest.raises(InputError, match="must look like tcp"):
        Peer(rank=1, address="10.0.0.1", public_key=pair.public)
    with pytest.raises(InputError, match="a peer is an object"):
        Peer.from_json({"rank": "1"})


def test_an_address_that_is_taken_is_refused() -> None:
    """InputError, and nothing is left open."""
    with ZmqTransport(0, KeyPair.generate()) as one:
        with pytest.raises(InputError, match="cannot listen"):
            ZmqTransport(0, KeyPair.generate(), bind=one.address)
        with pytest.raises(InputError, match="has no address"):
            one.connect([Peer(rank=1, public_key=KeyPair.generate().public)])
