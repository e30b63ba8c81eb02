"""Clusters of separate devices: the coordinator's side (a cluster file) and the worker's (`edgeprism worker`).

A worker knows its own secret key and the coordinator's public one, and nothing else; with every new epoch the
coordinator tells it its rank, and where and by which key it finds the others. So a worker may be restarted, and the
cluster file changed, without touching any other device.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from edgeprism.errors import InputError, ModelFilesError, PeerError, PeerTimeout
from edgeprism.models.load import directory_of, load_pretrained
from edgeprism.models.manifest import fingerprint
from edgeprism.models.model import DTYPES, Model
from edgeprism.models.registry import adapt
from edgeprism.runtime.cluster import Cluster
from edgeprism.runtime.cluster_file import ClusterFile, is_loopback, split_address
from edgeprism.runtime.messages import Introduction, LoadOrder
from edgeprism.runtime.worker import Worker
from edgeprism.wire.key_file import read_key_file
from edgeprism.wire.keys import OPEN_KEYS, KeyPair, Peer, check_key
from edgeprism.wire.zmq import ZmqTransport

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
NO_RANK = 2**16 - 1  # of a worker until it is introduced
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def connect_cluster(path: Path, key: Path | None, *, require_all: bool) -> Cluster:
    """See ``Cluster.from_file``."""
    members = ClusterFile.read(path)
    own = members.members[0]
    keys = _own_keys(path, own.name, own.public_key, key)
    peers = members.peers()
    # Nobody dials the coordinator. A clock that goes on is enough for epochs to grow from one run to the next.
    transport = ZmqTransport(0, keys)
    try:
        transport.epoch = int(time.time()) % 2**31
        transport.connect(peers)
        _wait_for(transport, [member.name for member in members.members], require_all=require_all)
    except BaseException:
        transport.close()
        raise
    known = tuple(Peer(rank=peer.rank, address=peer.address, public_key=peer.public_key) for peer in peers)
    introductions = {rank: Introduction(rank=rank, peers=known) for rank in range(1, len(peers))}
    return Cluster(transport, close_workers=lambda: None, introductions=introductions)


def serve(
    listen: str, *, key: Path | None, coordinator: str | None, roots: Sequence[Path], num_threads: int | None = None
) -> None:
    """`edgeprism worker`: serves the coordinator with that public key until SIGTERM or SIGINT, which let a request end.

    ``roots``: directories whose subdirectories are the models that it may load by name. InputError for an address, a
    key or a root that cannot be used.
    """
    import torch

    host, port = split_address(listen)
    if (key is None) != (coordinator is None):
        raise InputError("--key and --coordinator belong together: this device's secret, and whom it serves")
    if key is None and not is_loopback(host):
        raise InputError(f"without --key and --coordinator a worker listens on loopback only, not on {host}")
    for root in roots:
        if not root.is_dir():
            raise InputError(f"--models {root} is no directory")
    keys = OPEN_KEYS if key is None else read_key_file(key)
    whom = OPEN_KEYS.public if coordinator is None else coordinator
    check_key(whom)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ZmqTransport(NO_RANK, keys, bind=f"tcp://{host}:{port}") as transport:
        transport.connect([Peer(rank=0, public_key=whom)])
        log.warning("listens on %s; serves the coordinator with key %s", transport.address, whom)
        Worker(transport, lambda order: load_order(order, roots), ends=stop.is_set, stays=True).serve()
    log.warning("has ended")


def load_order(order: LoadOrder, roots: Sequence[Path]) -> Model:
    """The model of an order, if this device has the same one; ModelFilesError says what it has instead."""
    directory = find_model(order.model, roots)
    own = fingerprint(directory)
    if own != order.fingerprint:
        raise ModelFilesError(
            f"{directory} holds another model than the coordinator's {order.model} (sha256 {own[:12]} and "
            f"{order.fingerprint[:12]}); copy the coordinator's directory here"
        )
    if order.dtype not in DTYPES:
        raise ModelFilesError(f"dtype {order.dtype!r} is unknown here; run the same edgeprism on both devices")
    return adapt(load_pretrained(str(directory), dtype=DTYPES[order.dtype]))


def find_model(name: str, roots: Sequence[Path]) -> Path:
    """Where this device keeps the model that the coordinator calls ``name``: a path or an id, of which only the last
    part counts in ``roots``; else the hub's copy of an id. A name never leads outside of those."""
    last = Path(name).name
    if last and last not in (".", ".."):
        for root in roots:
            directory = root / last
            if (directory / "config.json").is_file():
                return directory
    if _HUB_ID.fullmatch(name) and not os.path.exists(name):
        return directory_of(name)
    where = ", ".join(map(str, roots)) or "no directory (see --models)"
    raise ModelFilesError(f"this device has no model {last!r} in {where}; copy the coordinator's directory there")


def _own_keys(path: Path, name: str, public: str, key: Path | None) -> KeyPair:
    if public == OPEN_KEYS.public and key is None:
        return OPEN_KEYS
    keys = read_key_file(key or path.with_name(f"{name}.secret"))
    if keys.public != public:
        raise InputError(
            f"the key file is of {keys.public}, the cluster file lists {public} for the coordinator {name}"
        )
    return keys


def _wait_for(transport: ZmqTransport, names: Sequence[str], *, require_all: bool) -> None:
    """Until every device is connected, or for some seconds; who is missing is named."""
    try:
        transport.wait_connected(time.monotonic() + CONNECT_TIMEOUT_S)
    except PeerTimeout as exc:
        missing = ", ".join(f"{names[rank]} (device {rank})" for rank in exc.peers)
        if require_all:
            raise PeerError(f"{missing}: {exc}; start it with edgeprism worker, or leave --require-all out") from exc
        log.warning("%s: %s; the others go on without, and it is used when it comes", missing, exc)
