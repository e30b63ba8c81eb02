"""A line of the README's table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table. ``met`` is None where nothing was to be reached."""

    what: str
    reach: str
    measured: str
    met: bool | None


def reported(what: str, measured: str) -> Row:
    """Where nothing was to be reached."""
    return Row(what=what, reach="reported", measured=measured, met=None)
