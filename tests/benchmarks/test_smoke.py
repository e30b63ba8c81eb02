"""Every benchmark runs: a figure that nobody can measure again is worth nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import smoke

RESULTS = smoke.FOLDER / "results"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", smoke.commands())
def test_it_runs_and_leaves_results_alone(name: str, tmp_path: Path) -> None:
    """A script ends well at its smallest size, and no file of results changes."""
    before = contents()
    assert smoke.succeeds(name, tmp_path)
    assert contents() == before


def contents() -> dict[str, bytes]:
    """The results there are."""
    return {path.name: path.read_bytes() for path in RESULTS.glob("*")}
