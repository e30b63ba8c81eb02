"""What the network does now: one link for each device but the coordinator, as predictions take it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeprism.specs.performance_map import Costs, LinkCosts

COORDINATOR = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """``links`` of devices 1, 2, ..."""

    links: tuple[LinkCosts, ...]

    @classmethod
    def measured(cls, costs: Costs) -> Network:
        """As it was when the map was made."""
        return cls(links=costs.links)

    def at(self, bytes_per_s: float) -> Network:
        """Every link at this rate."""
        return Network(links=tuple(replace(link, bytes_per_s=bytes_per_s) for link in self.links))

    def with_rate(self, device: int, bytes_per_s: float) -> Network:
        """One device's link at another rate."""
        links = (replace(one, bytes_per_s=bytes_per_s) if one.device == device else one for one in self.links)
        return Network(links=tuple(links))

    def latency_s(self, one: int, other: int) -> float:
        """One way between two devices; the longer one of their links."""
        return max(self.links[device - 1].latency_s for device in (one, other) if device != COORDINATOR)

    def bytes_per_s(self, one: int, other: int, *, both: bool = False) -> float:
        """From one to the other: the slower of their links. ``both``: while both send."""
        links = [self.links[device - 1] for device in (one, other) if device != COORDINATOR]
        return min(link.bytes_per_s * (link.both_factor if both else 1.0) for link in links)
