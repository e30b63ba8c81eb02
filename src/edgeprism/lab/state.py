"""What a running lab is, in a file: by it other processes find the lab, see it, and change its links."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprism.errors import LabError
from edgeprism.lab.device import LabDevice
from edgeprism.lab.namespaces import is_running

VARIABLE = "EDGEPRISM_LAB"
"""The environment variable that names the state file to what runs in a lab."""
DIRECTORY = Path("/run/edgeprism")
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One lab."""

    owner: int
    """Pid of the process that made it."""
    devices: tuple[LabDevice, ...]
    """With the rates and delays of now."""
    cores: tuple[int, ...]
    is_shared: bool
    down: tuple[int, ...] = ()
    """Devices whose link is down."""
    relay: int | None = None
    """Pid of the process that delays packets; None where the kernel does it, or nobody can."""
    has_netem: bool = False
    is_relayed: bool = False
    """Whether what the devices send goes by the relay."""
    frames_at_once: int = 1
    """The most that a packet holds, for the lab's whole life; what goes by the relay is always single frames."""
    staging: str = ""
    """The emulated staging cost as text; empty for none."""

    def to_json(self) -> dict[str, Any]:
        """As ``read`` takes it."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {"schema": VERSION, **fields, "devices": [device.to_json() for device in self.devices]}

    @classmethod
    def read(cls, path: Path) -> State:
        """LabError where there is no lab behind it."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.pop("schema") != VERSION:
                raise LabError(f"{path} is of another edgeprism")
            document["devices"] = tuple(LabDevice.from_json(device) for device in document["devices"])
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
            }
            state = cls(**fields)
        except FileNotFoundError:
            raise LabError(f"no lab is up ({path} is not there)") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise LabError(f"{path} is not the state of a lab: {exc}") from exc
        if not is_running(state.owner):
            raise LabError(f"no lab is up: process {state.owner}, which made that of {path}, is gone")
        return state

    def write(self, path: Path) -> None:
        """At once, or not at all."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def changed(self, index: int, **fields: Any) -> State:
        """Another device in the place of one."""
        devices = list(self.devices)
        devices[index] = replace(devices[index], **fields)
        return replace(self, devices=tuple(devices))


def directory_of(owner: int) -> Path:
    """Where a lab keeps its state."""
    return DIRECTORY / f"edgeprism-{owner}-lab"


def state_files() -> list[Path]:
    """Of the labs that are up on this machine."""
    found = []
    for path in sorted(DIRECTORY.glob("edgeprism-*-lab/state.json")):
        try:
            State.read(path)
        except LabError:
            continue
        found.append(path)
    return found


def find() -> Path:
    """Of the lab that this process runs in, else of the only one. LabError where there is none, or several."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    files = state_files()
    if not files:
        raise LabError("no lab is up; start one: edgeprism lab up")
    if len(files) > 1:
        raise LabError(f"several labs are up; name one by {VARIABLE}: {', '.join(map(str, files))}")
    return files[0]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else changes the state meanwhile."""
    with open(path.with_name("lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
