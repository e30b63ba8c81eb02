"""Those who hold no key: noise on the worker's port, connections that say nothing, and a key that is not listed."""

from __future__ import annotations

import random
import resource
import socket
import time
from contextlib import ExitStack

from benchmarks.fuzzing.target import Target
from edgeprism.wire.frame import Kind
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.links import DialledLink
from edgeprism.wire.zmq import ZmqTransport

# How a ZMTP 3.1 connection with CURVE begins: signature, version, mechanism, as server; what follows is noise.
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + b"\x00" + bytes(31)


def knock(target: Target, rng: random.Random, num_connections: int) -> int:
    """Connections with noise, half of them after a right greeting; returns their bytes."""
    num_bytes = 0
    for index in range(num_connections):
        noise = (_GREETING if index % 2 else b"") + rng.randbytes(rng.choice((0, 1, 10, 64, 200, 5000)))
        try:
            with socket.create_connection(("127.0.0.1", target.port), timeout=5) as connection:
                connection.sendall(noise)
                num_bytes += len(noise)
        except ConnectionError:
            continue  # it hung up in the middle of the noise
        if index % 100 == 0:
            target.check_alive()
    return num_bytes


def crowd(target: Target, num_connections: int, seconds: float) -> int:
    """Connections that are opened, say nothing and stay; returns how many there were at once. All are closed again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, num_connections + 500)), hard))
    opened = 0
    with ExitStack() as stack:
        for _ in range(num_connections):
            connection = socket.socket()
            stack.enter_context(connection)
            connection.settimeout(5.0)
            try:
                connection.connect(("127.0.0.1", target.port))
            except OSError:
                break  # its backlog is full
            opened += 1
        time.sleep(seconds)
        target.check_alive()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return opened


def foreigner(target: Target, seconds: float, num_keys: int = 4) -> int:
    """Keys that nobody listed try to get in, again and again, with an order at hand; returns how often."""
    strangers = [ZmqTransport(0, KeyPair.generate()) for _ in range(num_keys)]
    door = Peer(rank=1, address=target.peer.address, public_key=target.keys.public)
    attempts = 0
    try:
        for stranger in strangers:
            stranger.connect([door])
            stranger.send(1, Kind.CLOSE, epoch=0)
        deadline = time.monotonic() + seconds
        dialled_at_s = [0.0] * num_keys
        while time.monotonic() < deadline:
            for index, stranger in enumerate(strangers):
                assert stranger.receive(0.01) is None, "a stranger was answered"
                assert not stranger.connected(), "a stranger got in"
                (link,) = stranger._links.values()
                assert isinstance(link, DialledLink)
                attempts += link.redial_at_s != dialled_at_s[index]
                dialled_at_s[index] = link.redial_at_s
        assert all("refuses this device's key" in stranger.why_absent(1) for stranger in strangers)
    finally:
        for stranger in strangers:
            stranger.close()
    return attempts
