"""Where performance maps lie: in edgeprism's cache, by model, cluster and dtype; and which one a cluster may use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprism.errors import InputError
from edgeprism.runtime.cache import cache_root
from edgeprism.specs.json_file import replace_json
from edgeprism.specs.performance_map import DeviceFacts, PerformanceMap


def place_of(fingerprint: str, cluster: str, dtype: str) -> Path:
    """The file of a model's map on a cluster."""
    return cache_root() / "maps" / fingerprint[:32] / f"{cluster[:16]}-{dtype}.json"


def has_any() -> bool:
    """Whether a map was ever made here: looking for one costs the hash of the model's weights."""
    return (cache_root() / "maps").is_dir()


def facts_of(name: str, facts: Mapping[str, Any]) -> DeviceFacts:
    """What a device says of itself (`probe.facts`), as a map keeps it."""
    versions = facts.get("versions")
    return DeviceFacts(
        name=name,
        hardware=str(facts.get("hardware", "")),
        num_threads=int(facts.get("num_threads", 0)),
        computes_on=str(facts.get("computes_on", "")),
        power_mode=str(facts.get("power_mode", "")),
        versions=", ".join(f"{one} {number}" for one, number in versions.items()) if isinstance(versions, dict) else "",
    )


def write(path: Path, found: PerformanceMap) -> None:
    """Writes the whole file or none. InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, found.to_json())
    except OSError as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror or exc}") from exc
