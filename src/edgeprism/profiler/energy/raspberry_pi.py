"""Power of a Raspberry Pi 5: the converter of its power chip, which ``vcgencmd pmic_read_adc`` asks.

It prints a line for each channel, and a rail has two of them:

    VDD_CORE_A current(7)=1.42880000A
    VDD_CORE_V volt(15)=0.90659250V

The products are added. The 5 V input has a voltage (EXT5V_V) and no current, so what it feeds directly, the USB ports
above all, is not in the figure, nor what the power chip itself loses.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import final

from edgeprism.errors import SensorError
from edgeprism.profiler.energy.files import ROOT, text_or_empty
from edgeprism.profiler.energy.sensor import Meter

_MODEL = re.compile(r"Raspberry Pi (Compute Module )?5")  # a 500 too; earlier ones measure no currents
_PLACES = ("usr/bin/vcgencmd", "usr/local/bin/vcgencmd", "opt/vc/bin/vcgencmd")
_LINE = re.compile(r"\s*(\w+)_(?:A\s+current\(\d+\)=(\d+\.?\d*)A|V\s+volt\(\d+\)=(\d+\.?\d*)V)\s*")
_PERIOD_S = 0.2  # a process for each reading
_TIMEOUT_S = 2.0


@final
class PmicMeter(Meter):
    """Watts of all rails whose voltage and current are measured."""

    covers = "board"
    counts_joules = False
    period_s = _PERIOD_S

    def __init__(self, command: Path) -> None:
        self._command = command
        self._rails = frozenset(self._watts())
        self.source = (
            f"vcgencmd pmic_read_adc, {len(self._rails)} rails of the board (without what hangs on USB "
            "and the losses of the power chip: the 5 V input has no current channel)"
        )

    def read(self) -> float:
        watts = self._watts()
        if watts.keys() != self._rails:  # a sum of fewer rails would look like less power
            raise SensorError(f"vcgencmd gave other rails than before: {', '.join(sorted(self._rails ^ watts.keys()))}")
        return sum(watts.values())

    def _watts(self) -> dict[str, float]:
        amperes: dict[str, float] = {}
        volts: dict[str, float] = {}
        for line in self._ask().splitlines():
            if match := _LINE.fullmatch(line):
                (volts if match[2] is None else amperes)[match[1]] = float(match[3] or match[2])
        if not (rails := amperes.keys() & volts.keys()):
            raise SensorError("vcgencmd pmic_read_adc prints no rail with both voltage and current")
        return {rail: amperes[rail] * volts[rail] for rail in sorted(rails)}

    def _ask(self) -> str:
        try:
            done = subprocess.run(
                [self._command, "pmic_read_adc"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise SensorError(f"vcgencmd does not answer within {_TIMEOUT_S:g} s") from exc
        except OSError as exc:
            raise SensorError(f"vcgencmd does not start: {exc.strerror or exc}") from exc
        said = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode != 0:
            reason = (said.strip().splitlines() or [f"exit status {done.returncode}"])[0]
            advice = "it needs /dev/vcio: sudo usermod -aG video $USER, and log in again"
            raise SensorError(f"vcgencmd fails ({reason[:80]}); {advice}")
        return said


def find(root: Path = ROOT) -> PmicMeter | None:
    """The power chip of this board, None where there is none. SensorError where it cannot be asked."""
    if not _MODEL.match(text_or_empty(root / "proc/device-tree/model")):
        return None
    for place in _PLACES:
        if (root / place).is_file():
            return PmicMeter(root / place)
    raise SensorError("a Raspberry Pi 5 without vcgencmd: sudo apt install raspi-utils")
