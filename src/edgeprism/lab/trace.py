"""How a network was over time: (seconds, Mbit/s[, delay in ms]), from a CSV or JSON file, and replayed on a lab.

CSV has a line a step, with or without a head; JSON a list of lists. A rate of 0 pulls nothing: a trace of a link that
stops has its smallest rate there.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.errors import InputError
from edgeprism.lab.device import check_delay, check_rate

if TYPE_CHECKING:
    from edgeprism.lab.lab import Lab

Step = tuple[float, ...]
"""Seconds since the start, the rate of all links in Mbit/s and, where it changes, the delay of all in ms."""


def read_trace(path: Path) -> list[Step]:
    """The steps in their order; InputError says which line is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"trace {path} is no text; give CSV or JSON with lines of seconds, Mbit/s[, ms]") from None
    except OSError as exc:
        raise InputError(f"trace {path} cannot be read: {exc.strerror or exc}") from exc
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except ValueError as exc:
            raise InputError(f"trace {path} is not JSON: {exc}") from exc
    else:
        rows = [row for row in csv.reader(text.splitlines()) if row]
        if rows and not _is_number(rows[0][0]):
            rows = rows[1:]
    if not isinstance(rows, list) or not rows:
        raise InputError(f"trace {path} has no steps; each is seconds, Mbit/s and, if you like, a delay in ms")
    steps = [_step(path, number, row) for number, row in enumerate(rows, start=1)]
    for before, after in itertools.pairwise(steps):
        if after[0] < before[0]:
            raise InputError(f"trace {path}: {after[0]:g} s comes after {before[0]:g} s")
    return steps


def replay(lab: Lab, trace: Sequence[Step], over: threading.Event) -> None:
    """Sets what the trace says, when it says it; returns after the last step, or when it is ``over``."""
    began = time.monotonic()
    for at_s, rate_mbit, *delay_ms in trace:
        if over.wait(max(0.0, began + at_s - time.monotonic())):
            return
        lab.set_rate(None, rate_mbit)
        if delay_ms:
            lab.set_delay(None, delay_ms[0])


def _step(path: Path, number: int, row: object) -> Step:
    try:
        assert isinstance(row, list) and len(row) in (2, 3)
        step = tuple(float(value) for value in row)
        assert math.isfinite(step[0]) and step[0] >= 0
    except (AssertionError, TypeError, ValueError):
        raise InputError(f"trace {path}: step {number} is not seconds, Mbit/s[, ms]: {row}") from None
    try:
        check_rate(step[1])
        check_delay(step[2] if len(step) > 2 else 0.0)
    except InputError as exc:
        raise InputError(f"trace {path}: step {number}: {exc}") from None
    return step


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
