"""A cluster of emulated devices on one Linux machine, for as long as a ``with`` lasts.

    devices = [LabDevice(name="laptop", rate_mbit=400), LabDevice(name="pi", rate_mbit=400, speed=0.25)]
    with Lab(devices) as lab:
        cluster_file = lab.write_cluster(directory)
        lab.start_workers(directory)
        subprocess.run(lab.command(0, ["edgeprism", "run", ..., "--cluster", str(cluster_file)]))
        lab.set_rate(None, 20)

A device is a network namespace with one link (``links``), a core of which it has a part (``pauses``), and control
groups (``groups``), which also divide a core that several have; memory, files and clock are this machine's. Names carry
the pid of the process that made the lab: what a process that died left behind is removed by the next lab. A process
that runs in the lab changes its links by ``Lab.attach()``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from edgeprism.errors import LabError
from edgeprism.lab import pauses
from edgeprism.lab.check import Report, check
from edgeprism.lab.cluster import start_workers, write_cluster
from edgeprism.lab.device import LabDevice, check_devices, choose_frames, place
from edgeprism.lab.groups import Groups, remove_groups
from edgeprism.lab.links import Links
from edgeprism.lab.namespaces import entered, inside, is_running, namespace, of_the_dead, owner_of, remove, require_root
from edgeprism.lab.softirqs import put_back, put_first
from edgeprism.lab.state import DIRECTORY, VARIABLE, State, directory_of, find, locked
from edgeprism.lab.trace import Step, replay
from edgeprism.specs.staging import VARIABLE as STAGING_VARIABLE
from edgeprism.specs.staging import StagingCost


class Lab:
    """The devices, device 0 first. NoLab where this machine or user cannot have one, InputError for values that mean
    nothing. ``share_cores`` lets several devices have one core; ``frames_at_once``: the most that a link sends as one
    packet, for the lab's whole life (None: what suits the slowest, 1 up to some 190 Mbit/s, 4 at 400, 8 at 1000)."""

    def __init__(
        self,
        devices: Sequence[LabDevice],
        *,
        is_shared: bool = False,
        share_cores: bool = False,
        staging: StagingCost | None = None,
        frames_at_once: int | None = None,
    ) -> None:
        check_devices(devices, is_shared=is_shared)
        self._state = State(
            owner=os.getpid(),
            devices=tuple(devices),
            cores=place(devices, sorted(os.sched_getaffinity(0)), share_cores=share_cores),
            is_shared=is_shared,
            frames_at_once=choose_frames(devices, frames_at_once),
            staging="" if staging is None else str(staging),
        )
        self._is_owner = True
        self.directory = directory_of(os.getpid())
        """Of the state and the delays; it goes with the lab."""
        self._links = Links(os.getpid(), self.directory / "links")
        self._groups = [Groups(self._name(index), device.memory_mb) for index, device in enumerate(devices)]
        self._children: list[subprocess.Popen[Any]] = []
        self._over = threading.Event()
        self._undo = ExitStack()

    @classmethod
    def attach(cls, state_file: Path | None = None) -> Lab:
        """A lab that another process made: by its file, else by EDGEPRISM_LAB, else the only one that is up. LabError
        where it is not up. Leaving it removes nothing."""
        path = find() if state_file is None else state_file
        lab = object.__new__(cls)
        lab._state, lab._is_owner, lab.directory = State.read(path), False, path.parent
        lab._links = Links(lab._state.owner, path.parent / "links")
        lab._groups = []
        for index, device in enumerate(lab._state.devices):
            groups = Groups(lab._name(index), device.memory_mb)
            groups.find()
            lab._groups.append(groups)
        lab._children, lab._over, lab._undo = [], threading.Event(), ExitStack()
        return lab

    @property
    def state_file(self) -> Path:
        """What ``attach`` takes."""
        return self.directory / "state.json"

    @property
    def state(self) -> State:
        """The lab as it is now; LabError when it is gone."""
        return State.read(self.state_file)

    @property
    def devices(self) -> tuple[LabDevice, ...]:
        """With the rates and delays of now."""
        return self.state.devices

    def address(self, index: int) -> str:
        """Of a device."""
        return self._links.address(index)

    def command(self, index: int, argv: Sequence[str]) -> list[str]:
        """``argv`` as it runs on a device, under the same pid: in its namespace and groups, on its core."""
        words = ["env", f"{VARIABLE}={self.state_file}", "taskset", "--cpu-list", str(self._state.cores[index]), *argv]
        if self._state.staging:
            words[1:1] = [f"{STAGING_VARIABLE}={self._state.staging}"]
        return self._groups[index].command(inside(self._links.place(index), words))

    def popen(self, index: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts ``argv`` on a device. It ends with the lab at the latest."""
        process: subprocess.Popen[Any] = subprocess.Popen(self.command(index, argv), **options)
        self._children.append(process)
        return process

    def set_rate(self, index: int | None, rate_mbit: float | None) -> None:
        """Of one device's link, or of all (None); the only way in a shared medium. What a link sends at once stays as
        it was: far below the rates at the start a message after a pause is early by that many frames. For a wide range
        of rates, start the lab with ``frames_at_once=1``."""
        self._change(lambda state: self._links.set_rate(state, index, rate_mbit))

    def set_delay(self, index: int | None, delay_ms: float) -> None:
        """Of what one device sends, or every one (None)."""
        self._change(lambda state: self._links.set_delay(state, index, delay_ms))

    def set_link(self, index: int, *, up: bool) -> None:
        """Plug a device's cable in, or pull it."""
        self._change(lambda state: self._links.set_link(state, index, up=up))

    def replay(self, trace: Sequence[Step]) -> threading.Thread:
        """Starts to set all rates (and delays) as a trace says; the thread ends after its last step or with the lab."""
        thread = threading.Thread(target=replay, args=(self, tuple(trace), self._over), daemon=True)
        thread.start()
        return thread

    def write_cluster(self, directory: Path) -> Path:
        """Keys, and a cluster file with the addresses of the lab, device 0 the coordinator."""
        return write_cluster(directory, [(each.name, self.address(i)) for i, each in enumerate(self._state.devices)])

    def start_workers(self, directory: Path, models: Path | None = None) -> list[subprocess.Popen[Any]]:
        """A worker on every device but the first, with the keys of ``write_cluster``, and with the models that lie in
        ``models``; returns when they listen. Their words are in NAME.log there. LabError with them when one does not
        come up."""
        return start_workers(self, directory, models)

    def bytes_to(self, index: int) -> int:
        """What has gone over the wire to a device so far, headers included."""
        return self._links.bytes_to(index)

    @contextmanager
    def on(self, index: int) -> Iterator[None]:
        """The calling thread, and those that it starts meanwhile, are on that device; not yet on its core."""
        with entered(self._links.place(index)), self._groups[index].joined():
            yield

    def check(self) -> Report:
        """Measures rates, delays and speeds: some seconds, in which nothing else should run on the devices."""
        return check(self)

    def relay_cpu_s(self) -> float:
        """The processor's time that the relay has taken so far, which no device accounts for; 0 without one."""
        if self._state.relay is None:
            return 0.0
        with suppress(OSError):
            fields = Path(f"/proc/{self._state.relay}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def __enter__(self) -> Lab:
        if not self._is_owner:
            return self
        require_root()
        remove_leftovers()
        try:
            self._end_on_sigterm()
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if not self._is_owner:
            return
        with _uninterrupted():
            put_back(self.directory)
            self._links.remove()
            remove_groups(namespace(os.getpid(), ""))
            shutil.rmtree(self.directory, ignore_errors=True)
            for child in self._children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=5)
            self._undo.close()

    def _make(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        put_first(self.directory)
        for groups in self._groups:
            groups.make()
        self._state = self._links.make(self._state)
        cores = self._state.cores
        for device, core, groups in zip(self._state.devices, cores, self._groups, strict=True):
            if device.speed < 1 and cores.count(core) > 1:
                groups.set_quota(device.speed)
            elif device.speed < 1:
                self._slow_down(core, device.speed)
        self._state.write(self.state_file)

    def _slow_down(self, core: int, speed: float) -> None:
        script = [sys.executable, "-I", pauses.__file__, str(core), f"{speed:g}", str(os.getpid())]
        process = subprocess.Popen(
            inside(self._links.hub, script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._children.append(process)
        assert process.stdout is not None
        with process.stdout as said:
            if said.readline().strip() != b"ready":
                raise LabError(f"core {core} cannot be made slower: {said.read().decode()[-300:].strip()}")

    def _change(self, change: Callable[[State], State]) -> None:
        with locked(self.state_file):
            state = change(State.read(self.state_file))
            state.write(self.state_file)
        self._state = replace(state, owner=self._state.owner)

    def _name(self, index: int) -> str:
        return namespace(self._state.owner, index)

    def _end_on_sigterm(self) -> None:
        """So that ``__exit__`` has its turn."""
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            self._undo.callback(signal.signal, signal.SIGTERM, before)


def remove_leftovers() -> None:
    """What labs of processes that are no more have left: processes, namespaces, groups, files."""
    for name in of_the_dead():
        remove(name)
    remove_groups("")
    for directory in DIRECTORY.glob("edgeprism-*-lab"):
        owner = owner_of(directory.name)
        if owner is not None and not is_running(owner):
            put_back(directory)
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C waits until everything is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    missed: list[int] = []

    def miss(number: int, _: FrameType | None) -> None:
        missed.append(number)

    before = {number: signal.signal(number, miss) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
