"""Connected transports for threads of one process, and the threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread

from edgeprism.wire.gloo import GlooTransport, Mode
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.transport import Transport
from edgeprism.wire.zmq import ZmqTransport

Mesh = Callable[[int], list[Transport]]


def soon(seconds: float = 5.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def in_threads(*jobs: Callable[[], object]) -> None:
    """Run the jobs at once; the first error of one is raised."""
    errors: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as exc:
            errors.append(exc)

    threads = [Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def zmq_mesh(num_devices: int) -> list[Transport]:
    """ZeroMQ transports over loopback that know each other, connected."""
    keys = [KeyPair.generate() for _ in range(num_devices)]
    mesh = [ZmqTransport(rank, pair) for rank, pair in enumerate(keys)]
    peers = [Peer(rank=t.rank, address=t.address, public_key=keys[t.rank].public) for t in mesh]
    for transport in mesh:
        transport.connect(peers)
    in_threads(*(lambda t=t: t.wait_connected(soon()) for t in mesh))
    return list(mesh)


def gloo_mesh(num_devices: int, mode: Mode = "send_recv", overlaps: bool = True) -> list[Transport]:
    """gloo transports over loopback, connected; device 0 keeps the store, and says how exchanges travel."""
    first = GlooTransport(0, num_devices, "127.0.0.1:0", mode=mode, overlaps=overlaps)
    mesh = [first, *(GlooTransport(rank, num_devices, first.store) for rank in range(1, num_devices))]
    in_threads(*(lambda t=t: t.wait_connected(soon()) for t in mesh))
    return list(mesh)
