"""The kernel's own threads for the network come first while a lab is up.

A bucket's timer hands its work to them when there is much of it, and on a machine that computes they would wait for
their turn among the rest: packets of a link of 400 Mbit/s were up to 15 % late. They get the lowest real-time priority,
below that of pauses and relay. Which were changed is written down before, so that the next lab changes them back when
this one is killed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

PRIORITY = 1
_FILE = "softirqs"


def put_first(directory: Path) -> None:
    """All that have no priority of their own."""
    threads = [pid for pid in _threads() if os.sched_getscheduler(pid) == os.SCHED_OTHER]
    (directory / _FILE).write_text(" ".join(map(str, threads)))
    for pid in threads:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(PRIORITY))


def put_back(directory: Path) -> None:
    """Those that a lab changed."""
    with suppress(FileNotFoundError):
        ours = set(_threads()) & set(map(int, (directory / _FILE).read_text().split()))
        for pid in ours:
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def _threads() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if path.read_text().startswith("ksoftirqd/") and not (path.parent / "cmdline").read_bytes():
                found.append(int(path.parent.name))
    return found
