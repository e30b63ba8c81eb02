"""Windows of work: long enough, or labelled; of this process, or by moments of another one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from edgeprism.errors import InputError
from edgeprism.profiler.energy.sensor import SampledSensor
from edgeprism.profiler.energy.window import Moment, between, idle_power_w, measure
from tests.profiler.boards import FakeClock, FakeMeter


class Bench:
    """An open sensor of 5 W, and work that takes a while and is read ``num_samples`` times meanwhile."""

    def __init__(self) -> None:
        self.clock, self.meter = FakeClock(), FakeMeter(5.0)
        self.sensor = SampledSensor(self.meter, clock=self.clock).__enter__()

    def work(self, seconds: float, num_samples: int = 0) -> Callable[[], None]:
        """What is measured."""

        def run() -> None:
            for _ in range(num_samples):
                self.clock.now_s += seconds / num_samples
                self.sensor.sample()
            self.clock.now_s += 0 if num_samples else seconds

        return run

    def measure(self, work: Callable[[], None], **options: Any) -> Any:
        """Against an idle power of 2 W."""
        return measure(self.sensor, work, **{"idle_w": 2.0, "clock": self.clock, **options})


@pytest.fixture
def bench() -> Any:
    """Closed at the end."""
    made = Bench()
    yield made
    made.sensor.__exit__(None, None, None)


def test_work_is_repeated_until_the_window_is_long_enough(bench: Bench) -> None:
    """0.3 s with three readings each: seven runs make 2 s, and more than ten readings."""
    reading = bench.measure(bench.work(0.3, 3))
    assert (reading.num_runs, reading.num_samples) == (7, 22)
    assert reading.seconds == pytest.approx(2.1)
    assert reading.joules == pytest.approx(5 * 2.1)
    assert reading.over_idle_joules == pytest.approx(3 * 2.1)
    assert (reading.source, reading.is_estimate, reading.missing) == ("a fake meter", False, "")


def test_a_slow_sensor_needs_more_than_two_seconds(bench: Bench) -> None:
    """One reading in each run of 0.5 s: ten of them take 5 s."""
    reading = bench.measure(bench.work(0.5, 1))
    assert (reading.num_runs, reading.is_estimate) == (10, False)


def test_long_work_runs_once(bench: Bench) -> None:
    """Its own length is enough."""
    assert bench.measure(bench.work(30.0, 300)).num_runs == 1


def test_a_window_without_enough_readings_is_an_estimate(bench: Bench) -> None:
    """It ends after ``max_s`` and says how much it rests on."""
    reading = bench.measure(bench.work(1.0), max_s=4.0)
    assert (reading.num_runs, reading.is_estimate, reading.is_complete) == (4, True, True)
    assert reading.source == "a fake meter (estimated: 1 readings in 4 s, where 10 in 2 s are needed)"
    assert reading.joules == pytest.approx(20)


def test_a_window_with_a_gap_is_an_estimate(bench: Bench) -> None:
    """The thread was held up for longer than five periods."""
    reading = bench.measure(bench.work(6 * 3600.0), min_samples=1)
    assert reading.is_estimate
    assert "nothing was read for 2.2e+04 of 2.2e+04 s" in reading.source


def test_a_sensor_that_vanishes_leaves_nothing_said_as_zero(bench: Bench) -> None:
    """The work in hand is finished, the joules are missing, and why."""

    def work() -> None:
        bench.work(0.6, 5)()
        bench.meter.value = "curr1_input cannot be read: Input/output error"
        bench.sensor.sample()

    reading = bench.measure(work)
    assert (reading.joules, reading.over_idle_joules) == (None, None)
    assert reading.missing == "curr1_input cannot be read: Input/output error"
    assert reading.num_runs == 4


def test_what_work_raises_is_the_callers(bench: Bench) -> None:
    """No reading of half a run."""

    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.measure(fails)


def test_the_power_of_a_device_left_alone(bench: Bench) -> None:
    """5 W, in one go; nothing where the sensor is gone."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        bench.clock.now_s += seconds

    assert idle_power_w(bench.sensor, clock=bench.clock, sleep=sleep) == pytest.approx(5)
    bench.meter.value = "gone"
    assert idle_power_w(bench.sensor, seconds=3.0, clock=bench.clock, sleep=sleep) is None
    assert slept == [5.0, 3.0]


def moment(joules: float | None, seconds: float, num_samples: int, **values: Any) -> Moment:
    """Of a worker's sensor."""
    usual = {"gap_s": 0.0, "source": "RAPL package-0", "covers": "package", "is_estimate": False, "opened": "a1"}
    return Moment(**{"joules": joules, "seconds": seconds, "num_samples": num_samples, **usual, **values})


def test_two_moments_of_a_worker_make_a_reading() -> None:
    """They come over the wire; idle power is known from elsewhere."""
    before, after = (
        Moment.from_json(json.loads(json.dumps(each.to_json())))
        for each in (moment(100.0, 50.0, 500), moment(130.0, 52.5, 525, machine="6f1e"))
    )
    reading = between(before, after, idle_w=4.0, num_runs=8)
    assert (reading.joules, reading.idle_joules, reading.over_idle_joules) == (30, 10, 20)
    assert (reading.seconds, reading.num_samples, reading.num_runs) == (2.5, 25, 8)
    assert (reading.machine, reading.is_estimate, reading.missing) == ("6f1e", False, "")
    assert between(before, moment(101.0, 53.0, 505), idle_w=None).is_estimate, "five readings"
    assert between(before, moment(101.0, 50.5, 550), idle_w=None).is_estimate, "half a second"


def test_a_worker_that_was_started_again_lost_its_count() -> None:
    """A new count is smaller or larger than the old one: neither is a difference."""
    for joules in (20.0, 500.0):
        reading = between(moment(100.0, 50.0, 500), moment(joules, 60.0, 600, opened="b2"), idle_w=4.0)
        assert reading.joules is None
        assert "opened anew" in reading.missing


def test_a_moment_without_joules_makes_none() -> None:
    """Before or after, the reason stays."""
    good, bad = moment(100.0, 50.0, 500), moment(None, 52.0, 500, missing="energy_uj cannot be read")
    for pair in ((good, bad), (bad, good)):
        reading = between(*pair, idle_w=4.0)
        assert (reading.joules, reading.missing) == (None, "energy_uj cannot be read")


@pytest.mark.parametrize(
    "change", [{"joules": "7"}, {"seconds": None}, {"num_samples": 1.5}, {"opened": 3}, {"is_estimate": "no"}, {"x": 1}]
)
def test_a_moment_that_another_device_got_wrong(change: dict[str, Any]) -> None:
    """Refused, whatever it says."""
    with pytest.raises(InputError, match="moment of energy"):
        Moment.from_json({**moment(1.0, 1.0, 1).to_json(), **change})


NOW = """
import json, statistics, sys, time
from edgeprism.profiler.energy.now import energy_now
moments, seconds = [energy_now()], []
while moments[-1]["seconds"] < 0.5:
    time.sleep(0.02)
    began_s = time.perf_counter()
    moments.append(energy_now())
    seconds.append(time.perf_counter() - began_s)
print(json.dumps([moments, statistics.median(seconds), "torch" in sys.modules, "numpy" in sys.modules]))
"""


@pytest.mark.alone
def test_a_process_asks_its_own_sensor_at_no_cost() -> None:
    """Opened once, without torch; then less than a millisecond each time."""
    done = subprocess.run([sys.executable, "-c", NOW], capture_output=True, text=True, check=True, timeout=60)
    moments, median_s, has_torch, has_numpy = json.loads(done.stdout)
    assert not has_torch and not has_numpy
    assert median_s < 1e-3
    assert len({each["opened"] for each in moments}) == 1
    first, last = Moment.from_json(moments[0]), Moment.from_json(moments[-1])
    reading = between(first, last, idle_w=None)
    assert reading.joules is not None
    assert reading.is_estimate, "0.5 s are no window"
    assert (first.machine == "") == first.is_estimate
    if first.is_estimate:
        assert reading.joules > 0.4 * 2.7
        assert last.num_samples >= 3


FORGOTTEN = """
import json, threading, time
from edgeprism.profiler.energy import now
now.KEPT_S = 1.0
def threads():
    return sum(thread.name.startswith("edgeprism-energy") for thread in threading.enumerate())
names, counts = [now.energy_now()["opened"]], [threads()]
for _ in range(3):
    time.sleep(0.4)
    names.append(now.energy_now()["opened"])
deadline_s = time.monotonic() + 10
while threads() and time.monotonic() < deadline_s:
    time.sleep(0.05)
print(json.dumps([names, now.energy_now()["opened"], counts[0]]))
"""


@pytest.mark.alone
def test_a_sensor_that_nobody_asks_is_closed() -> None:
    """It stays open while it is asked; opened again it has another name, so that no difference is taken."""
    done = subprocess.run([sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, check=True, timeout=60)
    names, later, num_threads = json.loads(done.stdout)
    assert num_threads >= 2
    assert len({*names}) == 1
    assert later not in names
