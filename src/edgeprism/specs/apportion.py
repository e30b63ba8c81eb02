"""Whole things divided by fractional shares: tokens over partitions, samples over replicas.

The method of largest remainders: everyone gets the floor of its quota, and what is left goes to the largest remainders.
The arithmetic is exact (fractions of the decimal text of each share), so that every device computes the same bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import floor


def apportion(total: int, shares: Sequence[float], *, ties_to_later: bool) -> tuple[int, ...]:
    """Divide ``total`` by ``shares``; the counts sum to ``total``, each within one of its quota.

    ``shares`` are non-negative and not all zero; they need not sum to exactly 1 (thirds cannot).
    ``ties_to_later`` says who gets the odd one between equal remainders.

    >>> apportion(197, (0.5, 0.5), ties_to_later=True)
    (98, 99)
    """
    exact_quotas = quotas(total, shares)
    counts = [floor(quota) for quota in exact_quotas]
    remainders = [quota - count for quota, count in zip(exact_quotas, counts, strict=True)]
    direction = 1 if ties_to_later else -1
    order = sorted(range(len(shares)), key=lambda i: (remainders[i], direction * i), reverse=True)
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def quotas(total: int, shares: Sequence[float]) -> tuple[Fraction, ...]:
    """The exact, unrounded part of ``total`` that belongs to each share."""
    weights = [Fraction(repr(float(share))) for share in shares]  # 0.3 as 3/10, so that 0.3 and 0.7 of 5 really tie
    whole = sum(weights)
    return tuple(total * weight / whole for weight in weights)


def bounds_of(counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Counts laid end to end as (start, stop) pairs."""
    stops = tuple(accumulate(counts))
    return tuple((stop - count, stop) for stop, count in zip(stops, counts, strict=True))
