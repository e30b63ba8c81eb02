"""The sensor of this process: found and opened when it is first asked for, and left open until the process ends.

What a worker says about its energy when it is asked, several times a second perhaps.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from edgeprism.profiler.energy.estimate import EstimateConstants
from edgeprism.profiler.energy.find import find_sensor
from edgeprism.profiler.energy.sensor import Sensor
from edgeprism.profiler.energy.window import Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    sensor: Sensor
    began_s: float
    name: str
    process: int


_lock = threading.Lock()
_open: _Open | None = None


def energy_now(constants: EstimateConstants | None = None) -> dict[str, Any]:
    """`Moment.to_json` of this process's sensor. The first call finds and opens it, and only there ``constants`` count;
    a later one reads nothing."""
    global _open
    with _lock:
        if _open is None or _open.process != os.getpid():  # the thread that reads does not survive a fork
            began_s = time.monotonic()
            sensor = find_sensor(constants=constants).__enter__()
            _open = _Open(sensor=sensor, began_s=began_s, name=secrets.token_hex(8), process=os.getpid())
        here = _open
    return Moment.of(here.sensor, here.began_s, opened=here.name).to_json()
