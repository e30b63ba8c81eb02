"""The main program of a spawned worker: ``python -m edgeprism.runtime.process``, started by ``spawn``.

Standard input carries two lines of JSON (who am I; who are the others) and then stays open; standard output carries one
(my address). Everything else that this process prints goes to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from typing import Any

from edgeprism.runtime.heap import keep_freed
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.transport import Transport
from edgeprism.wire.zmq import ZmqTransport


def main() -> None:
    """Serves until the coordinator closes or ends."""
    logging.basicConfig(level=os.environ.get("EDGEPRISM_LOG", "ERROR"), format="%(name)s: %(message)s")
    keep_freed()
    introduction = _read_line()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, introduction["cores"])
    with _transport(introduction) as transport:
        _serve(transport, len(introduction["cores"]))


def _transport(introduction: dict[str, Any]) -> Transport:
    if "gloo" in introduction:
        from edgeprism.wire.gloo import GlooTransport

        gloo = GlooTransport(introduction["rank"], *introduction["gloo"])
        _answer({"address": gloo.store})
        return gloo
    keys = KeyPair(**introduction["keys"])
    transport = ZmqTransport(introduction["rank"], keys, watch_fd=sys.stdin.fileno())
    _answer({"address": transport.address})
    transport.connect(Peer.from_json(peer) for peer in _read_line()["peers"])
    return transport


def _serve(transport: Transport, num_threads: int) -> None:
    parent = os.getppid()  # standard input may stay open when the parent dies: children that it forked hold it, too

    import torch  # only now: the coordinator connects while this takes its seconds

    from edgeprism.models.model import DTYPES, Model
    from edgeprism.runtime.holders import load_within_memory
    from edgeprism.runtime.messages import LoadOrder
    from edgeprism.runtime.worker import Fetch, Worker

    torch.set_num_threads(num_threads)

    def load(order: LoadOrder, _: Fetch) -> Model:
        device = torch.device(order.device)
        return load_within_memory(order.model, DTYPES[order.dtype], device, order.pieces)

    def ends() -> bool:  # over ZeroMQ the transport watches standard input, too, and notices its end at once
        return os.getppid() != parent or bool(select.select([sys.stdin.fileno()], [], [], 0)[0])

    Worker(transport, load, ends=ends).serve()


def _read_line() -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)  # unbuffered: what follows is for the transport's watch on this pipe
        if not byte:
            sys.exit(0)  # whoever started this process is gone
        line += byte
    document = json.loads(line)
    assert isinstance(document, dict)
    return document


def _answer(document: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(document).encode() + b"\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries that print must not fill a pipe that nobody reads


if __name__ == "__main__":
    main()
