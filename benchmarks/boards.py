"""Emulated boards: worker processes on the devices of a lab, set up by the README's commands and nothing else.

Each board has a directory with its secret and its log, a cache of its own and one core; the coordinator (host "laptop")
is the process that runs the benchmark. Boards share this machine's cores: what is emulated is who reaches whom, how
fast, and who dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

import edgeprism
from edgeprism.errors import NoLab
from edgeprism.lab.device import LabDevice
from edgeprism.lab.lab import Lab

COORDINATOR = "laptop"
PORT = 5555
START_TIMEOUT_S = 60.0
_SOURCE = str(Path(edgeprism.__file__).parent.parent)


class Board:
    """One board. Its faults are its methods; none of them waits for what others make of it."""

    def __init__(self, name: str, lab: Lab, index: int, folder: Path) -> None:
        self.name, self.address = name, lab.address(index)
        self.folder, self.log = folder / name, folder / name / "worker.log"
        self._lab, self._index = lab, index
        self._process: subprocess.Popen[bytes] | None = None
        self._log_bytes = 0  # of earlier starts
        self.coordinator_key = ""
        self.folder.mkdir()

    @property
    def pid(self) -> int:
        """Of the worker that runs, or ran last."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether its process runs, or is stopped."""
        return self._process is not None and self._process.poll() is None

    def command(self) -> list[str]:
        """The README's, from behind `edgeprism`."""
        key = ["--key", f"{self.name}.secret", f"--coordinator={self.coordinator_key}"]
        return ["worker", "--listen", f"0.0.0.0:{PORT}", *key]

    def start(self, *extra: str) -> None:
        """Start the worker; it listens some seconds later (``wait_until_it_listens``)."""
        self._log_bytes = self.log.stat().st_size if self.log.exists() else 0
        self.launch([sys.executable, "-m", "edgeprism", *self.command(), *extra])

    def launch(self, command: Sequence[str]) -> None:
        """Start any process in the worker's place."""
        environment = edgeprism_environment(EDGEPRISM_CACHE=str(self.folder / "cache"))
        with self.log.open("ab") as log:
            self._process = self._lab.popen(
                self._index,
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the benchmark, which ends its boards itself
            )

    def said(self) -> str:
        """The log since the last start."""
        text = self.log.read_bytes()[self._log_bytes :] if self.log.exists() else b""
        return text.decode(errors="replace")

    def wait_until_it_listens(self) -> None:
        """Returns at most 10 ms after it does; RuntimeError with its words when it ends instead."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while "listens on" not in self.said():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker of {self.name} does not listen; it said: {self.said()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: it is gone without a word."""
        self._signal(signal.SIGKILL)
        self._wait()

    def terminate(self) -> int:
        """SIGTERM: it ends by itself; its exit status."""
        self._signal(signal.SIGTERM)
        return self._wait()

    def stop(self) -> None:
        """SIGSTOP: it hangs, and its connections stand."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def set_link(self, *, up: bool) -> None:
        """Pull its cable, or plug it in."""
        self._lab.set_link(self._index, up=up)

    def on(self) -> AbstractContextManager[None]:
        """The calling thread is on it meanwhile."""
        return self._lab.on(self._index)

    def bytes_to(self) -> int:
        """What has gone over the wire to it so far, headers included."""
        return self._lab.bytes_to(self._index)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.is_alive:
            self.kill()

    def _signal(self, number: int) -> None:
        assert self._process is not None, f"{self.name} was never started"
        self._process.send_signal(number)

    def _wait(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.wait(timeout=30)


class Boards:
    """Boards, their network and the cluster file; use it in a ``with``. NoLab where there can be none.

    Inside the ``with``, the calling thread is on the coordinator's device, and on the first core with one torch thread.
    ``others`` are hosts that are not in the cluster file. Every board is ``start``ed by the caller.
    """

    def __init__(
        self, names: Sequence[str], *, rate_mbit: float | None = None, others: Sequence[str] = (), quietly: bool = True
    ) -> None:
        everybody = (COORDINATOR, *names, *others)
        self.lab = Lab([LabDevice(name=name, rate_mbit=rate_mbit) for name in everybody], share_cores=True)
        self._names, self._others, self._quietly = tuple(names), tuple(others), quietly
        self.by_name: dict[str, Board] = {}

    @property
    def all(self) -> list[Board]:
        """Those of the cluster file, in its order: device 1 first."""
        return [self.by_name[name] for name in self._names]

    @property
    def cluster_file(self) -> Path:
        """What the coordinator is started with."""
        return self.folder / COORDINATOR / "cluster.toml"

    def start(self, names: Sequence[str] | None = None) -> None:
        """Start the workers of these boards (of all in the cluster file) and wait until they listen."""
        chosen = [self.by_name[name] for name in (self._names if names is None else names)]
        for board in chosen:
            board.start()
        for board in chosen:
            board.wait_until_it_listens()

    def public_key(self, name: str) -> str:
        """What `edgeprism keys new` printed there."""
        return self._keys[name].split('"')[1]

    def __enter__(self) -> Boards:
        self._temporary = tempfile.TemporaryDirectory(prefix="edgeprism-boards-")
        self.folder = Path(self._temporary.name)
        self._cores = sorted(os.sched_getaffinity(0))
        self._num_threads = torch.get_num_threads()
        try:
            self.lab.__enter__()
            self._place = self.lab.on(0)
            self._place.__enter__()
        except BaseException:
            self._temporary.cleanup()
            raise
        os.sched_setaffinity(0, self._cores[:1])
        torch.set_num_threads(1)
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for board in self.by_name.values():
            board.end()
        self._place.__exit__(None, None, None)
        self.lab.__exit__()
        os.sched_setaffinity(0, self._cores)
        torch.set_num_threads(self._num_threads)
        self._temporary.cleanup()

    def _set_up(self) -> None:
        """A key on each device, then the cluster file, as the how-to says."""
        home = self.folder / COORDINATOR
        home.mkdir()
        for index, name in enumerate((*self._names, *self._others), start=1):
            self.by_name[name] = Board(name, self.lab, index, self.folder)
        self._keys = {name: self._new_key(index, name) for index, name in enumerate((COORDINATOR, *self.by_name))}
        lines = ["[coordinator]", f'name = "{COORDINATOR}"', self._keys[COORDINATOR]]
        for board in self.all:
            lines += ["", "[[device]]", f'name = "{board.name}"', f'address = "{board.address}:{PORT}"']
            lines.append(self._keys[board.name])
        self.cluster_file.write_text("\n".join(lines) + "\n")
        for board in self.by_name.values():
            board.coordinator_key = self.public_key(COORDINATOR)
            self._tell(board.name, board.command())

    def _new_key(self, index: int, name: str) -> str:
        """`edgeprism keys new NAME` on that device; the line that it prints."""
        words = ["keys", "new", name]
        self._tell(name, words)
        command = self.lab.command(index, [sys.executable, "-m", "edgeprism", *words])
        folder, environment = self.folder / name, edgeprism_environment()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def _tell(self, name: str, words: Sequence[str]) -> None:
        if not self._quietly:
            print(f"  {name:<8} $ edgeprism {' '.join(words)}", file=sys.stderr)


@contextmanager
def needed(name: str, *, smoke: bool) -> Iterator[None]:
    """Ends a script that cannot have its network with one line: exit 2, or 0 for a smoke run, which is skipped."""
    try:
        yield
    except NoLab as exc:
        if smoke:
            print(f"{name}: skipped: {exc}")
            sys.exit(0)
        print(f"{name}: {exc}", file=sys.stderr)
        sys.exit(2)


def edgeprism_environment(**more: str) -> Mapping[str, str]:
    """This process's, with the edgeprism that it has imported, one thread, and no hub."""
    paths = [_SOURCE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    fixed = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **fixed, **more}
