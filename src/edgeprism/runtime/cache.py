"""Where edgeprism keeps what it made: weights that were sent, calibrations, accuracy, performance maps."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """edgeprism's cache: EDGEPRISM_CACHE, else XDG_CACHE_HOME/edgeprism, else ~/.cache/edgeprism."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EDGEPRISM_CACHE") or user_cache / "edgeprism")
