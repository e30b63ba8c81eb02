"""Whole things by fractional shares: the quota rule, exact sums, ties."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprism.specs.apportion import apportion, quotas

shares = st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda values: sum(values) > 1e-3)


@settings(deadline=None)
@given(st.integers(0, 10_000), shares, st.booleans())
def test_quota_rule(total: int, values: list[float], ties_to_later: bool) -> None:
    """The counts sum to the total, and each is its quota rounded up or down."""
    counts = apportion(total, values, ties_to_later=ties_to_later)
    assert sum(counts) == total
    for count, quota in zip(counts, quotas(total, values), strict=True):
        assert abs(count - quota) < 1


def test_ties_go_where_they_are_sent() -> None:
    """The odd one of equal remainders goes to the later or to the earlier device."""
    assert apportion(5, (0.5, 0.5), ties_to_later=True) == (2, 3)
    assert apportion(5, (0.5, 0.5), ties_to_later=False) == (3, 2)


def test_decimal_shares_tie_exactly() -> None:
    """0.3 and 0.7 of 5 are 1.5 and 3.5, although neither share is exact in binary."""
    assert apportion(5, (0.3, 0.7), ties_to_later=True) == (1, 4)
    assert apportion(5, (0.3, 0.7), ties_to_later=False) == (2, 3)
