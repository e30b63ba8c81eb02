"""Boards that measure themselves: Jetsons by their INA3221, the Raspberry Pi 5 by its power chip."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprism.errors import SensorError
from edgeprism.profiler.energy import ina3221, raspberry_pi
from tests.profiler.boards import agx_orin, closed, hwmon, iio, open_directory, orin_nano, raspberry_pi_5, tree

PMIC = """\
 3V7_WL_SW_A current(0)=0.10000000A
   3V3_SYS_A current(1)=0.20000000A
  DDR_VDDQ_A current(4)=0.00000000A
  VDD_CORE_A current(7)=1.50000000A
 3V7_WL_SW_V volt(8)=3.70000000V
   3V3_SYS_V volt(9)=3.30000000V
  DDR_VDDQ_V volt(12)=0.60439500V
  VDD_CORE_V volt(15)=0.90000000V
     EXT5V_V volt(24)=5.05716000V
      BATT_V volt(25)=0.00000000V"""
PMIC_W = 0.1 * 3.7 + 0.2 * 3.3 + 1.5 * 0.9


def jetson(root: Path) -> ina3221.Ina3221Meter:
    """The meter that is found there."""
    meter = ina3221.find(root)
    assert meter is not None
    return meter


def test_the_input_of_the_module_is_its_total(tmp_path: Path) -> None:
    """On an Orin Nano VDD_IN alone counts: the other rails branch off it, and the fourth channel is a sum."""
    orin_nano(tmp_path)
    meter = jetson(tmp_path)
    assert meter.read() == pytest.approx(5.2)
    assert (meter.covers, meter.counts_joules, meter.is_estimate) == ("module", False, False)
    assert meter.source == "INA3221 VDD_IN (the module's input, without the carrier board)"


def test_without_a_rail_for_the_input_the_branches_are_added(tmp_path: Path) -> None:
    """On an AGX Orin three of them; the memory's is fed by one of the three and is not counted again."""
    agx_orin(tmp_path)
    meter = jetson(tmp_path)
    assert meter.read() == pytest.approx(3.2 + 0.8 + 4.5)
    assert "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (the rails that make up the module" in meter.source


def test_the_driver_of_jetpack_4(tmp_path: Path) -> None:
    """An AGX Xavier has six rails on two monitors; a Nano says POM_5V_IN for its input."""
    iio(tmp_path, "1-0040", 0, {0: ("GPU", 1000), 1: ("CPU", 700), 2: ("SOC", 1300)})
    iio(tmp_path, "1-0041", 1, {0: ("CV", 0), 1: ("VDDRQ", 400), 2: ("SYS5V", 2100)})
    assert jetson(tmp_path).read() == pytest.approx(5.5)
    nano = tmp_path / "nano"
    iio(nano, "6-0040", 0, {0: ("POM_5V_IN", 2300), 1: ("POM_5V_GPU", 200), 2: ("POM_5V_CPU", 500)})
    assert jetson(nano).read() == pytest.approx(2.3)


def test_other_rails_are_not_guessed_at(tmp_path: Path) -> None:
    """A board that nobody described, or a rail that is switched off, gives no total."""
    monitor = hwmon(tmp_path, 0, {1: ("VDD_GPU_SOC", 5000, 100), 2: ("VDD_CPU_CV", 5000, 100), 3: ("EXTRA", 1, 1)})
    with pytest.raises(SensorError, match=r"EXTRA, VDD_CPU_CV, VDD_GPU_SOC$"):
        ina3221.find(tmp_path)
    orin_nano(tmp_path / "nano")
    assert jetson(tmp_path / "nano").read() == pytest.approx(5.2)
    tree(tmp_path / "nano/sys/class/hwmon/hwmon1", {"in1_enable": 0})
    with pytest.raises(SensorError, match="VDD_CPU_GPU_CV, VDD_SOC"):
        ina3221.find(tmp_path / "nano")
    tree(monitor, {"name": "ina219"})
    assert ina3221.find(tmp_path) is None


def test_a_monitor_that_vanishes_or_stammers(tmp_path: Path) -> None:
    """Each reading that fails names the file: it is gone, gives an I/O error, or holds no number."""
    meter_of, monitor = ina3221.find, orin_nano(tmp_path)
    meter = meter_of(tmp_path)
    assert meter is not None
    tree(monitor, {"curr1_input": ""})
    with pytest.raises(SensorError, match="curr1_input holds '', not a number"):
        meter.read()
    (monitor / "curr1_input").unlink()
    with pytest.raises(SensorError, match="curr1_input cannot be read: No such file"):
        meter.read()
    (monitor / "curr1_input").mkdir()  # as good as any other error of the system
    with pytest.raises(SensorError, match="curr1_input cannot be read: Is a directory"):
        meter.read()
    with pytest.raises(SensorError, match="INA3221 is there: "):
        ina3221.find(tmp_path)


def test_a_monitor_that_only_root_may_read() -> None:
    """It says which command helps."""
    with open_directory() as root:
        monitor = orin_nano(root)
        with closed(monitor / "in1_input"), pytest.raises(SensorError, match=r"sudo chmod a\+r .*/in1_input"):
            ina3221.find(root)
        assert jetson(root).read() == pytest.approx(5.2)


def test_a_raspberry_pi_adds_the_rails_that_have_both(tmp_path: Path) -> None:
    """Products of volts and amperes by name; the 5 V input has no current, and the text says what that leaves out."""
    meter = raspberry_pi.find(raspberry_pi_5(tmp_path, f"test $1 = pmic_read_adc && cat <<'END'\n{PMIC}\nEND"))
    assert meter is not None
    assert meter.read() == pytest.approx(PMIC_W)
    assert "4 rails of the board (without what hangs on USB" in meter.source
    assert (meter.covers, meter.counts_joules, meter.is_estimate) == ("board", False, False)


@pytest.mark.parametrize("model", ["Raspberry Pi Compute Module 5 Rev 1.0", "Raspberry Pi 500 Rev 1.0"])
def test_its_relatives_have_the_same_chip(tmp_path: Path, model: str) -> None:
    """And earlier ones, or other boards with a program of that name, have not."""
    script = f"cat <<'END'\n{PMIC}\nEND"
    assert raspberry_pi.find(raspberry_pi_5(tmp_path, script, model)) is not None
    assert raspberry_pi.find(raspberry_pi_5(tmp_path, script, "Raspberry Pi 4 Model B Rev 1.4")) is None
    assert raspberry_pi.find(raspberry_pi_5(tmp_path, script, "Banana Pi 5")) is None
    assert raspberry_pi.find(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "sudo apt install raspi-utils"),
        ("echo 'VCHI initialization failed' >&2; exit 255", "VCHI initialization failed.*sudo usermod -aG video"),
        ("exit 3", "exit status 3"),
        ("""echo 'error=1 error_msg="Command not registered"'""", "no rail with both voltage and current"),
        ("printf 'VDD_CORE_A current(7)=1.5.0A\\nVDD_CORE_V volt(15)=nanV\\nVDD_CO\\377'", "no rail with both"),
        ("exec sleep 5", "does not answer within 0.3 s"),
    ],
    ids=["missing", "no right", "fails", "refused", "garbled", "hangs"],
)
def test_a_vcgencmd_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, says: str
) -> None:
    """Each says what is wrong, and what to do where something helps."""
    if "0.3 s" in says:
        monkeypatch.setattr(raspberry_pi, "_TIMEOUT_S", 0.3)
    with pytest.raises(SensorError, match=says):
        raspberry_pi.find(raspberry_pi_5(tmp_path, script))


def test_a_vcgencmd_that_is_no_program(tmp_path: Path) -> None:
    """It cannot be started."""
    (raspberry_pi_5(tmp_path, "true") / "usr/bin/vcgencmd").write_text("neither a script nor a program")
    with pytest.raises(SensorError, match="vcgencmd does not start"):
        raspberry_pi.find(tmp_path)


def test_a_rail_that_is_lost_on_the_way_is_no_saving(tmp_path: Path) -> None:
    """A sum of fewer rails than before is refused; the next whole one counts."""
    answer = tree(tmp_path, {"answer": PMIC}) / "answer"
    meter = raspberry_pi.find(raspberry_pi_5(tmp_path, f"cat {answer}"))
    assert meter is not None
    answer.write_text(PMIC.replace("VDD_CORE_V", "VDD_C0RE_V"))
    with pytest.raises(SensorError, match="other rails than before: VDD_CORE"):
        meter.read()
    answer.write_text(PMIC)
    assert meter.read() == pytest.approx(PMIC_W)
