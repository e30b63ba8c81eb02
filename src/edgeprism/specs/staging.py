"""A declared cost of staging: what copies between an accelerator and its host take, for devices that have none.

EDGEPRISM_EMULATED_STAGING="FIXED_S,BYTES_PER_S" makes every call of ``strategies.staging`` wait for
fixed + bytes / rate, counted as staging. Nothing is copied: every figure made with it has to say that it is emulated.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprism.errors import InputError

VARIABLE = "EDGEPRISM_EMULATED_STAGING"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingCost:
    """Of one call, in one direction. As text: ``fixed_s,bytes_per_s``."""

    fixed_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (0 <= self.fixed_s <= 1 and self.bytes_per_s > 0):
            raise InputError(f"emulated staging of {self.fixed_s:g} s and {self.bytes_per_s:g} bytes/s means nothing")

    def __str__(self) -> str:
        return f"{self.fixed_s!r},{self.bytes_per_s!r}"

    @classmethod
    def parse(cls, text: str) -> StagingCost:
        """From the text of the variable; InputError for another."""
        try:
            fixed_s, bytes_per_s = map(float, text.split(","))
        except ValueError:
            raise InputError(f"{VARIABLE} must be FIXED_S,BYTES_PER_S, as in 0.002,4e8, not {text!r}") from None
        return cls(fixed_s=fixed_s, bytes_per_s=bytes_per_s)

    def seconds(self, num_bytes: int) -> float:
        """Of one call.

        >>> StagingCost(fixed_s=0.001, bytes_per_s=1e8).seconds(400_000)
        0.005
        """
        return self.fixed_s + num_bytes / self.bytes_per_s


PUBLISHED = StagingCost(fixed_s=1.23e-3, bytes_per_s=3.29e8)
"""Fitted to the table of two Jetson Orin Nano; docs/explanation/lab.md has the residuals."""
