"""The emulated devices of a run, and a process on device 0 that measures: it changes the links by `Lab.attach`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprism.lab.device import LabDevice
from edgeprism.lab.lab import Lab
from edgeprism.specs.staging import StagingCost

STORE_PORT = 29400


def devices(speeds: Sequence[float], rate_mbit: float, delay_ms: float) -> list[LabDevice]:
    """One for each speed, all on such links."""
    return [
        LabDevice(name=f"device{index}", rate_mbit=rate_mbit, delay_ms=delay_ms, speed=speed)
        for index, speed in enumerate(speeds)
    ]


def run(
    case: str,
    settings: dict[str, Any],
    *,
    speeds: Sequence[float],
    rate_mbit: float,
    delay_ms: float,
    staging: StagingCost | None = None,
    has_gloo: bool = False,
    is_checked: bool = True,
) -> dict[str, Any]:
    """What `benchmarks.adapting.device0` gives for a case on such a cluster; the lab's own check with it."""
    with (
        tempfile.TemporaryDirectory(prefix="edgeprism-adaptive-") as folder,
        Lab(devices(speeds, rate_mbit, delay_ms), staging=staging, share_cores=len(speeds) > 2) as lab,
    ):
        directory = Path(folder)
        report = lab.check() if is_checked else None
        if report is not None:
            report.require()
        cluster = lab.write_cluster(directory)
        lab.start_workers(directory)
        store = f"{lab.address(0)}:{STORE_PORT}"
        if has_gloo:
            for rank in range(1, len(speeds)):
                argv = [
                    sys.executable, "-m", "edgeprism", "worker", "--transport", "gloo", "--store", store,
                    "--rank", str(rank), "--devices", str(len(speeds)),
                ]  # fmt: skip
                lab.popen(rank, argv, stderr=subprocess.DEVNULL)
        given = {**settings, "cluster": str(cluster), "store": store if has_gloo else "", "out": f"{folder}/out.json"}
        argv = [sys.executable, "-m", "benchmarks.adapting.device0", case, json.dumps(given)]
        measuring = lab.popen(0, argv)
        if measuring.wait():
            raise SystemExit(f"adaptive: {case} failed on device 0")
        found: dict[str, Any] = json.loads(Path(given["out"]).read_text())
        return {**found, "lab": None if report is None else report.to_json(), "relay_cpu_s": lab.relay_cpu_s()}
