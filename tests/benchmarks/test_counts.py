"""The published counts."""

from __future__ import annotations

import pytest

from benchmarks.counts import ROWS, Row, compare


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}-{row.what}")
def test_counts_agree(row: Row) -> None:
    """`edgeprism plan` counts what the published formula gives, to every digit stated."""
    assert compare(row)["met"]
