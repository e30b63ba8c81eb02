"""From answers to measurements: one record for each codec and metric, as the accuracy file keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeprism.evaluate.answer import Answered
from edgeprism.evaluate.compare import compare
from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.metrics import Answers
from edgeprism.specs.accuracy import AccuracyRecord
from edgeprism.specs.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was measured. ``model``: its fingerprint; ``window``: tokens of a window, where the data is a long text;
    ``calibrations``: the digests of the codecs' tables, by codec."""

    model: str
    dtype: str
    dataset: Dataset
    window: int
    calibrations: Mapping[str, str]


def measure(
    subject: Subject, metrics: Sequence[str], exact: Answers, answered: Sequence[tuple[Plan, Answered]]
) -> list[AccuracyRecord]:
    """Each codec against ``exact``, the answers of one device to the same inputs."""
    dataset = subject.dataset
    content = f" {dataset.content}" if dataset.content else ""
    window = f" window={subject.window}" if dataset.kind == "stream" else ""
    compared = [
        (plan, result, compare(metric, dataset, exact, result.answers))
        for plan, result in answered
        for metric in metrics
    ]
    return [
        AccuracyRecord(
            model=subject.model,
            codec=str(plan.codec),
            calibration=subject.calibrations.get(str(plan.codec), ""),
            shares=plan.shares,
            dtype=subject.dtype,
            dataset=dataset.name + content + window,
            split=dataset.split,
            metric=comparison.metric,
            num_inputs=len(exact.predictions),
            num_alone=result.num_alone,
            exact=comparison.exact,
            value=comparison.value,
            low=comparison.low,
            high=comparison.high,
            agreement=comparison.agreement,
            relative_bytes=result.relative_bytes,
        )
        for plan, result, comparison in compared
    ]
