"""Intervals: closed forms by hand, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprism.evaluate.intervals import bootstrap, paired_shares, wilson
from edgeprism.evaluate.metrics import METRICS, Answers, mean_of


def test_paired_shares_does_not_shrink_to_nothing() -> None:
    """Where no answer of 500 changed: 0 +- 1.96 sqrt(2 / 502 / 502)."""
    right = np.ones(500, dtype=bool)
    low, high = paired_shares(right, right)
    assert (low, high) == pytest.approx((-0.005522, 0.005522), abs=1e-6)


def test_wilson_by_hand() -> None:
    """8 of 10: (0.8 + 0.19207 +- 1.96 sqrt(0.016 + 0.0096)) / 1.38415 = 0.490 to 0.943."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def coverage(interval: object, truth: float, draw: object, *, times: int) -> float:
    """Part of ``times`` samples whose interval holds the truth."""
    held = 0
    for seed in range(times):
        low, high = interval(*draw(np.random.default_rng(seed)))  # type: ignore[operator]
        held += low <= truth <= high
    return held / times


def test_paired_shares_hold_the_truth() -> None:
    """One device right in 90 %; the codec loses 3 % of all and wins 1 %: -2 points, in about 95 % of samples of 300."""

    def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        kind = generator.choice(4, p=(0.87, 0.03, 0.01, 0.09), size=300)
        return (kind == 0) | (kind == 1), (kind == 0) | (kind == 2)

    assert 0.93 <= coverage(paired_shares, -0.02, draw, times=1000) <= 0.985


def test_the_bootstrap_holds_the_truth() -> None:
    """The mean of 100 differences of normal numbers; the losses themselves vary far more than their differences."""

    def draw(generator: np.random.Generator) -> tuple[object, object, int]:
        before = generator.normal(0, 10, 100)
        return mean_of(before), mean_of(before + generator.normal(0.5, 1, 100)), 100

    assert 0.91 <= coverage(lambda *given: bootstrap(*given, num_draws=400), 0.5, draw, times=300) <= 0.98


def test_the_bootstrap_is_of_pairs_and_repeatable() -> None:
    """The width is that of the differences (normal theory: 2 * 1.96 / sqrt(400) = 0.196), and the seed is fixed."""
    generator = np.random.default_rng(1)
    before, change = generator.normal(0, 10, 400), generator.normal(0, 1, 400)
    change = (change - change.mean()) / change.std()
    low, high = bootstrap(mean_of(before), mean_of(before + change), 400)
    assert high - low == pytest.approx(0.196, rel=0.08) and low < 0 < high
    assert (low, high) == bootstrap(mean_of(before), mean_of(before + change), 400)


def test_many_inputs_are_drawn_in_parts() -> None:
    """The memory of a bootstrap does not grow with inputs times draws; the result is an interval all the same."""
    losses = np.random.default_rng(2).random(100_000)
    answers = [Answers(predictions=np.zeros((100_000, 1)), losses=losses + step) for step in (0.0, 0.1)]
    before, after = (METRICS["perplexity"](one, np.zeros(100_000)) for one in answers)
    low, high = bootstrap(before, after, 100_000, num_draws=60)
    assert low < np.exp(losses.mean()) * (np.exp(0.1) - 1) < high
