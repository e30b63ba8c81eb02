"""Metrics against values worked by hand, and against themselves on data that was really resampled."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from edgeprism.errors import InputError
from edgeprism.evaluate.compare import choose_metrics, compare
from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.metrics import METRICS, Answers, Metric, agreement

LOSSES = np.array([1.0, 2.0, 3.0])


def value(metric: Metric, weights: list[float]) -> float:
    """The metric where the inputs are there so many times."""
    return float(metric(np.array([weights]))[0])


def metric(name: str, said: list[Any], true: list[Any]) -> Metric:
    """One metric of these answers."""
    return METRICS[name](Answers(predictions=np.array(said)), np.array(true))


def test_labels_by_hand() -> None:
    """Of ten: 3 true positives, 2 false, 1 missed, 4 true negatives."""
    said, true = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    once = [1.0] * 10
    assert value(metric("accuracy", said, true), once) == pytest.approx(0.7)
    assert value(metric("f1", said, true), once) == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    by_hand = (3 * 4 - 2 * 1) / math.sqrt((3 + 2) * (3 + 1) * (4 + 2) * (4 + 1))
    assert value(metric("matthews", said, true), once) == pytest.approx(by_hand)


def test_correlations_by_hand() -> None:
    """1, 2, 3, 4 against 1, 2, 4, 3: ranks differ by 0, 0, 1, 1, so Spearman's is 1 - 6 * 2 / (4 * 15) = 0.8; Pearson's
    of 1, 2, 3 and 1, 3, 2 is 1/2. With a tie (2 and 2 share rank 2.5) it is sqrt(0.9)."""
    assert value(metric("spearman", [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 30.0]), [1.0] * 4) == pytest.approx(0.8)
    assert value(metric("pearson", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]), [1.0] * 3) == pytest.approx(0.5)
    assert value(metric("spearman", [1.0, 2.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]), [1.0] * 4) == pytest.approx(0.9**0.5)
    assert value(metric("pearson", [1e6 + 1, 1e6 + 2, 1e6 + 3], [1.0, 3.0, 2.0]), [1.0] * 3) == pytest.approx(0.5)


def test_where_there_is_nothing_to_divide_by() -> None:
    """Answers that are all the same are correlated with nothing."""
    for name in ("pearson", "spearman", "matthews"):
        assert value(metric(name, [0.1, 0.1, 0.1], [1.0, 3.0, 2.0]), [1.0] * 3) == 0
    assert value(metric("f1", [0, 0], [0, 0]), [1.0, 1.0]) == 0


def test_perplexity_by_hand() -> None:
    """exp of the mean loss of a token."""
    answers = Answers(predictions=np.zeros((3, 2), dtype=np.int64), losses=LOSSES)
    assert value(METRICS["perplexity"](answers, np.zeros(3)), [1.0] * 3) == pytest.approx(math.e**2)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_weights_are_repetitions(name: str) -> None:
    """The metric under weights is that of the data with each input repeated so often; ties and all."""
    generator = np.random.default_rng(3)
    weights = generator.integers(4, size=40)
    said, true = generator.integers(2, size=40), generator.integers(2, size=40)
    if name in ("pearson", "spearman"):
        said, true = generator.integers(6, size=40).astype(float), generator.integers(6, size=40).astype(float)
    losses = generator.random(40)

    def metric_of(number: np.ndarray) -> Metric:
        predictions = np.zeros((len(number), 1)) if name == "perplexity" else said[number]
        return METRICS[name](Answers(predictions=predictions, losses=losses[number]), true[number])

    repeated = np.repeat(np.arange(40), weights)
    weighted = metric_of(np.arange(40))(np.stack([weights.astype(float), np.ones(40)]))
    assert weighted[0] == pytest.approx(metric_of(repeated)(np.ones((1, len(repeated))))[0])
    assert weighted[1] == pytest.approx(metric_of(np.arange(40))(np.ones((1, 40)))[0])
    assert abs(weighted[0] - weighted[1]) > 1e-3, "the weights matter"


def dataset(kind: str = "texts", targets: Any = (0, 1, 1, 0), labels: tuple[str, ...] = ("no", "yes")) -> Dataset:
    """Four inputs."""
    return Dataset(
        name="own",
        split="all",
        kind=kind,  # type: ignore[arg-type]
        inputs=["a"] * 4,
        targets=None if targets is None else np.array(targets),
        labels=labels,
    )


@pytest.mark.parametrize(
    ("data", "asked", "message"),
    [
        (
            dataset(),
            "perplexity",
            "metric perplexity does not apply to own all (2 labels); use accuracy or f1 or matthews or agreement",
        ),
        (dataset(labels=("a", "b", "c")), "f1", "does not apply to own all (3 labels)"),
        (dataset(targets=None), "accuracy", "does not apply to own all (no labels); use agreement"),
        (dataset(targets=None), None, "own all has no labels; only --metric agreement can be measured"),
        (dataset(targets=(0.5, 1.0, 2.0, 3.0), labels=()), "agreement", "(values); use pearson or spearman"),
        (dataset(kind="stream", targets=None, labels=()), "accuracy", "use perplexity or agreement"),
        (dataset(), "recall", "unknown metric 'recall'; use one of accuracy"),
    ],
)
def test_metrics_that_do_not_apply(data: Dataset, asked: str | None, message: str) -> None:
    """They are refused, with those that do."""
    with pytest.raises(InputError, match=re.escape(message)):
        choose_metrics(data, asked)


def test_the_official_metrics_are_the_default() -> None:
    """All of a data set's own, unless one is named."""
    assert choose_metrics(dataset(), None) == ("accuracy",)
    assert choose_metrics(dataset(), "matthews") == ("matthews",)


def test_agreement_needs_no_labels() -> None:
    """Part of the answers that stay; of a running text, of its tokens."""
    exact, other = (Answers(predictions=np.array(said)) for said in ([0, 1, 2, 3], [0, 1, 1, 3]))
    compared = compare("agreement", dataset(targets=None), exact, other)
    assert (compared.exact, compared.value, compared.difference, compared.agreement) == (1.0, 0.75, -0.25, 0.75)
    assert compared.low < -0.25 < compared.high <= 0
    assert compare("agreement", dataset(targets=None), exact, exact).low < -0.1, "four inputs prove little"
    exact, other = (Answers(predictions=np.array(said)) for said in ([[0, 1], [2, 3]], [[0, 1], [2, 4]]))
    assert agreement(other, exact).tolist() == [1.0, 0.5]
