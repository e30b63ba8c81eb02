"""What only the gloo transport does: groups that fail and are made anew, time-outs, where it may be used."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgeprism.errors import FrameError, InputError, PeerLost, PeerTimeout
from edgeprism.wire.envelope import Envelope, max_bytes, pack
from edgeprism.wire.frame import Buffer, Kind, Limits
from edgeprism.wire.gloo import GlooMode, GlooTransport
from edgeprism.wire.gloo_meet import address_of_interface, route_to
from edgeprism.wire.gloo_store import RemoteStore, StoreServer
from edgeprism.wire.transport import Transport
from tests.wire.meshes import gloo_mesh, in_threads, soon

pytestmark = pytest.mark.alone

TIMEOUT_S = 1.0

# A device in a process of its own: says each block that it got, and exchanges as device 0 does.
PEER = """
import json, sys, time
import numpy as np
from edgeprism.errors import PeerError
from edgeprism.wire.frame import Buffer
from edgeprism.wire.gloo import GlooTransport
rank, num_devices, store, timeout_s, is_idle = json.loads(sys.argv[1])
with GlooTransport(rank, num_devices, store, timeout_s=timeout_s) as transport:
    transport.wait_connected(time.monotonic() + 20, [0])
    print("connected", flush=True)
    while is_idle:
        transport.watch(1.0)
    for block in range(10**6):
        rows = [Buffer.of(np.full((4, 8), block, np.float32))]
        try:
            transport.start(
                rows, send_to=[0], receive_from=[0], epoch=0, request=1, block=block
            ).wait(time.monotonic() + 20)
        except PeerError:
            break
"""


@contextmanager
def peer_process(store: str, *, is_idle: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Device 1 of 2, which exchanges block after block with device 0, or does nothing."""
    words = [sys.executable, "-c", PEER, json.dumps([1, 2, store, TIMEOUT_S, is_idle])]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            yield process
        finally:
            process.kill()


def exchange(transport: Transport, block: int, deadline: float, peers: tuple[int, ...] = (1,)) -> float:
    """One exchange with the peers; the first value that the first of them sent."""
    rows = [Buffer.of(np.zeros((4, 8), np.float32))]
    got = transport.start(rows, send_to=peers, receive_from=peers, epoch=0, request=1, block=block).wait(deadline)
    return float(got[peers[0]].arrays[0].data[0, 0])


def exchange_for_ever(transport: Transport, block: int, deadline: float) -> None:
    """Until something fails."""
    while True:
        exchange(transport, block, deadline)
        block += 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_peer_is_lost_in_time_and_used_when_another_comes_in_its_place(number: signal.Signals) -> None:
    """One that is killed is lost at once, one that stands still within the time-out; both are named. A new process of
    that rank gets a new group."""
    with GlooTransport(0, 2, "127.0.0.1:0", timeout_s=TIMEOUT_S) as transport:
        with peer_process(transport.store) as process:
            transport.wait_connected(soon(20))
            for block in range(5):
                assert exchange(transport, block, soon()) == block
            os.kill(process.pid, number)
            began = time.monotonic()
            with pytest.raises(PeerLost, match="device 1 is gone") as caught:
                exchange_for_ever(transport, 5, began + 10)
            assert caught.value.peers == (1,)
            assert time.monotonic() - began < (0.5 if number is signal.SIGKILL else TIMEOUT_S + 1.0)
            assert transport.lost().keys() == {1} and transport.connected() == set()
        with peer_process(transport.store):
            transport.wait_connected(soon(20))
            assert exchange(transport, 0, soon()) == 0
            assert transport.lost() == {}


def test_a_peer_that_stood_still_comes_back_by_itself() -> None:
    """The same process goes on: its old group is dead on both sides, and a new one is made."""
    with (
        GlooTransport(0, 2, "127.0.0.1:0", timeout_s=TIMEOUT_S) as transport,
        peer_process(transport.store, is_idle=True) as process,
    ):
        transport.wait_connected(soon(20))
        os.kill(process.pid, signal.SIGSTOP)
        while 1 not in transport.lost():
            transport.watch(0.1)
        assert "nothing was heard of it for 1 s" in transport.why_absent(1)
        os.kill(process.pid, signal.SIGCONT)
        transport.wait_connected(soon(10))
        assert transport.lost() == {} and transport.num_losses[1] == 1


def test_signs_of_life_keep_an_idle_link() -> None:
    """Nothing is sent for twice the time-out, and nobody is lost."""
    with (
        GlooTransport(0, 2, "127.0.0.1:0", timeout_s=0.4) as one,
        GlooTransport(1, 2, one.store, timeout_s=0.4) as two,
    ):
        in_threads(*(lambda t=t: t.wait_connected(soon()) for t in (one, two)))
        time.sleep(1.0)
        assert one.lost() == two.lost() == {}
        assert sum(one.num_losses.values()) == 0
        assert one.take_stats().frames_received == 0


def test_a_reader_that_is_ahead_waits_for_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is flooded while it computes takes in no more than so many frames; none is lost, and all of them
    count as read in the end."""
    monkeypatch.setattr("edgeprism.wire.gloo_link._MAX_UNREAD", 20)
    one, two = gloo_mesh(2)
    for number in range(100):
        one.send(1, Kind.TOKEN, epoch=0, request=number)
    time.sleep(0.3)
    assert isinstance(two, GlooTransport)
    assert two._inbox.qsize() <= 25
    for number in range(100):
        frame = two.receive(5.0)
        assert frame is not None and frame.request == number
    link = two._links[0]
    assert (link.num_read, link.num_bytes_read) == (link._num_put, link._num_bytes_put)
    one.close()
    two.close()


def test_a_coordinator_that_was_restarted_finds_its_workers(tmp_path: Path) -> None:
    """By a store that began anew under the same address, or a file with all that was ever said in it."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for store in (address, str(tmp_path / "store")):
        first = GlooTransport(0, 2, store, timeout_s=TIMEOUT_S)
        with GlooTransport(1, 2, store, timeout_s=TIMEOUT_S) as worker:
            first.wait_connected(soon())
            first.close()
            worker.watch(2.0)
            with GlooTransport(0, 2, store, timeout_s=TIMEOUT_S) as second:
                second.wait_connected(soon())
                second.send(1, Kind.CLOSE, epoch=0)
                frame = worker.receive(5.0)
                while frame is None:
                    frame = worker.receive(5.0)
                assert frame.kind is Kind.CLOSE


def test_workers_have_links_with_each_other_while_one_is_absent() -> None:
    """Three devices, of which one never comes: the other two exchange."""
    with GlooTransport(0, 3, "127.0.0.1:0") as one, GlooTransport(2, 3, one.store) as three:
        one.wait_connected(soon(), [2])
        with pytest.raises(PeerTimeout, match=r"device 1 \(no connection yet\)") as caught:
            one.wait_connected(time.monotonic() + 0.2)
        assert caught.value.peers == (1,)
        with pytest.raises(PeerLost, match="device 1"):
            one.send(1, Kind.READY, epoch=0)
        in_threads(lambda: exchange(one, 0, soon(), (2,)), lambda: exchange(three, 0, soon(), (0,)))


@pytest.mark.parametrize("mode", ["send_recv", "all_gather"])
def test_without_overlap_an_exchange_is_over_when_start_returns(mode: str) -> None:
    """Every frame is here by then; the worker learns from the coordinator that it is so."""
    how = GlooMode.parse(f"gloo:{mode},blocking")
    mesh = gloo_mesh(3, how.mode, how.overlaps)
    assert [t.how for t in mesh if isinstance(t, GlooTransport)] == [how] * 3

    def run(transport: Transport) -> None:
        others = [rank for rank in range(3) if rank != transport.rank]
        for block, num in enumerate((4, 400, 4, 40)):  # lengths grow and shrink
            rows = [Buffer.of(np.full((num + transport.rank, 64), transport.rank, np.float32))]
            began = transport.start(rows, send_to=others, receive_from=others, epoch=0, request=1, block=block)
            got = began.wait(0.0)  # the deadline has long passed
            assert {rank: len(frame.arrays[0].data) for rank, frame in got.items()} == {r: num + r for r in others}

    in_threads(*(lambda t=t: run(t) for t in mesh))
    for transport in mesh:
        transport.close()


def test_a_blocking_start_ends_when_a_newer_epoch_comes() -> None:
    """It waits for a peer that sends nothing, and is not deaf meanwhile."""
    from edgeprism.errors import RequestAborted

    one, two = gloo_mesh(2, overlaps=False)

    def wait() -> None:
        with pytest.raises(RequestAborted, match="epoch 0 to 4"):
            two.start([], send_to=[], receive_from=[0], epoch=0, request=1, block=0)

    began = time.monotonic()
    in_threads(wait, lambda: (time.sleep(0.1), one.send(1, Kind.EPOCH, epoch=4)))
    assert time.monotonic() - began < 2
    one.close()
    two.close()


def test_a_blocking_start_ends_at_the_deadline_of_the_wait_to_come() -> None:
    """Which is what then names the silent one."""
    one, two = gloo_mesh(2, overlaps=False)
    began = time.monotonic()
    started = one.start([], send_to=[], receive_from=[1], epoch=0, request=1, block=0, deadline=began + 0.3)
    assert 0.25 < time.monotonic() - began < 2
    with pytest.raises(PeerTimeout, match="device 1 sent no rows") as caught:
        started.wait(began + 0.3)
    assert caught.value.peers == (1,)
    one.close()
    two.close()


def test_an_all_gather_that_one_never_joins_ends_at_the_deadline_and_the_next_epoch_works() -> None:
    """Who gave up in which collective is nobody's concern later: each epoch has its own group."""
    one, two = gloo_mesh(2, "all_gather")
    with pytest.raises(PeerTimeout, match="device 1") as caught:
        exchange(one, 0, time.monotonic() + 0.2)
    assert caught.value.peers == (1,)
    one.epoch = two.epoch = 1
    rows = [Buffer.of(np.ones((2, 2), np.float32))]
    in_threads(
        *(
            lambda t=t, peer=peer: t.start(rows, send_to=[peer], receive_from=[peer], epoch=1, request=2, block=0).wait(
                soon()
            )
            for t, peer in ((one, 1), (two, 0))
        )
    )
    one.close()
    two.close()


def test_another_number_of_devices_is_named() -> None:
    """A worker started for another cluster says so, and gets no link."""
    with GlooTransport(0, 2, "127.0.0.1:0") as one, GlooTransport(1, 3, one.store) as two:
        with pytest.raises(PeerTimeout, match="device 0 counts 2 devices, this one 3"):
            two.wait_connected(time.monotonic() + 1.0, [0])
        assert one.connected() == set()


# Where it may be used


def test_off_loopback_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of this machine that others reach is refused, by name; --insecure and the lab allow it."""
    monkeypatch.delenv("EDGEPRISM_LAB", raising=False)
    try:
        address = route_to("192.0.2.77")
    except InputError:
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(InputError, match=f"{address} is no loopback.*--insecure"):
        GlooTransport(0, 2, f"{address}:0")
    for insecure, lab in ((True, ""), (False, "1")):
        monkeypatch.setenv("EDGEPRISM_LAB", lab)
        with GlooTransport(0, 1, f"{address}:0", insecure=insecure) as transport:
            assert transport.store.startswith(f"{address}:")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"store": "127.0.0.1"}, "must look like"),
        ({"store": "127.0.0.1:70000"}, "must look like"),
        ({"store": "no-such-host.invalid:29500"}, "no device is known as"),
        ({"interface": "no-such-net0"}, "has no IPv4 address here; there are .*lo"),
        ({"rank": 2}, "rank 2 is none of 2 devices"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, str | int], words: str) -> None:
    """In one line, before anything is started."""
    all_settings = {"rank": 1, "num_devices": 2, "store": "127.0.0.1:29500", **settings}
    with pytest.raises(InputError, match=words):
        GlooTransport(**all_settings)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_refused() -> None:
    """By device 0, which serves the store."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="the store cannot listen on"):
            GlooTransport(0, 2, f"127.0.0.1:{taken.getsockname()[1]}")


def test_the_interface_follows_from_the_route() -> None:
    """Loopback for loopback; and by name, where one is given."""
    assert route_to("127.0.0.1") == address_of_interface("lo") == "127.0.0.1"
    with GlooTransport(0, 2, "127.0.0.1:0", interface="lo") as one, GlooTransport(1, 2, one.store) as two:
        in_threads(lambda: one.wait_connected(soon()), lambda: two.wait_connected(soon()))


@pytest.mark.parametrize("text", ["gloo", "gloo:all_gather", "gloo:blocking", "gloo:all_gather,blocking"])
def test_modes_are_what_they_say(text: str) -> None:
    """Text and back."""
    assert str(GlooMode.parse(text)) == text


@pytest.mark.parametrize("text", ["", "glue", "gloo:fast", "gloo:send_recv,all_gather", "zmq:blocking"])
def test_unknown_modes_are_refused(text: str) -> None:
    """With those that there are."""
    with pytest.raises(InputError, match="gloo:all_gather,blocking"):
        GlooMode.parse(text)


# The envelope and the store


@pytest.mark.parametrize("lengths", [(), (28,), (30, 0, 7), (28, 64, 65), tuple(range(28, 284))])
def test_an_envelope_holds_its_parts(lengths: tuple[int, ...]) -> None:
    """Each where arrays lie well, and nothing else announced than is there."""
    parts = [bytes([index % 251]) * length for index, length in enumerate(lengths)]
    data = pack(parts, Limits())
    envelope = Envelope.read(data.data, Limits())
    assert envelope.num_bytes == len(data) and all(start % 64 == 0 for start in envelope.starts)
    assert [bytes(part) for part in envelope.parts(data)] == parts


def test_an_envelope_that_no_frame_has_is_refused_before_memory_is_taken() -> None:
    """Too long, too many parts, parts over the limit, a length that is not the sum: FrameError, and nothing else."""
    limits = Limits()
    good = pack([b"x" * 28, b"y" * 100], limits)
    for offset, value in ((0, 2**40), (0, len(good) + 64), (8, 1000), (12, 2**31), (16, 2**32 - 1), (16, 0)):
        bad = good.copy()
        bad[offset : offset + (8 if offset == 0 else 4)].view("<u8" if offset == 0 else "<u4")[:] = value
        with pytest.raises(FrameError):
            Envelope.read(bad.data, limits)
    for length in range(12):
        with pytest.raises(FrameError):
            Envelope.read(good[:length].data, limits)
    random = np.random.default_rng(0)
    for _ in range(2000):
        noise = random.integers(0, 256, 64, np.uint8)
        noise[8:12] = random.integers(0, 3, 4, np.uint8) * [1, 0, 0, 0]
        with pytest.raises(FrameError):
            Envelope.read(noise.data, limits)


def test_a_frame_longer_than_may_travel_is_not_sent() -> None:
    """The sender says so."""
    limits = Limits(max_array_bytes=1000, max_arrays=2)
    with pytest.raises(FrameError, match="split the batch"):
        pack([b"x" * max_bytes(limits)], limits)


def test_the_store_keeps_counts_and_refuses_the_rest() -> None:
    """Noise gets an answer and changes nothing; who asks for nothing that is there learns so in time."""
    server = StoreServer("127.0.0.1", 0)
    host, _, port = server.address.rpartition(":")
    with closing(RemoteStore(host, int(port))) as store:
        store.set("a", b"\x00\xff")
        assert (store.get("a"), store.add("n", 2), store.add("n", 0)) == (b"\x00\xff", 2, 2)
        assert store.check(["a", "n"]) and not store.check(["a", "b"])
        assert store._ask(b"get", "a", b"b", b"c")[0] == b"0"
        with pytest.raises(RuntimeError, match="refuses"):
            store._ask(b"eval", "1")
        assert store.get("a") == b"\x00\xff"
    server.close()
    with closing(RemoteStore(host, int(port))) as store, pytest.raises(RuntimeError, match="does not answer"):
        store.get("a")
