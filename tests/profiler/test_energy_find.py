"""Which sensor a device gets, and what is said of those that were passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprism.profiler.energy.estimate import EstimateConstants
from edgeprism.profiler.energy.find import find_sensor
from tests.profiler.boards import PC, FakeClock, orin_nano, powercap, raspberry_pi_5, tree
from tests.profiler.cards import FakeNvml


def test_a_boards_own_monitor_comes_first(tmp_path: Path) -> None:
    """Nothing else is asked then, NVML least of all; and its joules come out of the open sensor."""
    orin_nano(tmp_path)
    clock = FakeClock()
    sensor = find_sensor(tmp_path, nvml_module=FakeNvml(num_cards=1), clock=clock)
    assert (sensor.covers, sensor.is_estimate, sensor.notes) == ("module", False, ())
    with sensor:
        clock.now_s += 2
        sensor.sample()
        assert sensor.joules() == pytest.approx(10.4)


def test_a_processor_and_its_card_are_added(tmp_path: Path) -> None:
    """Neither covers the other."""
    counter = powercap(tmp_path, PC) / "intel-rapl:0/energy_uj"
    card = FakeNvml(energy_mj=(1000,))
    sensor = find_sensor(tmp_path, nvml_module=card)
    assert (sensor.covers, sensor.is_estimate) == ("package + gpu", False)
    with sensor:
        counter.write_text("6000000")
        card.energy_mj = (3000,)
        sensor.sample()
        assert sensor.joules() == pytest.approx(3)


def test_the_platforms_count_has_the_card_in_it(tmp_path: Path) -> None:
    """So it is not added."""
    powercap(tmp_path, {"0": ("psys", 5)})
    assert find_sensor(tmp_path, nvml_module=FakeNvml(energy_mj=(1000,))).covers == "platform"


def test_a_card_without_a_processors_count_makes_an_estimate(tmp_path: Path) -> None:
    """What the processor draws is not left out: it is estimated, and so is the sum."""
    sensor = find_sensor(tmp_path, nvml_module=FakeNvml(energy_mj=(1000,)))
    assert sensor.is_estimate
    assert sensor.source.startswith("estimate: ")
    assert "NVML energy counter" in sensor.source


def test_a_jetson_without_a_monitor_says_what_was_tried(tmp_path: Path) -> None:
    """Its NVML starts and is no use, so it is estimated."""
    sensor = find_sensor(tmp_path, nvml_module=FakeNvml(num_cards=1, name="Orin (nvgpu)"))
    assert sensor.is_estimate
    assert sensor.source.startswith("estimate: ")
    (note,) = sensor.notes
    assert "as on any Jetson" in note


def test_a_raspberry_pi_without_its_program_is_estimated_and_says_what_to_install(tmp_path: Path) -> None:
    """With the constants that the caller gives."""
    sensor = find_sensor(raspberry_pi_5(tmp_path, None), constants=EstimateConstants(idle_w=3.5))
    assert sensor.source.startswith("estimate: 3.5 W")
    assert sensor.notes == ("a Raspberry Pi 5 without vcgencmd: sudo apt install raspi-utils",)


def test_where_nothing_measures_it_is_an_estimate_without_a_word(tmp_path: Path) -> None:
    """Nothing is broken there."""
    tree(tmp_path, {"sys/class/hwmon/hwmon0/name": "coretemp"})
    sensor = find_sensor(tmp_path)
    assert (sensor.is_estimate, sensor.covers, sensor.notes) == (True, "board", ())


def test_this_machine_has_one() -> None:
    """Whatever it is, it opens and counts."""
    sensor = find_sensor()
    with sensor:
        sum(range(100_000))
        sensor.sample()
        assert sensor.joules() >= 0
        assert sensor.source
