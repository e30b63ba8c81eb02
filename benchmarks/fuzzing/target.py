"""The worker that is fuzzed: `edgeprism worker` in a process of its own, and what the kernel says of it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from edgeprism.wire.key_file import write_key_file
from edgeprism.wire.keys import KeyPair, Peer

START_S = 60.0
OPEN_FILES = 1024  # what a login gives on most systems
_TICKS = os.sysconf("SC_CLK_TCK")


class Target:
    """A worker that serves the coordinator with ``coordinator``'s key; ``folder`` holds its models, cache and log."""

    def __init__(self, folder: Path, coordinator: KeyPair) -> None:
        self.keys = KeyPair.generate()
        self.models, self.log = folder / "models", folder / "worker.log"
        self.models.mkdir()
        write_key_file(folder / "worker.secret", "worker", self.keys)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "edgeprism", "worker", "--listen", f"127.0.0.1:{self.port}", "--threads", "1"]
        command += ["--key", str(folder / "worker.secret"), "--coordinator", coordinator.public, "--verbose"]
        command += ["--models", str(self.models), "--cache", str(folder / "cache"), "--cache-gb", "0.1"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))

    @property
    def peer(self) -> Peer:
        """How the coordinator reaches it."""
        return Peer(rank=1, address=f"tcp://127.0.0.1:{self.port}", public_key=self.keys.public)

    def wait_until_it_listens(self) -> None:
        """Fails when it does not."""
        deadline = time.monotonic() + START_S
        while b"listens on" not in self.log.read_bytes():
            self.check_alive()
            assert time.monotonic() < deadline, "the worker did not start"
            time.sleep(0.05)

    def check_alive(self) -> None:
        """Fails, with the end of its log, when the process is gone."""
        if self.process.poll() is not None:
            self.fail(f"the worker has ended with status {self.process.returncode}")

    def fail(self, what: str) -> NoReturn:
        """Shows the end of its log."""
        raise AssertionError(f"{what}; its last words:\n{self.log.read_text(errors='replace')[-3000:]}")

    @property
    def rss_bytes(self) -> int:
        """Memory that it holds now."""
        return self._status_bytes("VmRSS")

    @property
    def peak_bytes(self) -> int:
        """The most that it has held at once since ``forget_peak``."""
        return self._status_bytes("VmHWM")

    def forget_peak(self) -> None:
        """From now on the peak counts anew."""
        self._proc("clear_refs").write_text("5")

    @property
    def num_open_files(self) -> int:
        """Sockets, pipes and files."""
        return len(list(self._proc("fd").iterdir()))

    @property
    def cpu_s(self) -> float:
        """Processor time that it has used."""
        user, system = self._proc("stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICKS

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.process.terminate()
        return self.process.wait(timeout=20)

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _status_bytes(self, name: str) -> int:
        for line in self._proc("status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name} of the worker")

    def _proc(self, name: str) -> Path:
        return Path("/proc", str(self.process.pid), name)
