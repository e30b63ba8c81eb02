"""How soon does the command line answer, and how long does `make demo` take once it is set up?

`edgeprism --help` and `edgeprism plan` are new processes each time, run in turns, as a user's shell would. That torch
is not imported is asked of the interpreter itself, in runs of their own (`-X importtime` slows a process down).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, arguments, paired, record, summary

REACH_S = 0.5
REACH_DEMO_S = 60.0
REPEATS, WARMUP = 10, 2
REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measures and writes benchmarks/results/startup.json."""
    parser = arguments(__doc__)
    parser.add_argument("--demo", action="store_true", help="time `make demo` too; it must have been set up")
    args = parser.parse_args()
    repeats, warmup = (1, 0) if args.smoke else (REPEATS, WARMUP)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"architectures": ["ViTModel"], "model_type": "vit"}))
        plan = ["plan", folder, "--devices", "2", "--plan", "sequence", "--codec", "means:9.9", "--dtype", "float32"]
        commands = {"edgeprism --help": ["--help"], "edgeprism plan": plan}
        calls = {name: partial(call, options) for name, options in commands.items()}
        seconds = paired(calls, repeats, warmup)
        torch_imported = {name: imports_torch(options) for name, options in commands.items()}
    figures: dict[str, Any] = {
        name: {
            **summary(times),
            "torch_imported": torch_imported[name],
            "at_most_s": REACH_S,
            "met": summary(times)["median"] < REACH_S and not torch_imported[name],
        }
        for name, times in seconds.items()
    }
    if args.demo:
        figures["make demo"] = demo(args.smoke)
    elif not args.smoke and (earlier := earlier_demo()) is not None:
        figures["make demo"] = earlier
    record("startup", figures, {"repeats": repeats, "warmup": warmup, "unit": "seconds, wall time"}, args.smoke)


def call(options: Sequence[str]) -> None:
    """One command, in a process of its own; it must succeed."""
    subprocess.run(command_line(options), check=True, capture_output=True)


def command_line(options: Sequence[str]) -> list[str]:
    """The installed entry point beside this interpreter, which is what a user types."""
    return [str(Path(sys.executable).parent / "edgeprism"), *options]


def imports_torch(options: Sequence[str]) -> bool:
    """Whether a command imports torch, by the interpreter's own list of imports."""
    command = [sys.executable, "-X", "importtime", *command_line(options)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "edgeprism.cli.main" in modules, "the list of imports was not read"
    return "torch" in modules


def demo(smoke: bool) -> dict[str, Any]:
    """`make demo` after `make setup-demo`: a first run, which writes the model into an empty cache, and a second."""
    with tempfile.TemporaryDirectory() as cache:
        make("setup-demo", cache)
        wall_s = [make("demo", cache) for _ in range(1 if smoke else 2)]
    return {"first_s": wall_s[0], "again_s": wall_s[-1], "at_most_s": REACH_DEMO_S, "met": max(wall_s) < REACH_DEMO_S}


def make(target: str, cache: str) -> float:
    """Seconds of a target, with the user's cache elsewhere; it must succeed."""
    print(f"startup: make {target}", file=sys.stderr)
    start = time.perf_counter()
    environment = {**os.environ, "EDGEPRISM_CACHE": cache}
    subprocess.run(["make", "--silent", target], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def earlier_demo() -> dict[str, Any] | None:
    """The demo's time from the last file, marked as such, so that a run without --demo does not lose it."""
    path = RESULTS / "startup.json"
    if not path.exists():
        return None
    document = json.loads(path.read_text())
    figures: dict[str, Any] | None = document["figures"].get("make demo")
    origin = {"measured_at": {"commit": document["commit"], "date": document["date"]}}
    return None if figures is None else {**origin, **figures}


if __name__ == "__main__":
    main()
