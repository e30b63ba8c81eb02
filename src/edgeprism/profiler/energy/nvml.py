"""Energy of NVIDIA graphics cards: NVML, through the package ``nvidia-ml-py`` (extra ``nvml``, module ``pynvml``).

From Volta on a card counts its joules since the driver was loaded; an older one gives its power. A Jetson has an NVML
that starts, finds one device and then supports neither: there the INA3221 is the sensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from edgeprism.errors import SensorError
from edgeprism.profiler.energy.files import ROOT
from edgeprism.profiler.energy.sensor import Meter

_PERIOD_S = 0.1


@final
class NvmlMeter(Meter):
    """All cards together: a count of joules, or their power where one of them does not count."""

    covers = "gpu"
    period_s = _PERIOD_S

    def __init__(self, nvml: Any, handles: tuple[Any, ...], *, counts_joules: bool) -> None:
        self._nvml, self._handles, self.counts_joules = nvml, handles, counts_joules
        how = "energy counter" if counts_joules else "power, integrated"
        self.source = f"NVML {how} of {' + '.join(_name(nvml, handle) for handle in handles)} (the card alone)"

    def read(self) -> float:
        """Joules since the drivers were loaded, or watts: NVML says thousandths."""
        ask = self._nvml.nvmlDeviceGetPowerUsage
        if self.counts_joules:
            ask = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        try:
            return float(sum(ask(handle) for handle in self._handles)) / 1e3
        except self._nvml.NVMLError as exc:
            raise SensorError(f"NVML: {exc}") from exc


def find(root: Path = ROOT, *, nvml: Any = None) -> NvmlMeter | None:
    """The cards of this machine, None where there are none. SensorError where they cannot be asked.

    ``nvml``: the module; by default the one that is installed, which knows this machine and no other ``root``.
    """
    has_card = any((root / "dev").glob("nvidia[0-9]"))
    nvml = _installed() if nvml is None and root == ROOT else nvml
    if nvml is None:
        if has_card:
            raise SensorError('there is an NVIDIA card and nothing to ask it with: pip install "edgeprism[nvml]"')
        return None
    try:
        nvml.nvmlInit()
        handles = tuple(nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError as exc:
        if not has_card:
            return None  # the package is installed, the card is not
        raise SensorError(f"there is an NVIDIA card, and NVML does not start: {exc}") from exc
    return _best(nvml, handles) if handles else None


def _installed() -> Any:
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    return pynvml


def _best(nvml: Any, handles: tuple[Any, ...]) -> NvmlMeter:
    for counts_joules in (True, False):
        meter = NvmlMeter(nvml, handles, counts_joules=counts_joules)
        try:
            meter.read()
        except SensorError as exc:
            why = str(exc)
        else:
            return meter
    names = " + ".join(_name(nvml, handle) for handle in handles)
    raise SensorError(f"NVML starts, and gives neither energy nor power of {names}, as on any Jetson ({why})")


def _name(nvml: Any, handle: Any) -> str:
    try:
        name = nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError:
        return "a card without a name"
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
