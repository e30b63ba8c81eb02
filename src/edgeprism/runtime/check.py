"""One line of ``edgeprism doctor``: what was looked at, how it is, and what to do if it is not right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """``about``: this device, the cluster file, or the name of another device. Whatever is not ok has an ``advice``."""

    about: str
    name: str
    status: Status
    value: str
    advice: str = ""
    is_of_peer: bool = False
    """If it fails, another device has failed."""
    measured: Mapping[str, int | float] = field(default_factory=dict)
    """The numbers in ``value``, each named with its unit."""

    def __post_init__(self) -> None:
        assert (self.status == "ok") == (not self.advice), f"{self.name} is {self.status}; it says: {self.advice!r}"

    @classmethod
    def of(
        cls,
        about: str,
        name: str,
        status: Status,
        value: str,
        advice: str = "",
        *,
        is_of_peer: bool = False,
        **measured: int | float,
    ) -> Check:
        """A check that keeps its advice only when it is not ok."""
        advice = "" if status == "ok" else advice
        return cls(
            about=about,
            name=name,
            status=status,
            value=value,
            advice=advice,
            is_of_peer=is_of_peer,
            measured=measured,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "about": self.about,
            "check": self.name,
            "status": self.status,
            "value": self.value,
            "advice": self.advice,
            "measured": dict(self.measured),
        }
