"""Worker processes on this machine: made, introduced to each other, and ended.

A child gets what it must know, its secret key included, as one line of JSON on its standard input, never on its command
line. It answers with its address; then everyone learns everyone's. The pipe stays open: when this process ends, however
it ends, the child reads the end of the pipe and ends too.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import combinations
from typing import IO, Any

from edgeprism.errors import InputError, PeerError
from edgeprism.runtime import pacer
from edgeprism.runtime.cluster import Cluster
from edgeprism.runtime.cluster_key import of_processes
from edgeprism.runtime.cores import divide_cores, on_cores
from edgeprism.runtime.paced import LinkPace
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.zmq import ZmqTransport

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 3.0


def spawn_workers(
    num_devices: int, *, share_cores: bool = False, gloo: str | None = None, pace: LinkPace | None = None
) -> Cluster:
    """This process as device 0, and ``num_devices`` - 1 children. PeerError when a child does not come up.

    ``gloo``: how they talk over gloo, as ``GlooMode`` writes it, instead of over ZeroMQ. ``pace``: of their links."""
    cores = divide_cores(num_devices, share=share_cores)
    if gloo is not None and pace is not None:
        raise InputError("links over gloo cannot be paced; use edgeprism lab, or leave --link-rate out")
    if gloo is not None:
        return _spawn_over_gloo(num_devices, cores, gloo)
    keys = [KeyPair.generate() for _ in range(num_devices)]
    children: list[subprocess.Popen[bytes]] = []
    transport: ZmqTransport | None = None
    pacers: list[subprocess.Popen[bytes]] = []  # one at most
    try:
        for rank in range(1, num_devices):
            children.append(_start(len(cores[rank])))
            _tell(children[-1], {"rank": rank, "cores": cores[rank], "keys": asdict(keys[rank])})
        with on_cores(cores[0]):  # libzmq's I/O thread stays on the cores of the thread that makes it
            transport = ZmqTransport(0, keys[0])
        addresses = [transport.address, *(_answer(child, rank) for rank, child in enumerate(children, start=1))]
        paced: dict[tuple[int, int], str] = {}
        if pace is not None:
            pacers.append(_start_pacer())
            paced = _paced_addresses(pacers[0], pace, addresses)

        def peers_of(rank: int) -> list[Peer]:
            return [
                Peer(rank=other, address=paced.get((rank, other), address), public_key=keys[other].public)
                for other, address in enumerate(addresses)
            ]

        for rank, child in enumerate(children, start=1):
            _tell(child, {"peers": [peer.to_json() for peer in peers_of(rank)]})
        transport.connect(peers_of(0)[1:])
        transport.wait_connected(time.monotonic() + START_TIMEOUT_S)
    except BaseException:
        if transport is not None:
            transport.close()
        _stop([*children, *pacers])
        raise
    return Cluster(
        transport,
        close_workers=lambda: _stop([*children, *pacers]),
        cores=cores[0],
        pids=[child.pid for child in children],
        key=of_processes(cores, is_paced=pace is not None),
        option=f"--local-workers {num_devices}" + ("" if pace is None else f" {pace}"),
    )


def _start_pacer() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", pacer.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )


def _paced_addresses(
    process: subprocess.Popen[bytes], pace: LinkPace, addresses: Sequence[str]
) -> dict[tuple[int, int], str]:
    """Where each device dials each of higher rank, so that what they send is paced."""
    pairs = list(combinations(range(len(addresses)), 2))
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    given = {
        "rate_bytes_s": pace.rate_mbit * 1e6 / 8,
        "delay_s": pace.delay_ms / 1e3,
        "pairs": [[dialler, target, ports[target]] for dialler, target in pairs],
    }
    _tell(process, given)
    assert process.stdout is not None
    line = _read_line(process.stdout, START_TIMEOUT_S)
    if not line:
        raise PeerError("the process that paces the links did not start; its words are above")
    return {pair: f"tcp://127.0.0.1:{port}" for pair, port in zip(pairs, json.loads(line), strict=True)}


def _spawn_over_gloo(num_devices: int, cores: Sequence[tuple[int, ...]], text: str) -> Cluster:
    from edgeprism.wire.gloo import GlooMode, GlooTransport

    how = GlooMode.parse(text)
    children: list[subprocess.Popen[bytes]] = []
    with on_cores(cores[0]):
        transport = GlooTransport(0, num_devices, "127.0.0.1:0", mode=how.mode, overlaps=how.overlaps)
    try:
        for rank in range(1, num_devices):
            children.append(_start(len(cores[rank])))
            _tell(children[-1], {"rank": rank, "cores": cores[rank], "gloo": [num_devices, transport.store]})
        for rank, child in enumerate(children, start=1):
            _answer(child, rank)
        transport.wait_connected(time.monotonic() + START_TIMEOUT_S)
    except BaseException:
        transport.close()
        _stop(children)
        raise
    return Cluster(
        transport,
        close_workers=lambda: _stop(children),
        cores=cores[0],
        pids=[child.pid for child in children],
        key=of_processes(cores, str(how)),
        option=f"--local-workers {num_devices} --transport {how}",
    )


def _start(num_threads: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, OMP_NUM_THREADS=str(num_threads), MKL_NUM_THREADS=str(num_threads))
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # the same edgeprism as here
    return subprocess.Popen(
        [sys.executable, "-m", "edgeprism.runtime.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the coordinator, which ends its children itself
    )


def _tell(child: subprocess.Popen[bytes], document: dict[str, Any]) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # it has ended, as its silence will show
        child.stdin.write(json.dumps(document).encode() + b"\n")
        child.stdin.flush()


def _answer(child: subprocess.Popen[bytes], rank: int) -> str:
    """The address that the child listens on."""
    assert child.stdout is not None
    line = _read_line(child.stdout, START_TIMEOUT_S)
    if not line:
        state = "has ended" if child.poll() is not None else f"said nothing for {START_TIMEOUT_S:.0f} s"
        raise PeerError(f"the process of device {rank} did not start: it {state}; its words are above", (rank,))
    return str(json.loads(line)["address"])


def _read_line(stream: IO[bytes], timeout_s: float) -> bytes:
    """One line, or what there is of it when time is out or the stream has ended."""
    deadline, line = time.monotonic() + timeout_s, b""
    while not line.endswith(b"\n"):
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0 or not select.select([stream], [], [], remaining_s)[0]:
            break
        byte = os.read(stream.fileno(), 1)
        if not byte:
            break
        line += byte
    return line


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Closes the pipes, which ends a healthy child; kills what is left, a stopped one included."""
    for child in children:
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # the child is gone; there was still something to flush
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for child in children:
        try:
            child.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
