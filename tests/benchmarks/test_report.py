"""What every benchmark shares: turns, medians, and the file that a figure is quoted from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report


def test_calls_run_in_turns() -> None:
    """A B A B, the warm-up included; seconds are kept of the measured rounds only."""
    order: list[str] = []
    seconds = report.paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([5.0, 1.0, 3.0, 2.0, 4.0], {"median": 3.0, "p25": 2.0, "p75": 4.0, "n": 5}),
        ([1.0, 2.0], {"median": 1.5, "p25": 1.25, "p75": 1.75, "n": 2}),
        ([7.0], {"median": 7.0, "p25": 7.0, "p75": 7.0, "n": 1}),
    ],
)
def test_summary(values: list[float], wanted: dict[str, float]) -> None:
    """The quartiles lie inside the values, however few there are."""
    assert report.summary(values) == wanted


def test_record_says_what_it_was_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has figures, settings and where they come from, and nothing half-written lies beside it."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    path = report.record("some", {"x": 1}, {"repeats": 2})
    document = json.loads(path.read_text())
    assert document["figures"] == {"x": 1} and document["settings"] == {"repeats": 2}
    assert document["command"].startswith("python -m benchmarks.some")
    assert {"date", "commit", "hardware", "versions"} < set(document)
    assert [other.name for other in path.parent.iterdir()] == ["some.json"]


def test_smoke_leaves_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smoke run writes elsewhere."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report.tempfile, "mkdtemp", lambda **_: str(tmp_path))
    assert report.record("some", {}, {}, smoke=True).parent == tmp_path
    assert not (tmp_path / "results").exists()
