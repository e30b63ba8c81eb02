"""The sensor of this process: found and opened when it is asked for, closed when nobody has asked for a while.

What a worker says about its energy when it is asked, several times a second perhaps. A sensor that is open costs a
little: on a Raspberry Pi a program is started for each reading. So one question must not leave it open for ever.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from typing import Any

from edgeprism.profiler.energy.estimate import EstimateConstants
from edgeprism.profiler.energy.find import find_sensor
from edgeprism.profiler.energy.window import Moment

KEPT_S = 120.0
"""How long an open sensor waits for the next question."""


class _OpenSensor:
    """One life of this process's sensor, with a name of its own: joules of two lives have nothing in common."""

    def __init__(self, constants: EstimateConstants | None) -> None:
        self.began_s = self.asked_s = time.monotonic()
        self.name = secrets.token_hex(8)
        self.process = os.getpid()
        self.sensor = find_sensor(constants=constants)
        self.sensor.__enter__()
        threading.Thread(target=self._close_in_time, name="edgeprism-energy-close", daemon=True).start()

    def now(self) -> Moment:
        """Costs no reading, unless the thread that reads was held up."""
        moment = Moment.of(self.sensor, self.began_s, opened=self.name)
        if moment.joules is None and not self.sensor.trouble:
            self.sensor.sample()
            moment = Moment.of(self.sensor, self.began_s, opened=self.name)
        return moment

    def _close_in_time(self) -> None:
        global _open
        while True:
            time.sleep(max(0.0, self.asked_s + KEPT_S - time.monotonic()))
            with _lock:
                if self.asked_s + KEPT_S > time.monotonic():
                    continue
                _open = None
            self.sensor.__exit__(None, None, None)
            return


_lock = threading.Lock()
_open: _OpenSensor | None = None


def energy_now(constants: EstimateConstants | None = None) -> dict[str, Any]:
    """`Moment.to_json` of this process's sensor. The first question finds and opens it, and only then ``constants``
    count; the next ones cost less than a millisecond, until none has come for ``KEPT_S``."""
    global _open
    with _lock:
        if _open is None or _open.process != os.getpid():  # the thread that reads does not survive a fork
            _open = _OpenSensor(constants)
        here = _open
        here.asked_s = time.monotonic()
    return here.now().to_json()
