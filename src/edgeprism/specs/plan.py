"""A plan: which strategy runs, what share of the work each device takes, and what travels between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprism.errors import PlanError
from edgeprism.specs.codec import EXACT, CodecSpec

STRATEGIES = ("local", "replica", "sequence")
"""Every strategy that can run, from the fewest devices' point of view to the most."""

SCHEMA_VERSION = 1
SHARES_TOLERANCE = 1e-6
MAX_DEVICES = 8
"""Of `replica` and `sequence`: with more, everyone talks to everyone for little gain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one request is carried out.

    ``shares`` are fractions of the work, by device, the coordinator (device 0) first; they sum to 1 within 1e-6, and a
    device with share 0 is left out. ``codec`` matters to `sequence` only. Raises PlanError on a bad value.
    """

    strategy: str
    shares: tuple[float, ...]
    codec: CodecSpec = EXACT

    def __post_init__(self) -> None:
        _check_strategy(self.strategy)
        _check_shares(self.shares)
        if self.strategy == "local" and len(self.shares) != 1:
            raise PlanError(f"strategy local runs on one device, but {len(self.shares)} shares were given")

    @classmethod
    def local(cls) -> Plan:
        """Everything on the coordinator."""
        return cls(strategy="local", shares=(1.0,))

    @classmethod
    def among(
        cls, strategy: str, devices: Sequence[int], num_devices: int, codec: CodecSpec = EXACT
    ) -> Plan:  # fmt: skip
        """Equal shares for some of ``num_devices`` devices."""
        shares = tuple(1 / len(devices) if device in devices else 0.0 for device in range(num_devices))
        return cls(strategy=strategy, shares=shares, codec=codec)

    @classmethod
    def even(cls, strategy: str, num_devices: int, codec: CodecSpec = EXACT) -> Plan:
        """The same share for every device."""
        check_num_devices(num_devices)
        return cls(strategy=strategy, shares=(1 / num_devices,) * num_devices, codec=codec)

    @property
    def num_devices(self) -> int:
        """Devices that have a place in the plan, those with share 0 included."""
        return len(self.shares)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values that ``from_json`` reads back."""
        return {
            "schema_version": SCHEMA_VERSION,
            "strategy": self.strategy,
            "shares": list(self.shares),
            "codec": str(self.codec),
        }

    @classmethod
    def from_json(cls, document: object) -> Plan:
        """Read what ``to_json`` wrote; PlanError names the field that is wrong."""
        if not isinstance(document, Mapping):
            raise PlanError(f"a plan is a JSON object, not {type(document).__name__}")
        version = document.get("schema_version")
        if version != SCHEMA_VERSION:
            raise PlanError(f"plan with schema_version {version!r}; this edgeprism reads version {SCHEMA_VERSION}")
        unknown = sorted(set(document) - {"schema_version", "strategy", "shares", "codec"})
        if unknown:
            raise PlanError(f"plan has unknown fields: {', '.join(map(str, unknown))}")
        strategy, shares, codec = document.get("strategy"), document.get("shares"), document.get("codec", "exact")
        if not isinstance(strategy, str):
            raise PlanError(f"plan field strategy must be text, not {strategy!r}")
        if not isinstance(shares, list | tuple) or not all(map(_is_number, shares)):
            raise PlanError(f"plan field shares must be a list of numbers, not {shares!r}")
        if not isinstance(codec, str):
            raise PlanError(f"plan field codec must be text, not {codec!r}")
        return cls(strategy=strategy, shares=tuple(map(float, shares)), codec=CodecSpec.parse(codec))


def check_num_devices(num_devices: int) -> None:
    """PlanError unless a cluster, or a plan, may have that many devices."""
    if not 1 <= num_devices <= MAX_DEVICES:
        raise PlanError(f"a cluster has 1 to {MAX_DEVICES} devices, not {num_devices}")


def parse_shares(text: str) -> tuple[float, ...]:
    """Read shares as a command line gives them: ``0.6,0.4``."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise PlanError(f"shares {text!r} are not numbers with commas between them, as in 0.6,0.4") from None


def _check_strategy(strategy: str) -> None:
    if strategy == "pipeline":
        raise PlanError(f"strategy pipeline is not built yet; use one of {', '.join(STRATEGIES)}")
    if strategy not in STRATEGIES:
        raise PlanError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}")


def _check_shares(shares: tuple[float, ...]) -> None:
    if not isinstance(shares, tuple) or not shares:
        raise PlanError("a plan needs a tuple with one share for each device")
    check_num_devices(len(shares))
    for index, share in enumerate(shares):
        if not _is_number(share) or not math.isfinite(share):
            raise PlanError(f"the share of device {index} is {share!r}; it must be a number")
        if share < 0:
            raise PlanError(f"the share of device {index} is {share:g}; it must not be negative")
    total = math.fsum(shares)
    if abs(total - 1) > SHARES_TOLERANCE:
        raise PlanError(f"shares {', '.join(f'{share:g}' for share in shares)} add up to {total:g}, not to 1")


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**53  # larger ones may not fit a float
    return isinstance(value, float)
