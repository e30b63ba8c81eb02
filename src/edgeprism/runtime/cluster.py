"""The devices that work together. Every way of making a cluster counts this process: it is device 0 and computes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgeprism.errors import InputError, PeerError
from edgeprism.runtime.cluster_key import of_threads
from edgeprism.runtime.device_thread import ClusterClosed, DeviceThread
from edgeprism.runtime.messages import Introduction, LoadOrder
from edgeprism.runtime.worker import Fetch, Worker
from edgeprism.specs.plan import check_num_devices
from edgeprism.wire.frame import Kind
from edgeprism.wire.memory import MemoryTransport
from edgeprism.wire.transport import Transport

if TYPE_CHECKING:
    from edgeprism.models.model import Model


class Cluster:
    """Use ``Cluster.spawn(N)``, ``Cluster.from_file(PATH)`` or ``Cluster.in_process(N)``; close it, or use it in a
    ``with``.

    A cluster serves one engine at a time, the one that was made last.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        close_workers: Callable[[], None],
        shared_models: dict[str, Model] | None = None,
        cores: tuple[int, ...] | None = None,
        pids: Sequence[int] = (),
        introductions: Mapping[int, Introduction] | None = None,
        key: str = "",
        names: Sequence[str] = (),
        option: str = "",
    ) -> None:
        self.transport = transport
        self.names = tuple(names) or tuple(f"device {rank}" for rank in range(transport.num_devices))
        """What its devices are called, the coordinator first."""
        self.key = key or of_threads(transport.num_devices)
        """What tells this cluster from others, in hex: a performance map belongs to one."""
        self.option = option or f"--local-workers {transport.num_devices}"
        """How a command line says which cluster it is."""
        self.pids = tuple(pids)
        """Process ids of the spawned devices, device 1 first."""
        self.cores = cores
        """Cores that device 0 computes on; None leaves the caller's threads as they are."""
        self.shared_models = shared_models
        """Where workers of this process find models by key; None when workers load from directories."""
        self.introductions = introductions
        """What workers that were started by themselves must be told, by rank; None when they know it."""
        self._threads: list[DeviceThread] = []  # one at most
        self._lock = threading.Lock()
        # also when the last reference goes, and at the interpreter's end, which does not wait for the thread
        self._end = weakref.finalize(self, _end, self._threads, transport, close_workers)

    @property
    def num_devices(self) -> int:
        """Devices, this process included."""
        return self.transport.num_devices

    @property
    def thread(self) -> DeviceThread:
        """The thread that owns the transport from its first use on. InputError once the cluster is closed."""
        if not self._end.alive:
            raise ClusterClosed("the cluster is closed")
        with self._lock:
            if not self._threads:
                self._threads.append(DeviceThread(self.transport, self.cores))
        return self._threads[0]

    @classmethod
    def alone(cls) -> Cluster:
        """This process and nobody else."""
        return cls(MemoryTransport.mesh(1)[0], close_workers=lambda: None)

    @classmethod
    def in_process(cls, num_devices: int) -> Cluster:
        """Devices that are threads of this process: for tests, and for looking at what a strategy does."""
        check_num_devices(num_devices)
        mesh = MemoryTransport.mesh(num_devices)
        models: dict[str, Model] = {}

        def load(order: LoadOrder, _: Fetch) -> Model:
            return models[order.model]

        threads = [
            threading.Thread(target=Worker(transport, load).serve, name=f"edgeprism-{transport.rank}", daemon=True)
            for transport in mesh[1:]
        ]
        for thread in threads:
            thread.start()

        def close_workers() -> None:
            for thread in threads:
                thread.join(timeout=5)

        return cls(mesh[0], close_workers=close_workers, shared_models=models)

    @classmethod
    def spawn(
        cls,
        num_devices: int,
        *,
        share_cores: bool = False,
        transport: str = "zmq",
        link_rate_mbit: float | None = None,
        link_delay_ms: float = 0.0,
    ) -> Cluster:
        """This process and ``num_devices`` - 1 child processes, connected over encrypted loopback sockets.

        Each device gets its own cores. PlanError when there are fewer cores than devices, unless they may share them.
        ``transport``: ``zmq``, or torch.distributed's gloo without encryption: ``gloo``, ``gloo:all_gather``, and
        ``gloo:blocking`` or ``gloo:all_gather,blocking``, which compute nothing while an exchange is under way.
        ``link_rate_mbit`` (1e6 bit/s of Ethernet frames, each direction) and ``link_delay_ms`` (one way) pace every
        device's link, without root; a process in Python does it, so measure with `edgeprism lab` where you can.
        """
        from edgeprism.runtime.paced import LinkPace
        from edgeprism.runtime.spawn import spawn_workers

        check_num_devices(num_devices)
        if link_rate_mbit is None and link_delay_ms:
            raise InputError("a delay of the links needs a rate as well (--link-rate)")
        pace = None if link_rate_mbit is None else LinkPace(rate_mbit=link_rate_mbit, delay_ms=link_delay_ms)
        return spawn_workers(
            num_devices, share_cores=share_cores, gloo=None if transport == "zmq" else transport, pace=pace
        )

    @classmethod
    def gloo(
        cls,
        store: str,
        num_devices: int,
        *,
        transport: str = "gloo",
        interface: str | None = None,
        insecure: bool = False,
        timeout_s: float = 5.0,
        require_all: bool = False,
    ) -> Cluster:
        """This process as coordinator of devices that each run `edgeprism worker --transport gloo`.

        ``store``: ``host:port`` on this device, by which the others find each other. ``transport``: as in ``spawn``;
        the workers learn it. Nothing is encrypted, and nobody is asked who he is: off loopback only with ``insecure``.
        A device that does not answer within seconds is left out until it does; with ``require_all`` that is a
        PeerError. One that is silent for ``timeout_s`` is lost.
        """
        from edgeprism.runtime.gloo import connect_gloo

        return connect_gloo(
            store, num_devices, transport=transport, interface=interface, insecure=insecure, timeout_s=timeout_s,
            require_all=require_all,
        )  # fmt: skip

    @classmethod
    def from_file(cls, path: str | Path, *, key: str | Path | None = None, require_all: bool = False) -> Cluster:
        """This process as coordinator of the devices that a cluster file lists, each running `edgeprism worker`.

        ``key``: this device's key file; by default NAME.secret beside the cluster file, NAME being the coordinator's. A
        device that does not answer within a few seconds is left out with a warning, and used when it comes; with
        ``require_all`` that is a PeerError. InputError says what is wrong with a file.
        """
        from edgeprism.runtime.remote import connect_cluster

        return connect_cluster(Path(path), None if key is None else Path(key), require_all=require_all)

    def close(self) -> None:
        """Ends the engine and the workers. Closing twice is fine."""
        self._end()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(threads: list[DeviceThread], transport: Transport, close_workers: Callable[[], None]) -> None:
    """What is left to do for a cluster that is used no more."""
    for thread in threads:
        thread.close(lambda: _say_goodbye(transport))
    if not threads:
        transport.close()
    close_workers()


def _say_goodbye(transport: Transport) -> None:
    for peer in transport.connected():
        try:
            transport.send(peer, Kind.CLOSE, epoch=transport.epoch)
        except PeerError:
            continue  # it is gone already
    transport.close()
