"""Who gets which tokens and which samples."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeprism.errors import PlanError
from edgeprism.strategies.replica.partition import sample_bounds
from edgeprism.strategies.sequence.partition import token_bounds

Bounds = tuple[tuple[int, int], ...]

weights = st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any)


def shares_of(values: list[int]) -> tuple[float, ...]:
    """Weights as fractions."""
    return tuple(value / sum(values) for value in values)


def assert_covers(bounds: Bounds, total: int) -> None:
    """Contiguous runs in device order, from 0 to ``total``."""
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert all(start <= stop for start, stop in bounds)


@settings(deadline=None)
@given(st.integers(1, 2000), weights)
def test_tokens_are_covered_and_nobody_is_left_out(num_tokens: int, values: list[int]) -> None:
    """Every token has one device, every device with a share a token, and no other device any."""
    assume(sum(value > 0 for value in values) <= num_tokens)
    bounds = token_bounds(num_tokens, shares_of(values))
    assert_covers(bounds, num_tokens)
    for (start, stop), value in zip(bounds, values, strict=True):
        assert (stop > start) == (value > 0)


@settings(deadline=None)
@given(st.integers(1, 2000), weights)
def test_tokens_are_proportional(num_tokens: int, values: list[int]) -> None:
    """Where every quota is a token or more, each device is within one token of its quota."""
    quotas = [Fraction(num_tokens * value, sum(values)) for value in values]
    assume(all(quota >= 1 or quota == 0 for quota in quotas))
    for (start, stop), quota in zip(token_bounds(num_tokens, shares_of(values)), quotas, strict=True):
        assert abs((stop - start) - quota) < 1 + 1e-9


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(8, 2000))
def test_even_shares_differ_by_one_token_in_favour_of_device_0(num_devices: int, num_tokens: int) -> None:
    """Even lengths differ by at most one, and the shorter partitions come first."""
    bounds = token_bounds(num_tokens, (1 / num_devices,) * num_devices)
    lengths = [stop - start for start, stop in bounds]
    assert lengths == sorted(lengths)
    assert lengths[-1] - lengths[0] <= 1


def test_vit_on_two_devices() -> None:
    """The published split of 197 tokens: the coordinator has 98."""
    assert token_bounds(197, (0.5, 0.5)) == ((0, 98), (98, 197))


@pytest.mark.parametrize(
    ("num_tokens", "shares", "bounds"),
    [
        (3, (0.98, 0.01, 0.01), ((0, 1), (1, 2), (2, 3))),
        (10, (0.98, 0.01, 0.01), ((0, 8), (8, 9), (9, 10))),
        (10, (0.0, 1.0), ((0, 0), (0, 10))),
        (10, (0.5, 0.0, 0.5), ((0, 5), (5, 5), (5, 10))),
        (1, (1.0,), ((0, 1),)),
    ],
)
def test_small_shares(num_tokens: int, shares: tuple[float, ...], bounds: Bounds) -> None:
    """A small share is one token, a share of nothing is none."""
    assert token_bounds(num_tokens, shares) == bounds


def test_more_devices_than_tokens() -> None:
    """Devices that would go without a token are refused, not left idle in silence."""
    with pytest.raises(PlanError, match="more devices than tokens: 3 devices cannot share 2 tokens"):
        token_bounds(2, (0.4, 0.3, 0.3))


@settings(deadline=None)
@given(st.integers(0, 2000), weights)
def test_samples_are_covered_and_proportional(batch: int, values: list[int]) -> None:
    """Every sample has one device, and each device is within one sample of its quota."""
    bounds = sample_bounds(batch, shares_of(values))
    assert_covers(bounds, batch)
    for (start, stop), value in zip(bounds, values, strict=True):
        assert abs((stop - start) - Fraction(batch * value, sum(values))) < 1 + 1e-9


def test_odd_sample_stays_with_the_coordinator() -> None:
    """One sample on two devices runs where it arrived; the other device gets none."""
    assert sample_bounds(1, (0.5, 0.5)) == ((0, 1), (1, 1))
    assert sample_bounds(3, (0.5, 0.5)) == ((0, 2), (2, 3))
