"""Clusters of the largest size that is promised: seconds and memory, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.alone
@pytest.mark.parametrize("memory", ["tight", "ample"])
def test_sixteen_different_devices(memory: str) -> None:
    """97 cut points: at most twice the seconds that are promised, for the machine may be busy, and the memory."""
    command = [sys.executable, "-m", "benchmarks.planner", "--smoke", "--memory", memory]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    figures = json.loads(done.stdout)
    assert figures["seconds"]["throughput"] < 2
    assert figures["seconds"]["latency"] < 10
    assert figures["peak_mb"] < 300
