"""Keys, a cluster file and workers for the devices of a lab, as docs/how-to/run-on-several-boards.md has them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.errors import LabError
from edgeprism.wire.key_file import read_key_file, write_key_file
from edgeprism.wire.keys import KeyPair

if TYPE_CHECKING:
    from edgeprism.lab.lab import Lab

PORT = 5555
LISTENS = "listens on"  # a worker says so
START_TIMEOUT_S = 120.0
_SOURCE = str(Path(__file__).resolve().parents[2])  # of the edgeprism that runs


def write_cluster(directory: Path, devices: Sequence[tuple[str, str]]) -> Path:
    """NAME.secret for each (name, address), and cluster.toml; the first is the coordinator. Its path."""
    directory.mkdir(parents=True, exist_ok=True)
    blocks = []
    for index, (name, address) in enumerate(devices):
        keys = KeyPair.generate()
        write_key_file(directory / f"{name}.secret", name, keys)
        lines = ["[[device]]" if index else "[coordinator]", f'name = "{name}"']
        lines += [f'address = "{address}:{PORT}"'] if index else []
        blocks.append("\n".join([*lines, f"public_key = '{keys.public}'\n"]))
    path = directory / "cluster.toml"
    temporary = path.with_suffix(".new")
    temporary.write_text("\n".join(blocks), encoding="utf-8")
    os.replace(temporary, path)
    return path


def start_workers(lab: Lab, directory: Path, models: Path | None = None) -> list[subprocess.Popen[Any]]:
    """A worker on each device but the first, each with a cache of its own, and with the models that lie in ``models``;
    returns when all listen."""
    names = [device.name for device in lab.devices]
    coordinator = read_key_file(directory / f"{names[0]}.secret").public
    paths = [_SOURCE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    workers = []
    for index, name in enumerate(names[1:], start=1):
        words = [sys.executable, "-m", "edgeprism", "worker", "--listen", f"{lab.address(index)}:{PORT}"]
        words += ["--key", str(directory / f"{name}.secret"), f"--coordinator={coordinator}", "--threads", "1"]
        words += ["--cache", str(directory / f"{name}-cache")]
        words += [] if models is None else ["--models", str(models)]
        with _log(directory, name).open("wb") as log:
            worker = lab.popen(
                index,
                words,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the lab, which ends its workers itself
            )
        workers.append(worker)
    for name, worker in zip(names[1:], workers, strict=True):
        _wait_until_it_listens(name, worker, _log(directory, name))
    return workers


def _log(directory: Path, name: str) -> Path:
    return directory / f"{name}.log"


def _wait_until_it_listens(name: str, worker: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while LISTENS not in (said := log.read_text(errors="replace")):
        if worker.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"the worker of {name} does not listen; it said: {said.strip()[-500:] or 'nothing'}")
        time.sleep(0.02)
