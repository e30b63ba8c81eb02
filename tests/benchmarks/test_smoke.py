"""Every benchmark runs: a figure that nobody can measure again is worth nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import smoke

RESULTS = smoke.FOLDER / "results"
ALONE = {"adaptive", "campaign", "failing", "fuzz", "pipeline", "weights"}
"""They emulate boards, which take the cores for themselves, or fail when something takes too long."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.alone] * (name in ALONE)) for name in smoke.commands()]
)
def test_it_runs_and_leaves_results_alone(name: str, tmp_path: Path) -> None:
    """A script ends well at its smallest size, and no file of results changes."""
    before = contents()
    assert smoke.succeeds(name, tmp_path)
    assert contents() == before


def contents() -> dict[str, bytes]:
    """The results there are."""
    return {path.name: path.read_bytes() for path in RESULTS.glob("*")}
