"""The devices of a run, emulated ones or boards, and a process on device 0 that measures.

On emulated devices it changes the links by `Lab.attach`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.lab.device import LabDevice
from edgeprism.lab.lab import Lab
from edgeprism.specs.staging import StagingCost

STORE_PORT = 29400
OUT = "out.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulated:
    """A cluster of emulated devices, and what runs on it. ``model``: "vit" or "bert"; ``frames_at_once``: 1 where rates
    change while it runs."""

    speeds: tuple[float, ...] = (1.0, 1.0)
    rate_mbit: float = 400.0
    delay_ms: float = 0.0
    frames_at_once: int | None = None
    staging: StagingCost | None = None
    dtype: str = "float32"
    model: str = "vit"

    def devices(self) -> list[LabDevice]:
        """One for each speed, all on such links."""
        return [
            LabDevice(name=f"device{index}", rate_mbit=self.rate_mbit, delay_ms=self.delay_ms, speed=speed)
            for index, speed in enumerate(self.speeds)
        ]


def run_on_boards(
    cluster: Path, cases: Sequence[tuple[str, dict[str, Any]]], settings: dict[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """The same on the devices of a cluster file, this one being device 0, on their links as they are."""
    with tempfile.TemporaryDirectory(prefix="edgeprism-adaptive-") as folder:
        given = {**settings, "cases": cases, "cluster": str(cluster.absolute()), "store": "", "rate_mbit": None}
        argv = _device0(Path(folder), given)
        if subprocess.run(argv, check=False).returncode:
            raise SystemExit("adaptive: failed on this device; what it said is above")
        found: dict[str, Any] = json.loads((Path(folder) / OUT).read_text())
        return {**found, "lab": None, "relay_cpu_s": 0.0}


def _device0(folder: Path, given: dict[str, Any]) -> list[str]:
    """The command that measures, and the file that it is given."""
    (folder / "given.json").write_text(json.dumps({**given, "out": str(folder / OUT)}))
    return [sys.executable, "-m", "benchmarks.adapting.device0", str(folder / "given.json")]


def run(
    emulated: Emulated, cases: Sequence[tuple[str, dict[str, Any]]], settings: dict[str, Any], *, is_checked: bool
) -> dict[str, Any]:
    """What `benchmarks.adapting.device0` gives for these cases, one after the other on one cluster, which is profiled
    once; the lab's own check with it. ``cases``: what device 0 does, and with what."""
    with (
        tempfile.TemporaryDirectory(prefix="edgeprism-adaptive-") as folder,
        Lab(emulated.devices(), staging=emulated.staging, frames_at_once=emulated.frames_at_once) as lab,
    ):
        directory = Path(folder)
        report = lab.check() if is_checked else None
        if report is not None:
            report.require()
        cluster = lab.write_cluster(directory)
        lab.start_workers(directory)
        store = ""
        if any("gloo exact" in given.get("ways", ()) for _, given in cases):
            store = f"{lab.address(0)}:{STORE_PORT}"
            for rank in range(1, len(emulated.speeds)):
                argv = [
                    sys.executable, "-m", "edgeprism", "worker", "--transport", "gloo", "--store", store,
                    "--rank", str(rank), "--devices", str(len(emulated.speeds)),
                ]  # fmt: skip
                lab.popen(rank, argv, stderr=subprocess.DEVNULL)
        given = {
            **settings, "cases": cases, "cluster": str(cluster), "store": store,
            "dtype": emulated.dtype, "rate_mbit": emulated.rate_mbit,
        }  # fmt: skip
        measuring = lab.popen(0, _device0(directory, given))
        if measuring.wait():
            raise SystemExit(f"adaptive: {', '.join(name for name, _ in cases)} failed on device 0")
        found: dict[str, Any] = json.loads((directory / OUT).read_text())
        return {**found, "lab": None if report is None else report.to_json(), "relay_cpu_s": lab.relay_cpu_s()}
