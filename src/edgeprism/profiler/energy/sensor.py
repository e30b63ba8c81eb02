"""Joules of a device, whatever measures them: the seam that others see, and how readings become joules.

A *meter* is one kind of hardware; it gives watts, or a running count of joules. While a sensor is open a thread reads
its meter at the meter's own rate: watts are integrated by the trapezoidal rule, of a count the differences are added.
Since the last reading the last power is taken to go on, so that asking for joules costs no reading.
"""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import final

from edgeprism.errors import SensorError

Clock = Callable[[], float]

_LONGEST_S = 1.0
_LONGEST_PERIODS = 5
"""What lies between two readings further apart than both is not known."""


class Meter(abc.ABC):
    """One kind of hardware. Found by a function of its module; read by one thread at a time."""

    source: str
    """Which hardware, and which of its parts."""
    covers: str
    """What the joules are of: "board", "module", "package", "platform" or "gpu"."""
    period_s: float
    """How often a new value is worth its reading."""
    counts_joules: bool
    """``read`` gives joules since some moment; else the watts of now."""
    is_estimate = False
    lost_s = 0.0
    """Seconds whose joules are in no count, because it was set back meanwhile."""

    @abc.abstractmethod
    def read(self) -> float:
        """Joules or watts. SensorError when the hardware does not say."""


class Sensor(abc.ABC):
    """Joules of one device since it was opened. ``with sensor:`` opens it; any thread may then ask, at no cost."""

    source: str
    covers: str
    is_estimate: bool
    notes: tuple[str, ...] = ()
    """Why a better sensor is not used, and what to do about it."""

    @abc.abstractmethod
    def __enter__(self) -> Sensor: ...

    @abc.abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abc.abstractmethod
    def joules(self) -> float:
        """Since it was opened. SensorError where there was no reading yet, or none for a while."""

    @abc.abstractmethod
    def sample(self) -> None:
        """Reads the hardware now, for a window that begins or ends here. Never fails: see ``trouble``."""

    @property
    @abc.abstractmethod
    def num_samples(self) -> int:
        """Readings behind ``joules``; of a count, those that were new."""

    @property
    @abc.abstractmethod
    def gap_s(self) -> float:
        """Seconds of which nothing was read: watts were taken to run along a straight line, joules to be none."""

    @property
    @abc.abstractmethod
    def trouble(self) -> str:
        """Why the last reading failed; empty when it did not."""


@final
class SampledSensor(Sensor):
    """One meter, read by a thread of its own while the sensor is open."""

    def __init__(self, meter: Meter, *, notes: tuple[str, ...] = (), clock: Clock = time.monotonic) -> None:
        self.source, self.covers, self.is_estimate, self.notes = meter.source, meter.covers, meter.is_estimate, notes
        self._meter, self._clock = meter, clock
        self._longest_s = max(_LONGEST_S, _LONGEST_PERIODS * meter.period_s)
        self._reading = threading.Lock()  # held while the hardware is read, which may take long
        self._state = threading.Lock()  # held for moments: who asks for joules waits for no hardware
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._forget()

    def __enter__(self) -> SampledSensor:
        assert self._thread is None, "this sensor is open"
        self._forget()
        self.sample()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="edgeprism-energy", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None, "this sensor is not open"
        self._stop.set()
        self._thread.join()
        self._thread = None
        self.sample()

    def joules(self) -> float:
        is_open = self._thread is not None
        with self._state:
            if self._last_s is None:
                raise SensorError(f"{self.source}: {self._trouble or 'it was not opened'}")
            if not is_open:
                return self._joules
            since_s = max(0.0, self._clock() - self._last_s)
            if since_s > self._longest_s:
                raise SensorError(f"{self.source}: {self._trouble or f'nothing was read for {since_s:.1f} s'}")
            return self._joules + self._watts * since_s

    def sample(self) -> None:
        with self._reading:
            began_s = self._clock()
            try:
                value = self._meter.read()
            except SensorError as exc:
                with self._state:
                    self._trouble = str(exc)
                return
            now_s = (began_s + self._clock()) / 2
            with self._state:
                self._trouble = ""
                self._take(value, now_s)

    @property
    def num_samples(self) -> int:
        return self._num_samples

    @property
    def gap_s(self) -> float:
        return self._gap_s + self._meter.lost_s - self._lost_before_s

    @property
    def trouble(self) -> str:
        return self._trouble

    def _run(self) -> None:
        while not self._stop.wait(self._meter.period_s):
            self.sample()

    def _forget(self) -> None:
        self._joules = self._watts = self._last = self._gap_s = 0.0
        self._lost_before_s = self._meter.lost_s
        self._last_s: float | None = None
        self._num_samples, self._trouble = 0, ""

    def _take(self, value: float, now_s: float) -> None:
        if self._last_s is None:
            self._watts = 0.0 if self._meter.counts_joules else value
            self._num_samples = 1
        elif self._meter.counts_joules:
            self._add_count(value - self._last, now_s - self._last_s)
        else:
            self._add_power(value, now_s - self._last_s)
        self._last, self._last_s = value, now_s

    def _add_count(self, gained_j: float, elapsed_s: float) -> None:
        if gained_j < 0:  # the count began again
            gained_j = 0.0
            self._gap_s += elapsed_s
        self._joules += gained_j
        self._num_samples += gained_j > 0
        if elapsed_s >= self._meter.period_s / 2:  # in less, steps of the count look like bursts of power
            self._watts = gained_j / elapsed_s

    def _add_power(self, watts: float, elapsed_s: float) -> None:
        self._joules += (self._last + watts) / 2 * elapsed_s
        self._num_samples += 1
        self._watts = watts
        if elapsed_s > self._longest_s:
            self._gap_s += elapsed_s


@final
class SensorSum(Sensor):
    """Sensors of parts of one device that have nothing in common, such as its processor and its graphics card."""

    def __init__(self, parts: tuple[Sensor, ...], *, notes: tuple[str, ...] = ()) -> None:
        self.source = " + ".join(part.source for part in parts)
        self.covers = " + ".join(part.covers for part in parts)
        self.is_estimate = any(part.is_estimate for part in parts)
        self.notes = notes
        self._parts = parts
        self._opened = ExitStack()

    def __enter__(self) -> SensorSum:
        for part in self._parts:
            self._opened.enter_context(part)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def joules(self) -> float:
        return sum(part.joules() for part in self._parts)

    def sample(self) -> None:
        for part in self._parts:
            part.sample()

    @property
    def num_samples(self) -> int:
        return min(part.num_samples for part in self._parts)

    @property
    def gap_s(self) -> float:
        return max(part.gap_s for part in self._parts)

    @property
    def trouble(self) -> str:
        return "; ".join(f"{part.source}: {part.trouble}" for part in self._parts if part.trouble)
