"""A codec's answers against those of one device: both metrics, their difference with its interval, and agreement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.intervals import bootstrap, paired_shares, wilson
from edgeprism.evaluate.metrics import METRICS, Answers, agreement, mean_of

AGREEMENT = "agreement"
METRIC_NAMES = (*METRICS, AGREEMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``exact`` is one device's value of the metric, ``value`` the codec's; ``low`` and ``high`` are the ends of the
    95 % interval of value - exact. ``agreement``: part of the answers that are those of one device; None of a
    regression."""

    metric: str
    exact: float
    value: float
    low: float
    high: float
    agreement: float | None

    @property
    def difference(self) -> float:
        """value - exact."""
        return self.value - self.exact


def choose_metrics(dataset: Dataset, asked: str | None) -> tuple[str, ...]:
    """The metric that was asked for, or the data set's own. InputError where it does not apply."""
    applying = applying_metrics(dataset)
    if asked is None:
        if dataset.targets is None and dataset.kind in ("pictures", "texts"):
            raise InputError(
                f"{dataset.name} {dataset.split} has no labels{dataset.why_no_targets}; only --metric agreement can be "
                "measured"
            )
        return dataset.metrics
    if asked not in METRIC_NAMES:
        raise InputError(f"unknown metric {asked!r}; use one of {', '.join(METRIC_NAMES)}")
    if asked not in applying:
        raise InputError(
            f"metric {asked} does not apply to {dataset.name} {dataset.split} ({_what(dataset)}); "
            f"use {' or '.join(applying)}"
        )
    return (asked,)


def applying_metrics(dataset: Dataset) -> tuple[str, ...]:
    """Those that mean something for it."""
    if dataset.kind == "stream":
        return ("perplexity", AGREEMENT)
    if dataset.targets is None:
        return (AGREEMENT,)
    if dataset.is_regression:
        return ("pearson", "spearman")
    if dataset.kind != "cloze" and len(dataset.labels) == 2:
        return ("accuracy", "f1", "matthews", AGREEMENT)
    return ("accuracy", AGREEMENT)


def compare(metric: str, dataset: Dataset, exact: Answers, other: Answers) -> Comparison:
    """One row of the table."""
    num_inputs = len(exact.predictions)
    same = None if dataset.is_regression else agreement(other, exact)
    agreed = None if same is None else float(same.mean())
    if metric == AGREEMENT:
        assert same is not None and agreed is not None
        if exact.predictions.ndim == 1:
            low, high = wilson(int(same.sum()), num_inputs)
        else:
            low, high = (end + 1 for end in bootstrap(mean_of(np.ones(num_inputs)), mean_of(same), num_inputs))
        return Comparison(metric=metric, exact=1.0, value=agreed, low=low - 1, high=high - 1, agreement=agreed)
    targets = dataset.targets if dataset.targets is not None else np.zeros(num_inputs)
    before, after = METRICS[metric](exact, targets), METRICS[metric](other, targets)
    if metric == "accuracy":
        low, high = paired_shares(exact.predictions == targets, other.predictions == targets)
    else:
        low, high = bootstrap(before, after, num_inputs)
    once = np.ones((1, num_inputs))
    return Comparison(
        metric=metric,
        exact=float(before(once)[0]),
        value=float(after(once)[0]),
        low=low,
        high=high,
        agreement=agreed,
    )


def _what(dataset: Dataset) -> str:
    if dataset.kind == "stream":
        return "a running text"
    if dataset.targets is None:
        return "no labels"
    return "values" if dataset.is_regression else f"{len(dataset.labels) or 'ten'} labels"
