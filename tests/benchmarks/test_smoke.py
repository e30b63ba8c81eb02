"""Every benchmark runs: a figure that nobody can measure again is worth nothing."""

from __future__ import annotations

import pytest

from benchmarks import smoke

RESULTS = smoke.FOLDER / "results"


@pytest.mark.processes
@pytest.mark.timeout(600)  # a dozen scripts, one after the other
def test_every_script_runs_and_leaves_results_alone() -> None:
    """Each script ends well at its smallest size, and no file of results changes."""
    before = contents()
    assert smoke.main() == 0
    assert contents() == before


def contents() -> dict[str, bytes]:
    """The results there are."""
    return {path.name: path.read_bytes() for path in RESULTS.glob("*")}
