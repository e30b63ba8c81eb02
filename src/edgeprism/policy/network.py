"""What the network does now: one link for each device but the coordinator, as predictions take it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeprism.specs.performance_map import Costs, LinkCosts

COORDINATOR = 0
ONE_MEDIUM = 0.7


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

    def with_link(self, device: int, bytes_per_s: float, latency_s: float) -> Network:
        """One device's link as it is now."""
        links = (
            replace(one, bytes_per_s=bytes_per_s, latency_s=latency_s) if one.device == device else one
            for one in self.links
        )
        return Network(links=tuple(links))

    def with_rate(self, device: int, bytes_per_s: float) -> Network:
        """One device's link at another rate."""
        return self.with_link(device, bytes_per_s, self.links[device - 1].latency_s)

    @property
    def is_one_medium(self) -> bool:
        """Whether two directions at once are much slower than one: then all devices share what there is."""
        return any(link.both_factor < ONE_MEDIUM for link in self.links)

    def latency_s(self, one: int, other: int) -> float:
        """One way between two devices; the longer one of their links."""
        return max(self.links[device - 1].latency_s for device in (one, other) if device != COORDINATOR)

    def bytes_per_s(self, one: int, other: int, *, num_senders: int = 1) -> float:
        """From one to the other: the slower of their links, while so many devices send. Where two directions at once
        are much slower than one, all devices have one medium: each gets its part."""
        links = [self.links[device - 1] for device in (one, other) if device != COORDINATOR]
        if num_senders == 1:
            return min(link.bytes_per_s for link in links)
        return min(
            link.bytes_per_s * link.both_factor * (2 / num_senders if link.both_factor < ONE_MEDIUM else 1.0)
            for link in links
        )
