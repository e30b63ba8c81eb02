"""What tells one cluster from another: a performance map is good for one of them only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def cluster_key(identity: Sequence[str]) -> str:
    """sha256 in hex, of its devices' names and keys, or of how its processes were made."""
    return hashlib.sha256("\0".join(identity).encode()).hexdigest()
