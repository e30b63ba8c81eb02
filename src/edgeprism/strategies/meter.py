"""Where the time of one request goes on one device, besides what the transport counts itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Meter:
    """Seconds of this device's thread."""

    codec_s: float = 0.0
    """Encoding and decoding what travels."""
    staging_s: float = 0.0
    """Copies between the accelerator's memory and the host's; 0 on a CPU, which has none (unless they are emulated)."""

    @contextmanager
    def codec(self) -> Iterator[None]:
        """Counts the time inside as encoding or decoding."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.codec_s += time.perf_counter() - start
