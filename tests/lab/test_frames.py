"""Links that send several frames as one packet: how many, that rates stay exact, and that nothing waits for ever."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from edgeprism.cli.lab import warn_of_bursts
from edgeprism.errors import InputError, NoLab
from edgeprism.lab.buckets import FRAME_BYTES, MAX_FRAMES, SEGMENT_BYTES, bucket, burst_bytes, frames_at_once
from edgeprism.lab.device import LabDevice, choose_frames
from edgeprism.lab.lab import Lab
from edgeprism.lab.namespaces import require_root
from edgeprism.lab.state import State

NUM_CHECKS = 4  # of which one has to pass: the machine may be busy otherwise


def pair(rate_mbit: float | None, **fields: float) -> list[LabDevice]:
    """Two devices."""
    return [LabDevice(name=name, rate_mbit=rate_mbit, **fields) for name in ("a", "b")]  # type: ignore[arg-type]


@pytest.fixture
def root() -> None:
    """Skips where there can be no lab."""
    try:
        require_root()
    except NoLab as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize(
    ("rate_mbit", "num_frames"),
    [(0.5, 1), (100.0, 1), (190.0, 1), (200.0, 2), (400.0, 4), (700.0, 7), (1000.0, 8), (None, 8)],
)
def test_what_a_link_sends_at_once(rate_mbit: float | None, num_frames: int) -> None:
    """What it sends in 125 µs: one frame at least, eight at most."""
    assert frames_at_once(rate_mbit) == num_frames
    if rate_mbit is not None and 1 < num_frames < MAX_FRAMES:
        assert num_frames * FRAME_BYTES <= rate_mbit * 1e6 / 8 * 125e-6 < (num_frames + 1) * FRAME_BYTES


def test_a_bucket_holds_a_packet() -> None:
    """A packet, and what the link sends while the kernel's timers are late, at any rate."""
    assert burst_bytes(400.0, 4) == 4 * 1514 + 6250
    assert burst_bytes(1000.0, 8) == 8 * 1514 + 31250
    assert burst_bytes(20.0, 1) == 1514 + 312
    assert burst_bytes(0.01, 8) >= 8 * 1514
    assert bucket(400.0, 4).startswith("tbf rate 400000000bit burst 12306b limit ")


def test_a_rate_far_below_the_start_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """In a line, with what to do; not where the link suits the rate, or a relay sends single frames."""
    state = State(owner=1, devices=tuple(pair(400.0)), cores=(0, 1), is_shared=False, frames_at_once=4)
    warn_of_bursts(state, 20.0)
    told = capsys.readouterr().err
    assert "1.8 ms early" in told and "--frames-at-once 1" in told and told.count("\n") == 1
    for other, rate_mbit in ((state, 400.0), (state, None), (replace(state, is_relayed=True), 20.0)):
        warn_of_bursts(other, rate_mbit)
    assert capsys.readouterr().err == ""


def test_the_slowest_link_decides() -> None:
    """What is asked for goes first; a delay means single frames."""
    assert choose_frames([*pair(1000.0), LabDevice(name="c", rate_mbit=200.0)], None) == 2
    assert choose_frames([*pair(None), LabDevice(name="c", rate_mbit=400.0)], None) == 4
    assert choose_frames(pair(400.0), 1) == 1
    assert choose_frames(pair(20.0), 8) == 8
    assert choose_frames([pair(400.0)[0], LabDevice(name="b", rate_mbit=400.0, delay_ms=2.0)], None) == 1
    with pytest.raises(InputError, match="1 to 8 frames"):
        choose_frames(pair(400.0), 9)
    with pytest.raises(InputError, match="delay"):
        choose_frames(pair(400.0, delay_ms=2.0), 2)


@contextmanager
def stream(lab: Lab) -> Iterator[None]:
    """Device 0 sends to device 1 all the time."""
    over = threading.Event()
    with lab.on(1), socket.create_server((lab.address(1), 5000)) as server:
        with lab.on(0):
            client = socket.create_connection((lab.address(1), 5000))
        accepted, _ = server.accept()

    def send() -> None:
        with suppress(OSError):
            while not over.is_set():
                client.sendall(bytes(65536))

    def receive() -> None:
        while accepted.recv(65536):
            pass

    threads = [threading.Thread(target=target, daemon=True) for target in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        client.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(timeout=10)
        client.close()
        accepted.close()


def rate_of(lab: Lab, seconds: float) -> float:
    """Mbit/s of frames that arrive at device 1, by the buckets' own count."""
    before, began_s = lab.bytes_to(1), time.monotonic()
    time.sleep(seconds)
    return (lab.bytes_to(1) - before) * 8e-6 / (time.monotonic() - began_s)


def packets(lab: Lab, count: int) -> list[int]:
    """Bytes of so many packets that arrive at device 1, headers included."""
    with lab.on(1):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    with tap:
        tap.bind(("eth0", 0x0800))
        tap.settimeout(10)
        return [tap.recv_into(bytearray(1), 1, socket.MSG_TRUNC) for _ in range(count)]


@pytest.mark.alone
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize(("rate_mbit", "num_frames"), [(100.0, 1), (200.0, 2), (400.0, 4), (1000.0, 8)])
def test_packets_hold_so_many_frames(root: None, rate_mbit: float, num_frames: int, is_shared: bool) -> None:
    """Most of those that pass hub and buckets hold that many, none holds more; every frame's headers are counted."""
    with Lab(pair(rate_mbit), is_shared=is_shared, share_cores=True) as lab, stream(lab):
        assert lab.state.frames_at_once == num_frames
        time.sleep(0.5)
        sizes = packets(lab, 500)
        full = FRAME_BYTES + (num_frames - 1) * SEGMENT_BYTES  # it has headers once
        assert max(sizes) <= full
        assert sum(size == full for size in sizes) > 0.5 * len(sizes)
        if not is_shared:  # acknowledgements have a part of a medium
            assert 0.95 * rate_mbit < rate_of(lab, 1.0) < 1.02 * rate_mbit


@pytest.mark.alone
@pytest.mark.parametrize(("rate_mbit", "is_shared"), [(400.0, True), (1000.0, False)])
def test_a_lab_passes_its_own_check(root: None, rate_mbit: float, is_shared: bool) -> None:
    """The rates are those of single frames."""
    with Lab(pair(rate_mbit), is_shared=is_shared, share_cores=True) as lab:
        for _ in range(NUM_CHECKS):
            report = lab.check()
            if not report.off:
                break
        assert not report.off
        assert report.to_json()["frames_at_once"] == lab.state.frames_at_once > 1


@pytest.mark.alone
def test_a_rate_falls_under_load(root: None) -> None:
    """Packets of four frames go on over a link of 20 Mbit/s, also those that waited when it became one, and back."""
    with Lab(pair(400.0), share_cores=True) as lab, stream(lab):
        time.sleep(0.5)
        for rate_mbit in (20.0, 400.0, 20.0):
            lab.set_rate(None, rate_mbit)
            time.sleep(0.3)
            assert rate_of(lab, 1.0) == pytest.approx(rate_mbit, rel=0.1)


@pytest.mark.alone
def test_a_delay_is_set_later(root: None) -> None:
    """A connection that began with packets of four frames goes on over the relay, at the rate, and with the delay."""
    with Lab(pair(200.0), share_cores=True, frames_at_once=4) as lab:
        with stream(lab):
            time.sleep(0.3)
            lab.set_delay(None, 5.0)
            time.sleep(2.0)  # until TCP's windows are as large as that takes
            assert rate_of(lab, 1.0) == pytest.approx(200.0, rel=0.1)
        with lab.on(1), socket.create_server((lab.address(1), 5001)):
            began_s = time.monotonic()
            with lab.on(0), socket.create_connection((lab.address(1), 5001)):
                assert 0.0095 < time.monotonic() - began_s < 0.05  # a round trip
