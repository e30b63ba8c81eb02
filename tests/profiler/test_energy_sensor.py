"""How readings become joules: by a clock that the test moves, and once by a real thread."""

from __future__ import annotations

import time

import pytest

from edgeprism.errors import SensorError
from edgeprism.profiler.energy.sensor import SampledSensor, SensorSum
from tests.profiler.boards import FakeClock, FakeMeter

HOUR_S = 3600.0  # the fake meter's period: its gaps begin at five of them


def step(sensor: SampledSensor, clock: FakeClock, meter: FakeMeter, hours: float, value: float | str) -> None:
    """After so many hours the meter shows ``value``, and is read."""
    clock.now_s += hours * HOUR_S
    meter.value = value
    sensor.sample()


def test_watts_are_integrated_by_the_trapezoidal_rule() -> None:
    """2 W to 4 W in an hour, then 4 W to 0 in two: 3 Wh and 4 Wh."""
    clock, meter = FakeClock(), FakeMeter(2.0)
    with SampledSensor(meter, clock=clock) as sensor:
        assert sensor.joules() == 0
        step(sensor, clock, meter, 1, 4.0)
        step(sensor, clock, meter, 2, 0.0)
        assert sensor.joules() == pytest.approx(7 * HOUR_S)
        assert (sensor.num_samples, sensor.gap_s) == (3, 0)


def test_between_readings_the_last_power_goes_on_but_not_for_ever() -> None:
    """Asking reads nothing; where nobody reads for five periods nothing more is made up, until a reading comes."""
    clock, meter = FakeClock(), FakeMeter(2.0)
    with SampledSensor(meter, clock=clock) as sensor:
        meter.value = 1000.0
        clock.now_s += HOUR_S
        assert sensor.joules() == pytest.approx(2 * HOUR_S)
        clock.now_s += 9 * HOUR_S
        with pytest.raises(SensorError, match=r"a fake meter: nothing was read for 36000\.0 s"):
            sensor.joules()
        step(sensor, clock, meter, 0, 4.0)
        assert sensor.joules() == pytest.approx(3 * 10 * HOUR_S)


def test_a_gap_is_bridged_and_said() -> None:
    """A device that stood still for six periods: a straight line, and six hours that nobody read."""
    clock, meter = FakeClock(), FakeMeter(2.0)
    with SampledSensor(meter, clock=clock) as sensor:
        step(sensor, clock, meter, 6, 4.0)
        assert sensor.joules() == pytest.approx(3 * 6 * HOUR_S)
        assert sensor.gap_s == pytest.approx(6 * HOUR_S)


def test_a_reading_that_fails_costs_nothing_but_one_that_goes_on_failing_is_an_error() -> None:
    """The line runs from the last good reading to the next one; five periods without any end it."""
    clock, meter = FakeClock(), FakeMeter(2.0)
    with SampledSensor(meter, clock=clock) as sensor:
        step(sensor, clock, meter, 1, "Input/output error")
        assert sensor.trouble == "Input/output error"
        assert sensor.joules() == pytest.approx(2 * HOUR_S)
        step(sensor, clock, meter, 1, 2.0)
        assert (sensor.trouble, sensor.joules(), sensor.gap_s) == ("", pytest.approx(4 * HOUR_S), 0)
        step(sensor, clock, meter, 6, "Input/output error")
        with pytest.raises(SensorError, match="a fake meter: Input/output error"):
            sensor.joules()


def test_without_a_first_reading_there_are_no_joules() -> None:
    """Neither before it is opened, nor when the meter fails from the start."""
    with pytest.raises(SensorError, match="not opened"):
        SampledSensor(FakeMeter()).joules()
    with SampledSensor(FakeMeter("gone")) as sensor, pytest.raises(SensorError, match="gone"):
        sensor.joules()


def test_of_a_count_the_differences_are_added() -> None:
    """It begins where it stands; what stood still is no new reading; set back, it loses what lay between."""
    clock, meter = FakeClock(), FakeMeter(5000.0, counts_joules=True)
    with SampledSensor(meter, clock=clock) as sensor:
        step(sensor, clock, meter, 1, 5600.0)
        step(sensor, clock, meter, 1, 5600.0)
        assert (sensor.joules(), sensor.num_samples, sensor.gap_s) == (600, 2, 0)
        step(sensor, clock, meter, 1, 20.0)
        assert (sensor.joules(), sensor.gap_s) == (600, HOUR_S)
        step(sensor, clock, meter, 1, 120.0)
        assert sensor.joules() == 700
        step(sensor, clock, meter, 0.01, 130.0)  # ten joules in 36 s tell nothing of the power
        clock.now_s += HOUR_S
        assert sensor.joules() == pytest.approx(710 + 100)


def test_closed_it_keeps_its_joules_and_opened_again_it_begins_anew() -> None:
    """The last reading is taken on closing."""
    clock, meter = FakeClock(), FakeMeter(2.0)
    sensor = SampledSensor(meter, clock=clock)
    with sensor:
        clock.now_s += HOUR_S
    clock.now_s += HOUR_S
    assert sensor.joules() == pytest.approx(2 * HOUR_S)
    with sensor:
        assert sensor.joules() == 0


def test_a_sum_names_the_part_that_fails() -> None:
    """Joules of both; the reading count of the slower; no total without one of them."""
    clock, processor, card = FakeClock(), FakeMeter(2.0), FakeMeter(5000.0, counts_joules=True)
    card.source, card.covers = "a fake card", "gpu"
    parts = tuple(SampledSensor(meter, clock=clock) for meter in (processor, card))
    both = SensorSum(parts)
    assert (both.source, both.covers, both.is_estimate) == ("a fake meter + a fake card", "board + gpu", False)
    with both:
        clock.now_s += HOUR_S
        card.value = 6000.0
        both.sample()
        parts[0].sample()
        assert both.joules() == pytest.approx(2 * HOUR_S + 1000)
        assert (both.num_samples, both.gap_s, both.trouble) == (2, 0, "")
        card.value = "fell off the bus"
        clock.now_s += 6 * HOUR_S
        both.sample()
        assert both.trouble == "a fake card: fell off the bus"
        with pytest.raises(SensorError, match="fell off the bus"):
            both.joules()


def test_an_open_sensor_reads_itself() -> None:
    """A real thread at the meter's rate, until it is closed."""
    meter = FakeMeter(5.0)
    meter.period_s = 0.005
    began_s = time.monotonic()
    with SampledSensor(meter) as sensor:
        opened_s = time.monotonic()
        deadline_s = opened_s + 10
        while sensor.num_samples < 10 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        least_j = 5 * (time.monotonic() - opened_s)
        joules = sensor.joules()
        assert least_j <= joules <= 5 * (time.monotonic() - began_s)
        assert sensor.num_samples >= 10
    num_samples = sensor.num_samples
    time.sleep(0.05)
    assert sensor.num_samples == num_samples
