"""Metrics, each as a function of weights over the inputs: with every weight 1 it is the metric itself, and with how
often each input was drawn it is that of a resample, so that a bootstrap is a few products of matrices.

accuracy, F1 of the second label and Matthews' coefficient (two labels), Pearson's and Spearman's correlation (ties get
their mean rank), perplexity (exp of the mean negative log-likelihood of a token). Where a quotient is 0 / 0 it is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Metric = Callable[[Floats], Floats]
"""Weights (draws, inputs) -> values (draws)."""

_ROUNDING = 1e-24  # a spread so far below the numbers themselves is that of equal numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a model said to each input.

    ``predictions``: (inputs,) label numbers, below 0 where the head named one that is not the data set's; or values
    of a regression; or (inputs, tokens) the most likely tokens of a running text, of which ``losses`` (inputs,) are the
    mean negative log-likelihoods in nats of the true ones.
    """

    predictions: npt.NDArray[Any]
    losses: Floats | None = None


def accuracy(answers: Answers, targets: npt.NDArray[Any]) -> Metric:
    """The part of the answers that are right."""
    return mean_of((answers.predictions == targets).astype(np.float64))


def mean_of(values: Floats) -> Metric:
    """The weighted mean of one number an input."""
    return lambda weights: weights @ values / weights.sum(axis=1)


def f1(answers: Answers, targets: npt.NDArray[Any]) -> Metric:
    """2 TP / (2 TP + FP + FN), label 1 being positive."""
    said, true = answers.predictions == 1, targets == 1
    both, either = (said & true).astype(np.float64), said.astype(np.float64) + true
    return lambda weights: _quotient(2 * (weights @ both), weights @ either)


def matthews(answers: Answers, targets: npt.NDArray[Any]) -> Metric:
    """The correlation of two kinds of yes and no: Pearson's over 0 and 1."""
    return _correlation((answers.predictions == 1).astype(np.float64), (targets == 1).astype(np.float64))


def pearson(answers: Answers, targets: npt.NDArray[Any]) -> Metric:
    """The linear correlation."""
    return _correlation(answers.predictions.astype(np.float64), targets)


def spearman(answers: Answers, targets: npt.NDArray[Any]) -> Metric:
    """Pearson's correlation of the ranks. A resample has ranks of its own."""
    said, true = _ranks(answers.predictions.astype(np.float64)), _ranks(targets)

    def value(weights: Floats) -> Floats:
        return _weighted_correlation(said(weights), true(weights), weights)

    return value


def perplexity(answers: Answers, targets: object = None) -> Metric:
    """exp of the mean loss. Every input (window) has the same number of tokens."""
    assert answers.losses is not None
    mean = mean_of(answers.losses)
    return lambda weights: np.exp(mean(weights))


METRICS: dict[str, Callable[[Answers, npt.NDArray[Any]], Metric]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "perplexity": perplexity,
}


def agreement(answers: Answers, exact: Answers) -> Floats:
    """For each input 1 where the answer is that of one device and else 0; of a running text the part of its tokens."""
    same: Floats = (answers.predictions == exact.predictions).astype(np.float64)
    return same if same.ndim == 1 else same.mean(axis=1, dtype=np.float64)


def _correlation(x: Floats, y: Floats) -> Metric:
    x, y = x - x.mean(), y - y.mean()  # so that the moments below are small differences of no large numbers
    return lambda weights: _weighted_correlation(x[None], y[None], weights)


def _weighted_correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """``x`` and ``y``: (1 or draws, inputs)."""
    total = weights.sum(axis=1, keepdims=True)
    size = (weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    spread = (weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)
    spread = np.where(spread > _ROUNDING * size, spread, 0.0)
    return _quotient((weights * x * y).sum(axis=1), np.sqrt(spread))


def _ranks(values: Floats) -> Metric:
    """Weights -> the rank of each input (draws, inputs), were each there as often as its weight says."""
    _, place = np.unique(values, return_inverse=True)
    num_places = int(place.max()) + 1

    def ranks(weights: Floats) -> Floats:
        held = np.zeros((len(weights), num_places))
        for draw, row in enumerate(weights):
            held[draw] = np.bincount(place, weights=row, minlength=num_places)
        return (held.cumsum(axis=1) - (held - 1) / 2)[:, place]

    return ranks


def _quotient(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
