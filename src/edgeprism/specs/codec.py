"""What a partition sends instead of its rows, as a name that fits on a command line.

Stages with `+` between them, any of them left out, always in this order:

    means:9.9 or means:L=10   fewer rows: segments are sent as their means
    delta                     of each row only what the block before did not tell (calibrated)
    rot                       a fixed rotation, which spreads large values over a row
    int8 ... int1, or pq:8    fewer bits: integers, or a byte for each 8 values from a calibrated codebook

`exact` is none of them; `kv:` in front sends keys and values instead of rows. The tensors are encoded in
`edgeprism.codecs`; here is only what a plan has to know.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from edgeprism.errors import PlanError

Travels = Literal["rows", "keys_values"]
Bits = Literal[32, 16, 8, 4, 3, 2, 1]

ACCEPTED_FORMS = (
    "exact, bfloat16, means:RATE, means:L=COUNT, int8, int4, rot+int4 (or another of 8, 3, 2, 1 bits), pq:SIZE, "
    "delta+ before rot or pq, means with + before any of these, and kv: in front"
)

_RATE = r"(?P<rate>\d+(?:\.\d+)?(?:e\+?\d+)?)"
_MEANS = rf"means:(?:L=(?P<count>\d+)|{_RATE})"
_PACK = r"(?:(?P<half>bfloat16)|(?P<delta>delta\+)?(?:(?P<rot>rot\+)?int(?P<bits>[84321])|pq:(?P<group>\d{1,6})))"
_FORM = re.compile(
    rf"(?P<kv>kv:)?(?:(?P<exact>exact)|{_MEANS}|(?:{_MEANS.replace('?P<', '?P<pack_')}\+)?{_PACK})", re.ASCII
)
_MAX_TEXT_CHARS = 80
MAX_GROUP = 64
"""Values that one byte may stand for: 1/256 of the bytes of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """One way to shorten what travels: fewer rows (means), fewer bits, or both.

    ``means_rate`` is tokens per mean (the paper's compression rate, at least 1), ``num_means`` the number of means of
    each partition (the paper's L); at most one of them is given. ``bits`` of a quantised value: 8, 4, 3, 2 or 1, 16 for
    bfloat16, and 32 for values as they are, in whatever dtype the model computes. ``is_rotated``: rows are rotated
    before they are quantised, which 3 bits and fewer need. ``group``: that many values become one byte (product
    quantisation), instead of ``bits``. ``is_delta``: rows are predicted from the block before, and only the difference
    is quantised. Raises
    PlanError on anything else.
    """

    travels: Travels = "rows"
    means_rate: float | None = None
    num_means: int | None = None
    is_delta: bool = False
    is_rotated: bool = False
    bits: Bits = 32
    group: int | None = None

    def __post_init__(self) -> None:
        if self.travels not in ("rows", "keys_values"):
            raise PlanError(f"a codec sends 'rows' or 'keys_values', not {self.travels!r}")
        if self.bits not in (32, 16, 8, 4, 3, 2, 1):
            raise PlanError(f"a codec quantises to 16, 8, 4, 3, 2 or 1 bits (32: not at all), not {self.bits!r}")
        if self.means_rate is not None and self.num_means is not None:
            raise PlanError("a codec takes a rate of means or a number of means, not both")
        if self.means_rate is not None and not 1 <= self.means_rate < math.inf:
            raise PlanError(
                f"codec means:{self.means_rate:g}: a mean stands for one token or more; give a rate of at least 1"
            )
        if self.num_means is not None and self.num_means < 1:
            raise PlanError(f"codec means:L={self.num_means}: a partition sends at least one mean")
        if self.group is not None and (not 2 <= self.group <= MAX_GROUP or self.bits != 32 or self.is_rotated):
            raise PlanError(
                f"codec pq:{self.group}: a byte stands for 2 to {MAX_GROUP} values, and nothing else packs them"
            )
        if self.bits >= 16 and self.is_rotated:
            raise PlanError("a rotation alone sends no fewer bytes; add int8, int4, int3, int2 or int1")
        if self.bits == 16 and self.is_delta:
            raise PlanError("a difference is quantised to integers; add int8, int4 or pq, or leave delta out")
        if self.is_delta and self.is_exact:
            raise PlanError("a difference alone sends no fewer bytes; add bits, as in delta+rot+int4")
        if self.bits < 4 and not self.is_rotated:
            raise PlanError(f"codec int{self.bits} loses too much without a rotation; use rot+int{self.bits}")
        if self.is_delta and self.travels == "keys_values":
            raise PlanError("keys and values of one block do not tell those of the next; use delta without kv:")

    @classmethod
    def parse(cls, text: str) -> CodecSpec:
        """Read one of the text forms; PlanError names the accepted ones.

        >>> CodecSpec.parse("kv:means:4+int8").bits
        8
        """
        match = _FORM.fullmatch(text.strip()) if len(text) <= _MAX_TEXT_CHARS else None
        if match is None:
            raise PlanError(f"unknown codec {text[:_MAX_TEXT_CHARS]!r}; accepted: {ACCEPTED_FORMS}")
        rate, count = match["rate"] or match["pack_rate"], match["count"] or match["pack_count"]
        bits: dict[str | None, Bits] = {None: 32, "8": 8, "4": 4, "3": 3, "2": 2, "1": 1}
        return cls(
            travels="keys_values" if match["kv"] else "rows",
            means_rate=float(rate) if rate else None,
            num_means=int(count) if count else None,
            is_delta=match["delta"] is not None,
            is_rotated=match["rot"] is not None,
            bits=16 if match["half"] else bits[match["bits"]],
            group=int(match["group"]) if match["group"] else None,
        )

    def __str__(self) -> str:
        """The canonical text; ``parse`` gives the same spec back."""
        parts = []
        if self.means_rate is not None:
            parts.append(f"means:{repr(float(self.means_rate)).removesuffix('.0')}")
        if self.num_means is not None:
            parts.append(f"means:L={self.num_means}")
        if self.is_delta:
            parts.append("delta")
        if self.is_rotated:
            parts.append("rot")
        if self.bits == 16:
            parts.append("bfloat16")
        elif self.bits != 32:
            parts.append(f"int{self.bits}")
        if self.group is not None:
            parts.append(f"pq:{self.group}")
        return ("kv:" if self.travels == "keys_values" else "") + ("+".join(parts) or "exact")

    @property
    def has_means(self) -> bool:
        """Whether rows are averaged before they travel."""
        return self.means_rate is not None or self.num_means is not None

    @property
    def is_exact(self) -> bool:
        """Whether the receiver gets every row, every bit of it."""
        return not self.has_means and self.bits == 32 and self.group is None

    @property
    def needs_calibration(self) -> bool:
        """Whether it has tables that are made from a model's own rows, by `edgeprism calibrate`."""
        return self.is_delta or self.group is not None

    def num_rows(self, num_tokens: int) -> int:
        """Rows that travel for a partition of ``num_tokens`` tokens: round(N_p / R), at least one.

        PlanError when the partition has fewer tokens than one mean stands for, or than the means asked for.
        """
        if num_tokens == 0 or not self.has_means:
            return num_tokens
        if self.num_means is not None:
            if self.num_means > num_tokens:
                raise PlanError(f"codec {self} asks for {self.num_means} means of a partition of {num_tokens} tokens")
            return self.num_means
        assert self.means_rate is not None
        if self.means_rate > num_tokens:
            raise PlanError(
                f"codec {self} has one mean stand for more tokens than a partition of {num_tokens} has; "
                f"use a rate of at most {num_tokens}, or fewer devices"
            )
        return max(1, round(num_tokens / self.means_rate))


EXACT = CodecSpec()
"""Every row as it is: the full-tensor exchange."""

EXACT_KEYS_VALUES = CodecSpec(travels="keys_values")
"""The same of keys and values."""
