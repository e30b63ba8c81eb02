"""What commands that take long say while they work: lines and a progress bar with the time left, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TERMINAL_PERIOD_S, LOG_PERIOD_S = 0.2, 10.0


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], object]]:
    """A bar for ``total`` inputs, which is told how many are done since it was told last; every ten seconds where
    standard error is no terminal."""
    from tqdm import tqdm

    period_s = TERMINAL_PERIOD_S if sys.stderr.isatty() else LOG_PERIOD_S
    with tqdm(total=total, desc="edgeprism", unit="input", file=sys.stderr, mininterval=period_s) as bar:
        yield bar.update


def quiet() -> None:
    """transformers' own progress bars and notes would bury ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def say(text: str) -> None:
    """Progress is for people who watch: it goes to standard error, so that --json stays one document."""
    print(f"edgeprism: {text}", file=sys.stderr)
