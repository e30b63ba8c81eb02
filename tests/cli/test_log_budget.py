"""The log of a worker cannot be flooded."""

from __future__ import annotations

import io
import logging

import pytest

from edgeprism.cli import log_budget
from edgeprism.cli.log_budget import LogBudget


def test_lines_beyond_the_budget_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst, then nothing, then one line a second that says how many were left out."""
    now_s = 100.0
    monkeypatch.setattr(log_budget.time, "monotonic", lambda: now_s)
    written, logger = logger_into_text(LogBudget(burst=3, rate_per_s=1.0))
    for index in range(10):
        logger.warning("line %d", index)
    now_s = 101.0
    logger.warning("line %d", 10)
    logger.warning("line %d", 11)
    now_s = 200.0
    for index in range(12, 20):
        logger.warning("line %d", index)
    lines = written.getvalue().splitlines()
    assert lines[:3] == ["line 0", "line 1", "line 2"]
    assert lines[3] == "line 10 (7 lines before this one were left out: they came too fast)"
    assert lines[4].startswith("line 12 (1 lines")
    assert lines[5:] == ["line 13", "line 14"]


def test_a_line_ends() -> None:
    """Neither a message nor a traceback is written without end."""
    written, logger = logger_into_text(LogBudget())
    logger.warning("%s", "x" * 10**6)
    try:
        raise ValueError("y" * 10**6)
    except ValueError:
        logger.warning("failed", exc_info=True)
    assert len(written.getvalue()) < log_budget.MAX_CHARS + log_budget.MAX_TRACEBACK_CHARS + 100
    assert "xxx..." in written.getvalue()


def logger_into_text(budget: LogBudget) -> tuple[io.StringIO, logging.Logger]:
    """A logger of its own, and what it writes."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.addFilter(budget)
    logger = logging.Logger("budget")
    logger.addHandler(handler)
    return written, logger
