"""Clusters of separate devices: the coordinator's side (a cluster file) and the worker's (`edgeprism worker`).

A worker knows its own secret key and the coordinator's public one, and nothing else; with every new epoch the
coordinator tells it its rank, and where and by which key it finds the others. So a worker may be restarted, and the
cluster file changed, without touching any other device.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from edgeprism.errors import ModelFilesError, PeerError, PeerTimeout
from edgeprism.models.manifest import fingerprint
from edgeprism.models.model import DTYPES, Model
from edgeprism.runtime.accelerator import choose_device
from edgeprism.runtime.announce import announced
from edgeprism.runtime.cluster import Cluster
from edgeprism.runtime.cluster_file import ClusterFile, own_keys
from edgeprism.runtime.cluster_key import of_members
from edgeprism.runtime.holders import check_memory, load_within_memory
from edgeprism.runtime.messages import Introduction, LoadOrder
from edgeprism.runtime.piece_weights import PieceWeights
from edgeprism.runtime.service import GlooService, Service
from edgeprism.runtime.weights import WeightCache
from edgeprism.runtime.worker import Fetch, Worker
from edgeprism.specs.model import ModelSpec
from edgeprism.wire.frame import NO_RANK
from edgeprism.wire.gloo import GlooTransport
from edgeprism.wire.keys import Peer
from edgeprism.wire.transport import Transport
from edgeprism.wire.zmq import ZmqTransport

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0


def connect_cluster(path: Path, key: Path | None, *, require_all: bool) -> Cluster:
    """See ``Cluster.from_file``."""
    members = ClusterFile.read(path)
    own = members.members[0]
    keys = own_keys(path, own, key)
    peers = members.peers()
    # Nobody dials the coordinator. A clock that goes on is enough for epochs to grow from one run to the next.
    transport = ZmqTransport(0, keys)
    try:
        transport.epoch = int(8 * time.time()) % 2**31
        transport.connect(peers)
        _wait_for(transport, [member.name for member in members.members], require_all=require_all)
    except BaseException:
        transport.close()
        raise
    introductions = {peer.rank: Introduction(rank=peer.rank, peers=tuple(peers)) for peer in peers[1:]}
    return Cluster(
        transport,
        close_workers=lambda: None,
        introductions=introductions,
        key=of_members(members.members),
        names=[member.name for member in members.members],
        option=f"--cluster {path}",
    )


def serve(
    service: Service | GlooService,
    *,
    cache: WeightCache,
    device: str | None = None,
    cores: tuple[int, ...] | None = None,
    num_threads: int | None = None,
    announce: str | None = None,
) -> None:
    """`edgeprism worker`: serves the coordinator of ``service`` until SIGTERM or SIGINT, which let a request end.

    What it lacks is sent into ``cache``. ``announce``: the name under which others on the network find it. InputError
    for what cannot be used of these.
    """
    if cores is not None:
        os.sched_setaffinity(0, cores)  # before torch and libzmq start threads of their own
    torch_device = choose_device(device)
    if num_threads is not None or cores is not None:
        torch.set_num_threads(num_threads or len(cores or ()))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _listen(service, announce) as transport:
        log.info("computes on %s", torch_device)

        def load(order: LoadOrder, fetch: Fetch) -> Model:
            return load_order(order, fetch, service.roots, cache, torch_device)

        Worker(transport, load, ends=stop.is_set, stays=True, computes_on=torch_device.type).serve()
    log.warning("has ended")


@contextmanager
def _listen(service: Service | GlooService, announce: str | None) -> Iterator[Transport]:
    if isinstance(service, GlooService):
        with GlooTransport(
            service.rank, service.num_devices, service.store, interface=service.interface, insecure=service.insecure
        ) as gloo:
            log.warning("is device %d of %d; store %s", service.rank, service.num_devices, service.store)
            yield gloo
        return
    with ZmqTransport(NO_RANK, service.keys, bind=f"tcp://{service.host}:{service.port}") as transport:
        transport.connect([Peer(rank=0, public_key=service.coordinator)])
        log.warning("listens on %s; serves the coordinator %s", transport.address, service.whom)
        with nullcontext() if announce is None else announced(announce, transport.address, service.keys.public):
            yield transport


def load_order(
    order: LoadOrder, fetch: Fetch, roots: Sequence[Path], cache: WeightCache, device: torch.device
) -> Model:
    """The model of an order: this device's own copy if it is the same, one that was sent before, or one sent now."""
    if order.dtype not in DTYPES:
        raise ModelFilesError(f"dtype {order.dtype!r} is unknown here; run the same edgeprism on both devices")
    dtype = DTYPES[order.dtype]
    directory = find_model(order.model, order.fingerprint, roots) or cache.find(order.fingerprint)
    if directory is None and order.pieces is not None:

        def check(place: Path) -> None:
            check_memory(ModelSpec.from_directory(place), dtype, device, order.pieces)

        directory = PieceWeights(cache, order.fingerprint, order.pieces, fetch.ask, fetch.next_chunk, check).directory()
    if directory is None:
        log.warning("has no such model as the coordinator's %s: asks for it", order.model)
        directory = cache.fetch(order.fingerprint, fetch.ask, fetch.next_chunk)
        log.warning("has it now, and loads it")
    return load_within_memory(str(directory), dtype, device, order.pieces)


def find_model(name: str, wanted: str, roots: Sequence[Path]) -> Path | None:
    """This device's own copy of the model that the coordinator calls ``name``, if it has that fingerprint. Only the
    last part of a name counts, and only in ``roots``: a name is a hint, and never leads outside of them."""
    last = Path(name).name
    if last in ("", ".", "..") or "\0" in last:
        return None
    for root in roots:
        directory = root / last
        if not (directory / "config.json").is_file():
            continue
        try:
            own = fingerprint(directory)
        except ModelFilesError as exc:
            log.warning("%s", exc)
            continue
        if own == wanted:
            return directory
        log.warning("%s is another model than the coordinator's (sha256 %s and %s)", directory, own[:12], wanted[:12])
    return None


def _wait_for(transport: ZmqTransport, names: Sequence[str], *, require_all: bool) -> None:
    """Until every device is connected, or for some seconds; who is missing is named."""
    try:
        transport.wait_connected(time.monotonic() + CONNECT_TIMEOUT_S)
    except PeerTimeout as exc:
        missing = ", ".join(f"{names[rank]} (device {rank})" for rank in exc.peers)
        if require_all:
            raise PeerError(f"{missing}: {exc}; start it with edgeprism worker, or leave --require-all out") from exc
        log.warning("%s: %s; the others go on without, and it is used when it comes", missing, exc)
