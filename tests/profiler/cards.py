"""What NVML answers on machines with cards and on a Jetson, in the place of the module ``pynvml``."""

from __future__ import annotations


class FakeNvml:
    """As many cards as there are values; each question without a value is not supported, as NVML says it."""

    class NVMLError(Exception):
        """The base of all errors of pynvml."""

    def __init__(
        self,
        *,
        energy_mj: tuple[int, ...] = (),
        power_mw: tuple[int, ...] = (),
        name: str | bytes = "NVIDIA GeForce GTX 960",
        num_cards: int | None = None,
        fails_to_start: str = "",
    ) -> None:
        self.energy_mj, self.power_mw, self.name = energy_mj, power_mw, name
        self.num_cards = max(len(energy_mj), len(power_mw)) if num_cards is None else num_cards
        self.fails_to_start = fails_to_start
        self.is_lost = False

    def nvmlInit(self) -> None:
        if self.fails_to_start:
            raise self.NVMLError(self.fails_to_start)

    def nvmlDeviceGetCount(self) -> int:
        return self.num_cards

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self._answer(self.energy_mj, handle)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._answer(self.power_mw, handle)

    def _answer(self, values: tuple[int, ...], handle: int) -> int:
        if self.is_lost:
            raise self.NVMLError("GPU is lost")
        if handle >= len(values):
            raise self.NVMLError("Not Supported")
        return values[handle]
