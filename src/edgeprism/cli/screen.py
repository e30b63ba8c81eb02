"""What a run says: results on standard output, and on standard error how it goes and what happened.

On a terminal one line is written again and again, and steps aside for every other; elsewhere (a log, a pipe) it is a
plain line, and comes less often.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

TERMINAL_PERIOD_S = 0.5
LOG_PERIOD_S = 5.0
CLEAR = "\r\x1b[K"


class Screen:
    """For any thread: what others log comes through here as well. ``names`` are those of the devices, 0 first, where
    they have some: lines on standard error give them."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = names
        self._lock = threading.RLock()
        self._is_terminal = sys.stderr.isatty()
        self._shares_terminal = self._is_terminal and sys.stdout.isatty()
        self._status = ""
        self.period_s = TERMINAL_PERIOD_S if self._is_terminal else LOG_PERIOD_S
        """How often ``status`` should be called."""

    def named(self, text: str) -> str:
        """With the name of each device before its number; "pi1 (device 1)" has it already."""

        def name(match: re.Match[str]) -> str:
            rank = int(match[1])
            return f"{self._names[rank]} ({match[0]})" if rank < len(self._names) else match[0]

        return re.sub(r"(?<!\()\bdevice (\d+)\b", name, text)

    def result(self, line: str) -> None:
        """One line on standard output."""
        with self._lock:
            if self._shares_terminal:
                self._clear()
            print(line, flush=True)
            if self._shares_terminal:
                self._draw()

    def say(self, line: str) -> None:
        """One line on standard error, which stays there."""
        with self._lock:
            self._clear()
            print(f"edgeprism: {self.named(line)}", file=sys.stderr, flush=True)
            self._draw()

    def status(self, line: str) -> None:
        """How it goes now."""
        if not self._is_terminal:
            self.say(line)
            return
        with self._lock:
            self._clear()
            self._status = self.named(line)
            self._draw()

    def end(self) -> None:
        """No status from now on."""
        with self._lock:
            self._clear()
            self._status = ""

    @contextmanager
    def events(self) -> Iterator[None]:
        """What edgeprism itself logs (a device failed, and why; weights on their way to one) is said here, and so are
        warnings."""
        handler, logger, progress = _Said(self), logging.getLogger("edgeprism"), logging.getLogger("edgeprism.progress")
        level = progress.level
        logger.addHandler(handler)
        progress.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.showwarning = lambda message, *_: self.say(str(message))
                yield
        finally:
            progress.setLevel(level)
            logger.removeHandler(handler)

    def _clear(self) -> None:
        if self._status:
            print(CLEAR, end="", file=sys.stderr, flush=True)

    def _draw(self) -> None:
        if self._status:
            width = shutil.get_terminal_size().columns - 1  # a line that breaks cannot be written again
            print(self._status[:width], end="", file=sys.stderr, flush=True)


class _Said(logging.Handler):
    """Records of the log as lines of the screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say(self.format(record))
