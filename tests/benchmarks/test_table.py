"""The README's table says what the files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table

WAY = {"way": "int8", "batch": 1, "dtype": "float32", "compared_with": "local", "at_most": 0.75}
TIMES = {"1": {"int8": {"median": 0.08, "of_local": 0.8}, "local": {"median": 0.1}}}
DOCUMENTS: dict[str, Any] = {
    "demo_accuracy": {"accuracy": 0.93, "interval_95": [0.9, 0.95], "num_inputs": 500},
    "first_law": {
        "figures": {
            "num_models": 19,
            "float32": {"largest_difference": 1.14e-5, "at_most": 1e-4, "met": True},
            "bfloat16": {"largest_rms_ratio": 1.3, "at_most": 1.25, "met": False},
        }
    },
    "latency": {
        "figures": {"reach": [{**WAY, "measured": 0.8, "met": False}], "float32": TIMES, "bfloat16": TIMES},
    },
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with some of the files."""
    for name, document in DOCUMENTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def test_hits_misses_and_gaps_are_shown(results: Path) -> None:
    """A miss stands beside a hit; what nothing was asked of has no verdict; a missing file is named."""
    found = {row.what: row for row in table.rows(results)}
    assert [row.met for row in found.values()][:7] == [True, True, False, None, False, None, None]
    assert {row.measured for row in list(found.values())[6:]} == {"not measured"}
    assert found["ViT-B/16, 2 processes, batch 1, `int8` / `local`, float32"].measured == "0.800 (80.0 / 100.0 ms)"
    assert found["`startup`"].measured == "not measured"
    assert table.markdown(results).count("| **no** |") == 2
    assert "| ≤ 1e-4 | 1.1e-5 | yes |" in table.markdown(results)


def test_write_then_check(results: Path, tmp_path: Path) -> None:
    """What was written passes the check, only the table changed, and a stale table fails it."""
    page = tmp_path / "README.md"
    page.write_text("before\n\n<!-- table -->\n<!-- /table -->\n\nafter\n")
    wanted = table.markdown(results)
    assert table.put(page, wanted, write=False) == 1
    assert table.put(page, wanted, write=True) == 0
    assert table.put(page, wanted, write=False) == 0
    text = page.read_text()
    assert wanted in text and text.startswith("before\n") and text.endswith("\nafter\n")
    assert table.put(page, wanted.replace("1.1e-5", "1.0e-5"), write=False) == 1


def test_page_without_markers(tmp_path: Path) -> None:
    """A page that has no place for the table is left alone."""
    page = tmp_path / "README.md"
    page.write_text("nothing\n")
    assert table.put(page, "| |\n", write=True) == 1
    assert page.read_text() == "nothing\n"
