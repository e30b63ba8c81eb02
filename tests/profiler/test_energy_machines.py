"""PCs: RAPL, NVIDIA cards, and the estimate where nothing measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprism.errors import InputError, SensorError
from edgeprism.profiler.energy import nvml, rapl
from edgeprism.profiler.energy.estimate import EstimateConstants, EstimateMeter
from tests.profiler.boards import LAPTOP, PC, FakeClock, closed, open_directory, powercap, tree
from tests.profiler.cards import FakeNvml


def rapl_meter(root: Path, clock: FakeClock) -> rapl.RaplMeter:
    """The meter that is found there; its count begins now."""
    meter = rapl.find(root, clock=clock)
    assert meter is not None
    assert meter.read() == 0
    return meter


def test_packages_and_memory_count_and_what_lies_inside_does_not(tmp_path: Path) -> None:
    """Core and uncore are parts of the package, psys is the whole platform; mmio is another way to the same zone."""
    zones = powercap(tmp_path, {**LAPTOP, "2": ("package-1", 0)})
    tree(tmp_path, {"sys/class/powercap/intel-rapl-mmio:0/name": "package-0"})
    meter = rapl_meter(tmp_path, FakeClock())
    for number in ("0", "0:0", "0:1", "0:2", "1", "2"):
        counter = zones / f"intel-rapl:{number}/energy_uj"
        counter.write_text(str(int(counter.read_text()) + 1_000_000))
    assert meter.read() == 3
    assert meter.source == "RAPL package-0 + package-1 + dram (without the rest of the machine)"
    assert (meter.covers, meter.counts_joules, meter.is_estimate) == ("package", True, False)


def test_the_platform_counts_where_it_is_alone(tmp_path: Path) -> None:
    """Where there is no package, that is; and then it covers more, memory included."""
    powercap(tmp_path, {"0": ("dram", 5), "1": ("psys", 5)})
    meter = rapl_meter(tmp_path, FakeClock())
    assert (meter.source, meter.covers) == ("RAPL psys", "platform")
    assert rapl.find(tmp_path / "nothing") is None


def test_a_counter_that_begins_again_at_its_range(tmp_path: Path) -> None:
    """Twice in a row; each time what was left of the range, and what came since."""
    counter = powercap(tmp_path, {"0": ("package-0", 99_000_000)}, range_uj=100_000_000) / "intel-rapl:0/energy_uj"
    clock = FakeClock()
    meter = rapl_meter(tmp_path, clock)
    for joules, now_uj in ((3, 2_000_000), (98, 97_000_000), (102, 1_000_000)):
        clock.now_s += 10
        counter.write_text(str(now_uj))
        assert meter.read() == joules
    assert meter.lost_s == 0


def test_a_counter_that_sleep_sets_back_is_no_wrap(tmp_path: Path) -> None:
    """It would have to have drawn 26 kW: what was in it is lost, and the seconds are said; then it goes on."""
    counter = powercap(tmp_path, {"0": ("package-0", 1_000_000)}) / "intel-rapl:0/energy_uj"
    clock = FakeClock()
    meter = rapl_meter(tmp_path, clock)
    clock.now_s += 10
    counter.write_text("500000")
    assert (meter.read(), meter.lost_s) == (0, 10)
    clock.now_s += 10
    counter.write_text("1500000")
    assert (meter.read(), meter.lost_s) == (1, 10)


def test_counters_that_only_root_may_read() -> None:
    """The kernel's default since 5.10; the message has the command."""
    with open_directory() as root:
        counter = powercap(root, PC) / "intel-rapl:0/energy_uj"
        with closed(counter), pytest.raises(SensorError, match=r"RAPL is there: .*sudo chmod a\+r .*/energy_uj"):
            rapl.find(root)
        assert rapl.find(root) is not None


def test_a_zone_that_vanishes_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    """Its count goes on meanwhile, and so does that of the others."""
    zones = powercap(tmp_path, PC)
    meter = rapl_meter(tmp_path, FakeClock())
    counter = zones / "intel-rapl:0:2/energy_uj"
    counter.rename(zones / "away")
    (zones / "intel-rapl:0/energy_uj").write_text("7000000")
    with pytest.raises(SensorError, match="energy_uj cannot be read"):
        meter.read()
    (zones / "away").rename(counter)
    counter.write_text("1500000")
    assert meter.read() == 2.5


def test_a_card_that_counts_joules() -> None:
    """All cards of the machine, in joules, since the drivers were loaded."""
    cards = FakeNvml(energy_mj=(5000, 250), name=b"NVIDIA RTX A2000")
    meter = nvml.find(Path("/nowhere"), nvml=cards)
    assert meter is not None
    assert (meter.read(), meter.counts_joules, meter.covers) == (5.25, True, "gpu")
    assert meter.source == "NVML energy counter of NVIDIA RTX A2000 + NVIDIA RTX A2000 (the card alone)"
    cards.is_lost = True
    with pytest.raises(SensorError, match="GPU is lost"):
        meter.read()


def test_an_older_card_gives_its_power() -> None:
    """In watts, to be integrated."""
    meter = nvml.find(Path("/nowhere"), nvml=FakeNvml(power_mw=(45_500,)))
    assert meter is not None
    assert (meter.read(), meter.counts_joules) == (45.5, False)
    assert meter.source.startswith("NVML power, integrated of ")


def test_a_jetson_has_an_nvml_that_knows_nothing() -> None:
    """It starts, counts one device, and supports neither energy nor power."""
    with pytest.raises(SensorError, match=r"neither energy nor power of Orin \(nvgpu\), as on any Jetson"):
        nvml.find(Path("/nowhere"), nvml=FakeNvml(name="Orin (nvgpu)", num_cards=1))


def test_no_card_is_no_error_but_a_card_that_cannot_be_asked_is(tmp_path: Path) -> None:
    """Without a device node the package alone says nothing; with one, what is missing is said."""
    broken = FakeNvml(fails_to_start="Driver Not Loaded")
    assert nvml.find(tmp_path, nvml=broken) is None
    assert nvml.find(tmp_path, nvml=FakeNvml(num_cards=0)) is None
    assert nvml.find(tmp_path) is None
    tree(tmp_path, {"dev/nvidia0": ""})
    with pytest.raises(SensorError, match="NVML does not start: Driver Not Loaded"):
        nvml.find(tmp_path, nvml=broken)
    with pytest.raises(SensorError, match=r'pip install "edgeprism\[nvml\]"'):
        nvml.find(tmp_path)


NET = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo ...
    lo: 9999 1 0 0 0 0 0 0 {lo} 1 0 0 0 0 0 0
 wlan0: 5555 1 0 0 0 0 0 0 {wlan} 1 0 0 0 0 0 0
  eth0: 7777 1 0 0 0 0 0 0 1000 1 0 0 0 0 0 0"""


def test_the_estimate_is_its_formula(tmp_path: Path) -> None:
    """10 s idle at 2 W, 4 s of a core at 3 W, 1 MB at 1 µJ a byte; loopback is no radio."""
    clock, cpu_clock = FakeClock(), FakeClock()
    tree(tmp_path, {"proc/net/dev": NET.format(lo=0, wlan=500)})
    constants = EstimateConstants(idle_w=2.0, busy_core_w=3.0, joule_per_byte=1e-6)
    meter = EstimateMeter(constants, root=tmp_path, clock=clock, cpu_clock=cpu_clock)
    clock.now_s += 10
    cpu_clock.now_s += 4
    tree(tmp_path, {"proc/net/dev": NET.format(lo=10**9, wlan=500 + 10**6)})
    assert meter.read() == pytest.approx(20 + 12 + 1)
    assert meter.is_estimate
    assert meter.source == "estimate: 2 W, 3 W for each busy core of this process, 1000 nJ for each byte sent"


def test_the_estimate_knows_this_process() -> None:
    """Its CPU time is real: computing costs more than waiting."""
    meter = EstimateMeter(EstimateConstants(idle_w=0.0, joule_per_byte=0.0))
    while meter.read() == 0:
        sum(range(10_000))
    assert 0 < meter.read() < 100


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_constants_that_cannot_be(value: float) -> None:
    """The field is named."""
    with pytest.raises(InputError, match="busy_core_w must be 0 or more"):
        EstimateConstants(busy_core_w=value)
