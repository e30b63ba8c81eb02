"""What every transport does. All run the same tests: one in memory, the others over real sockets."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from edgeprism.errors import PeerError, PeerFault, PeerLost, PeerTimeout, RequestAborted
from edgeprism.wire.frame import Buffer, Frame, Kind, encode
from edgeprism.wire.transport import Transport
from tests.wire.meshes import Mesh, in_threads, soon

pytestmark = pytest.mark.alone


def rows(value: float, num: int = 4) -> list[Buffer]:
    """One buffer of that many rows."""
    return [Buffer.of(np.full((num, 768), value, np.float32))]


def exchange(transport: Transport, block: int = 0, epoch: int = 0):
    """Start an exchange with everyone else."""
    others = [rank for rank in range(transport.num_devices) if rank != transport.rank]
    return transport.start(
        rows(transport.rank), send_to=others, receive_from=others, epoch=epoch, request=1, block=block
    )


def skip_if_collective(mesh: Mesh) -> None:
    """For tests in which a device sends DATA to one that does not take part in the exchange."""
    if getattr(mesh, "is_collective", False):
        pytest.skip("an all_gather moves nothing until all have joined it")


@pytest.mark.parametrize("num_devices", [1, 2, 3, 5])
def test_everyone_gets_everyones_rows(mesh: Mesh, num_devices: int) -> None:
    """Twelve blocks in lock step; each device sees the others' rows, block by block."""

    def run(transport: Transport) -> None:
        for block in range(12):
            for sender, frame in exchange(transport, block).wait(soon()).items():
                assert frame.block == block
                assert (frame.arrays[0].data == sender).all()

    in_threads(*(lambda t=t: run(t) for t in mesh(num_devices)))


def test_a_large_array_survives_and_its_buffer_is_free_at_once(mesh: Mesh) -> None:
    """Sending copies: what is changed afterwards does not arrive changed. A received array may be written."""
    one, two = mesh(2)
    data = np.arange(2_000_000, dtype=np.float32)
    one.start([Buffer.of(data)], send_to=[1], receive_from=[], epoch=0, request=0, block=0)
    data[:] = 0
    got = two.start([], send_to=[], receive_from=[0], epoch=0, request=0, block=0).wait(soon())[0].arrays[0].data
    assert (got == np.arange(2_000_000)).all()
    got[0] = 5


def test_early_blocks_wait_for_their_turn(mesh: Mesh) -> None:
    """A device may run ahead; nothing is lost, nothing is mixed up."""
    skip_if_collective(mesh)
    one, two = mesh(2)
    ahead = [exchange(one, block) for block in range(20)]
    for block in reversed(range(20)):
        assert exchange(two, block).wait(soon())[0].block == block
    for block, started in enumerate(ahead):
        assert started.wait(soon())[1].block == block


def test_control_frames_come_in_order_with_their_meta(mesh: Mesh) -> None:
    """``receive`` gives control frames only, in order, and None when time is out."""
    one, two = mesh(2)
    exchange(one)
    num_bytes = one.send(1, Kind.LOAD, epoch=0, meta={"model": "vit"})
    one.send(1, Kind.REQUEST, epoch=0, request=3, buffers=rows(2))
    first, second = two.receive(5.0), two.receive(5.0)
    assert first is not None
    assert second is not None
    assert (first.kind, first.info, first.sender) == (Kind.LOAD, {"model": "vit"}, 0)
    assert (second.kind, second.request) == (Kind.REQUEST, 3)
    assert two.receive(0.02) is None
    assert num_bytes > 0


def test_an_exchange_past_its_deadline_names_the_silent(mesh: Mesh) -> None:
    """PeerTimeout carries exactly the devices that sent nothing."""
    skip_if_collective(mesh)
    one, two, _ = mesh(3)
    exchange(two)
    waiting, began = exchange(one), time.monotonic()
    with pytest.raises(PeerTimeout, match="device 2 sent no rows of block 0") as caught:
        waiting.wait(began + 0.2)
    assert caught.value.peers == (2,)
    assert 0.15 < time.monotonic() - began < 1


def test_what_has_come_is_taken_after_the_deadline(mesh: Mesh) -> None:
    """A late wait for frames that are there does not fail."""
    skip_if_collective(mesh)
    one, two = mesh(2)
    exchange(two)
    time.sleep(0.1)
    assert exchange(one).wait(time.monotonic() - 1).keys() == {1}


def test_a_closed_peer_is_lost_at_once_and_what_it_sent_counts(mesh: Mesh) -> None:
    """Waits for it end at once with PeerLost; its last words before that are read; sending to it is refused."""
    one, two, three = mesh(3)
    exchange(two, block=0)
    assert exchange(one, block=0).receive_from == (1, 2)
    exchange(three, block=0)
    time.sleep(0.1)
    two.close()
    assert one.start([], send_to=[], receive_from=[1, 2], epoch=0, request=1, block=0).wait(soon()).keys() == {1, 2}
    waiting, began = one.start([], send_to=[], receive_from=[1, 2], epoch=0, request=1, block=1), time.monotonic()
    exchange_of_three_fails = pytest.raises(PeerLost)
    with pytest.raises(PeerLost, match="device 1 is gone") as caught:
        waiting.wait(soon())
    assert caught.value.peers == (1,)
    assert time.monotonic() - began < 1
    assert one.lost().keys() == {1}
    with pytest.raises(PeerLost):
        one.send(1, Kind.CLOSE, epoch=0)
    time.sleep(0.1)
    three.lost()
    with exchange_of_three_fails as caught:
        exchange(three, block=1)
    assert caught.value.peers == (1,)
    assert one.start([], send_to=[], receive_from=[2], epoch=0, request=1, block=1).wait(soon()).keys() == {2}


def test_a_lost_peer_wakes_receive(mesh: Mesh) -> None:
    """A thread that waits for ever for control frames gets to look at ``lost``."""
    one, two = mesh(2)
    two.close()
    assert one.receive(None) is None
    assert one.lost().keys() == {1}


def test_a_newer_epoch_aborts_waits(mesh: Mesh) -> None:
    """The wait ends in RequestAborted, the EPOCH frame stays readable, and the old epoch's frames are dropped."""
    skip_if_collective(mesh)
    one, two = mesh(2)
    waiting = exchange(two)
    one.send(1, Kind.EPOCH, epoch=4)
    with pytest.raises(RequestAborted, match="epoch 0 to 4"):
        waiting.wait(soon())
    with pytest.raises(RequestAborted):
        two.check_epoch(0)
    frame = two.receive(0.0)
    assert frame is not None
    assert (frame.kind, frame.epoch) == (Kind.EPOCH, 4)
    two.epoch = 4
    exchange(one, epoch=0)
    one.send(1, Kind.TOKEN, epoch=3)
    exchange(one, epoch=4)
    assert exchange(two, epoch=4).wait(soon())[0].epoch == 4
    assert two.take_stats().frames_dropped == 2


def test_frames_of_a_coming_epoch_are_kept(mesh: Mesh) -> None:
    """A device that heard of the new epoch first may send for it before we go there."""
    skip_if_collective(mesh)
    one, two = mesh(2)
    exchange(one, epoch=0)
    exchange(one, epoch=1)
    two.epoch = 0
    assert two.receive(0.1) is None
    two.epoch = 1
    assert exchange(two, epoch=1).wait(soon())[0].epoch == 1
    assert two.take_stats().frames_dropped == 1


def test_results_are_collected_from_several(mesh: Mesh) -> None:
    """``wait_control`` gives one frame a peer and leaves other control frames alone."""
    one, two, three = mesh(3)
    two.send(0, Kind.READY, epoch=0)
    for worker in (two, three):
        worker.send(0, Kind.RESULT, epoch=0, request=9, buffers=rows(worker.rank))
    got = one.wait_control((Kind.RESULT,), (1, 2), soon(), epoch=0, request=9)
    assert {rank: frame.arrays[0].data[0, 0] for rank, frame in got.items()} == {1: 1, 2: 2}
    ready = one.receive(0.0)
    assert ready is not None
    assert ready.kind is Kind.READY


def test_a_fault_ends_waits_with_the_peers_words(mesh: Mesh) -> None:
    """PeerFault, in a wait for results as in an exchange; a fault of another request does not count."""
    one, two = mesh(2)
    two.send(0, Kind.FAULT, epoch=0, request=0, meta={"message": "old"})
    two.send(0, Kind.FAULT, epoch=0, request=1, meta={"message": "out of memory"})
    with pytest.raises(PeerFault, match="device 1 failed: out of memory") as caught:
        exchange(one).wait(soon())
    assert caught.value.peers == (1,)
    two.send(0, Kind.FAULT, epoch=0, request=2, meta={"message": "again"})
    with pytest.raises(PeerFault, match="again"):
        one.wait_control((Kind.RESULT,), (1,), soon(), epoch=0, request=2)


@pytest.mark.parametrize(
    ("meta", "kind", "peers"),
    [
        ({"blamed": [2], "cause": "timeout"}, PeerTimeout, (2,)),
        ({"blamed": [2], "cause": "lost"}, PeerLost, (2,)),
        ({"blamed": [0, 1, 2, 9, "2", None]}, PeerFault, (1, 2)),
        ({"blamed": [0], "cause": "timeout"}, PeerTimeout, ()),
        ({"blamed": "2", "cause": ["lost"]}, PeerFault, (1,)),
        ({"cause": "input"}, PeerFault, ()),
    ],
)
def test_a_fault_blames_whom_its_sender_blames(
    mesh: Mesh, meta: dict[str, Any], kind: type[PeerError], peers: tuple[int, ...]
) -> None:
    """Other devices, if it names any that exist; not the one that is told; else itself; nobody for bad input."""
    one, two, _ = mesh(3)
    two.send(0, Kind.FAULT, epoch=0, request=1, meta={"message": "nothing came", **meta})
    with pytest.raises(PeerError, match="nothing came") as caught:
        one.wait_control((Kind.RESULT,), (1, 2), soon(), epoch=0, request=1)
    assert type(caught.value) is kind
    assert "device 1" in str(caught.value)
    assert caught.value.peers == peers


@pytest.mark.parametrize("kind", [Kind.EPOCH, Kind.LOAD, Kind.REQUEST, Kind.CLOSE])
def test_only_the_coordinator_gives_orders(mesh: Mesh, kind: Kind) -> None:
    """A worker's EPOCH would end every wait of the others; it is dropped, as are its other orders."""
    one, two, three = mesh(3)
    for receiver in (one, three):
        two.send(receiver.rank, kind, epoch=7)
        two.send(receiver.rank, Kind.READY, epoch=0)
        frame = receiver.receive(5.0)
        assert frame is not None
        assert frame.kind is Kind.READY
        receiver.check_epoch(0)
        assert receiver.take_stats().frames_dropped == 1


def test_a_broken_frame_is_dropped_and_the_connection_goes_on(mesh: Mesh) -> None:
    """Noise, a lie about the sender, too many parts: counted; the next good frame arrives."""
    one, two = mesh(2)
    for parts in ([b"noise"], [b"x"] * 50, encode(Frame(kind=Kind.LOAD, epoch=0, sender=1))):
        one._post(1, parts)
        two._post(0, [bytes(part)[::-1] for part in parts])
    one.send(1, Kind.READY, epoch=0)
    two.send(0, Kind.READY, epoch=0)
    for transport in (one, two):
        frame = transport.receive(5.0)
        assert frame is not None
        assert frame.kind is Kind.READY
        assert transport.take_stats().frames_dropped == 3


def test_a_flood_of_early_frames_is_bounded(mesh: Mesh) -> None:
    """A device gone wrong cannot fill the memory with frames that nobody asks for."""
    one, two = mesh(2)
    for block in range(300):
        one.start([], send_to=[1], receive_from=[], epoch=0, request=0, block=block)
    one.send(1, Kind.READY, epoch=0)
    assert two.receive(5.0) is not None
    assert two.take_stats().frames_dropped == 44


def test_stats_count_bytes_and_reset(mesh: Mesh) -> None:
    """Both ends count the same bytes; taking resets."""
    one, two = mesh(2)
    num_bytes = one.send(1, Kind.READY, epoch=0, buffers=rows(1))
    assert two.receive(5.0) is not None
    assert one.take_stats().bytes_sent == num_bytes == two.take_stats().bytes_received
    assert one.take_stats().frames_sent == 0


def test_closing_twice_is_fine(mesh: Mesh) -> None:
    """Cleanup paths may meet."""
    with mesh(2)[0] as one:
        one.close()
