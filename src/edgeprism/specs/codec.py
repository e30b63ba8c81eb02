"""What a partition sends instead of its rows, as a name that fits on a command line.

`exact`, `means:9.9`, `means:L=10`, `int8`, `int4`, `means:4+int8`, and any of these after `kv:` when keys and values
travel instead of rows. The tensors are encoded in `edgeprism.codecs`; here is only what a plan has to know.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from edgeprism.errors import PlanError

Travels = Literal["rows", "keys_values"]
Bits = Literal[32, 8, 4]

ACCEPTED_FORMS = "exact, means:RATE, means:L=COUNT, int8, int4, means:RATE+int8 (or +int4), and kv: in front of any"

_RATE = r"(?P<rate>\d+(?:\.\d+)?(?:e\+?\d+)?)"
_MEANS = rf"means:(?:L=(?P<count>\d+)|{_RATE})(?:\+int(?P<mean_bits>8|4))?"
_FORM = re.compile(rf"(?P<kv>kv:)?(?:(?P<exact>exact)|int(?P<bits>8|4)|{_MEANS})", re.ASCII)
_MAX_TEXT_CHARS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """One way to shorten what travels: fewer rows (means), fewer bits, or both.

    ``means_rate`` is tokens per mean (the paper's compression rate, at least 1), ``num_means`` the number of means of
    each partition (the paper's L); at most one of them is given. ``bits`` is 8 or 4 for quantised values and 32 for
    values as they are, in whatever dtype the model computes. Raises PlanError on anything else.
    """

    travels: Travels = "rows"
    means_rate: float | None = None
    num_means: int | None = None
    bits: Bits = 32

    def __post_init__(self) -> None:
        if self.travels not in ("rows", "keys_values"):
            raise PlanError(f"a codec sends 'rows' or 'keys_values', not {self.travels!r}")
        if self.bits not in (32, 8, 4):
            raise PlanError(f"a codec quantises to 8 or 4 bits (32: not at all), not {self.bits!r}")
        if self.means_rate is not None and self.num_means is not None:
            raise PlanError("a codec takes a rate of means or a number of means, not both")
        if self.means_rate is not None and not 1 <= self.means_rate < math.inf:
            raise PlanError(
                f"codec means:{self.means_rate:g}: a mean stands for one token or more; give a rate of at least 1"
            )
        if self.num_means is not None and self.num_means < 1:
            raise PlanError(f"codec means:L={self.num_means}: a partition sends at least one mean")

    @classmethod
    def parse(cls, text: str) -> CodecSpec:
        """Read one of the text forms; PlanError names the accepted ones.

        >>> CodecSpec.parse("kv:means:4+int8").bits
        8
        """
        match = _FORM.fullmatch(text.strip()) if len(text) <= _MAX_TEXT_CHARS else None
        if match is None:
            raise PlanError(f"unknown codec {text[:_MAX_TEXT_CHARS]!r}; accepted: {ACCEPTED_FORMS}")
        rate, count = match["rate"], match["count"]
        bits = match["bits"] or match["mean_bits"]
        return cls(
            travels="keys_values" if match["kv"] else "rows",
            means_rate=float(rate) if rate else None,
            num_means=int(count) if count else None,
            bits=32 if bits is None else 8 if bits == "8" else 4,
        )

    def __str__(self) -> str:
        """The canonical text; ``parse`` gives the same spec back."""
        parts = []
        if self.means_rate is not None:
            parts.append(f"means:{repr(float(self.means_rate)).removesuffix('.0')}")
        if self.num_means is not None:
            parts.append(f"means:L={self.num_means}")
        if self.bits != 32:
            parts.append(f"int{self.bits}")
        return ("kv:" if self.travels == "keys_values" else "") + ("+".join(parts) or "exact")

    @property
    def has_means(self) -> bool:
        """Whether rows are averaged before they travel."""
        return self.means_rate is not None or self.num_means is not None

    @property
    def is_exact(self) -> bool:
        """Whether the receiver gets every row, every bit of it."""
        return not self.has_means and self.bits == 32

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
