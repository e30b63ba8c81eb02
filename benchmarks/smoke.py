"""Runs every script of this folder at its smallest size, to prove that it runs: `make bench-smoke`.

A new script takes part by being here. Nothing is written to `results/`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NOT_MEASURING = (
    "__init__", "adaptive_plots", "boards", "faults", "frontier", "pipeline_labs", "pipeline_plots", "report", "rogue",
    "smoke", "stream", "table",
)  # fmt: skip


def main() -> int:
    """Runs all of them, and the table; 1 where one fails, after the others had their turn."""
    with tempfile.TemporaryDirectory(prefix="edgeprism-smoke-") as folder:
        failed = [name for name in commands() if not succeeds(name, Path(folder))]
    if failed:
        print(f"smoke: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def commands() -> dict[str, list[str]]:
    """What is run for each script that measures, and for the table."""
    names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NOT_MEASURING)
    return {name: [name, "--smoke"] for name in names} | {"table": ["table"]}


def succeeds(name: str, folder: Path) -> bool:
    """Runs one script in a process of its own; its output is shown only where it fails. What it writes on the way goes
    to ``folder``."""
    started_s = time.monotonic()
    script, *given = commands()[name]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", *given], cwd=FOLDER.parent, capture_output=True, text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    print(f"smoke: {name} {time.monotonic() - started_s:.1f} s", file=sys.stderr, flush=True)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
    elif "skipped:" in done.stdout:
        print(f"smoke: {done.stdout.strip()}", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
