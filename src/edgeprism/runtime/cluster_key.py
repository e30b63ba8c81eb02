"""What tells one cluster from another: a performance map is good for one of them only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from edgeprism.runtime.cluster_file import Member


def of_members(members: Sequence[Member]) -> str:
    """In hex: of a cluster file, whose devices are known by name and key."""
    return _hash([text for member in members for text in (member.name, member.public_key)])


def of_processes(cores: Sequence[Sequence[int]], gloo: str = "", *, is_paced: bool = False) -> str:
    """Of processes of one machine, each with so many cores; ``gloo`` says how, where they talk over that. Links that
    are paced may have any rate: that is what changes."""
    return _hash(
        ["processes", *(str(len(own)) for own in cores), *([gloo] if gloo else []), *(["paced"] if is_paced else [])]
    )


def of_store(store: str, num_devices: int, gloo: str) -> str:
    """Of devices that find each other by a gloo store."""
    return _hash(["store", store, str(num_devices), gloo])


def of_threads(num_devices: int) -> str:
    """Of threads of one process."""
    return _hash(["threads", str(num_devices)])


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
