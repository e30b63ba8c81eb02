"""A log that cannot be flooded: so many lines at once, so many a second, none without end.

A worker writes a line for each request that it cannot carry out. A coordinator gone wrong can send thousands a second;
on a board the log shares its SD card with the rest of the system.
"""

from __future__ import annotations

import logging
import time

BURST, RATE_PER_S = 100, 2.0
MAX_CHARS = 1000
MAX_TRACEBACK_CHARS = 4000


class LogBudget(logging.Filter):
    """Put it on a handler. Lines beyond the budget are left out, and the next one that is written says how many."""

    def __init__(self, burst: int = BURST, rate_per_s: float = RATE_PER_S) -> None:
        super().__init__()
        self._burst, self._rate_per_s = burst, rate_per_s
        self._left, self._counted_at_s = float(burst), time.monotonic()
        self._num_left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        self._left = min(self._burst, self._left + (now_s - self._counted_at_s) * self._rate_per_s)
        self._counted_at_s = now_s
        if self._left < 1:
            self._num_left_out += 1
            return False
        self._left -= 1
        text = record.getMessage()
        record.msg, record.args = text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}...", None
        if record.exc_info and record.exc_text is None:
            record.exc_text = logging.Formatter().formatException(record.exc_info)[-MAX_TRACEBACK_CHARS:]
        if self._num_left_out:
            record.msg += f" ({self._num_left_out} lines before this one were left out: they came too fast)"
            self._num_left_out = 0
        return True
