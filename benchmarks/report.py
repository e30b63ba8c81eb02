"""What every benchmark shares: runs in turns, medians, and a JSON file that says what it was measured on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("edgeprism", "torch", "transformers", "pyzmq", "numpy")


def record(name: str, figures: Mapping[str, Any], settings: Mapping[str, Any], smoke: bool = False) -> Path:
    """Writes ``results/NAME.json`` in one step; a smoke run writes to a temporary directory instead."""
    document = {
        "name": name,
        "command": " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": _hardware(),
        "versions": {package: _version(package) for package in _PACKAGES} | {"python": platform.python_version()},
        "settings": dict(settings),
        "figures": dict(figures),
    }
    folder = Path(tempfile.mkdtemp(prefix="edgeprism-smoke-")) if smoke else RESULTS
    folder.mkdir(exist_ok=True)
    path, partial = folder / f"{name}.json", folder / f".{name}.json.partial"
    partial.write_text(json.dumps(document, indent=2) + "\n")
    os.replace(partial, path)
    print(f"{name}: written to {path}", file=sys.stderr)
    return path


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every script takes."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="the smallest size, to prove that it runs")
    return parser


def paired(calls: Mapping[str, Callable[[], object]], repeats: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each call, run in turns (A B C A B C ...): a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(warmup + repeats):
        print(f"\rround {round_ + 1}/{warmup + repeats}", end="", file=sys.stderr, flush=True)
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - start)
    print(file=sys.stderr)
    return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and how many."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": statistics.median(values), "p25": low, "p75": high, "n": len(values)}


def commit() -> str:
    """The commit, with a + behind it where the tree differs from it."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        # results themselves do not count: each script would make the next one's tree look changed
        status = ["git", "status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/results"]
        changed = subprocess.run(status, cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip()[:12] + ("+" if changed.stdout.strip() else "")


def _hardware() -> dict[str, Any]:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": _memory_gb()}


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
