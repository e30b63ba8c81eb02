"""Adds measurements to an accuracy file that other processes may be adding to at the same time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.specs.accuracy import AccuracyFile, AccuracyRecord
from edgeprism.specs.json_file import replace_json


def add_records(path: Path, records: Iterable[AccuracyRecord]) -> list[AccuracyRecord]:
    """Merges ``records`` into the file, which is made if need be. Returns those that it keeps in place of some: of two
    measurements of the same, the one on more inputs stays.

    Writers take turns by a lock on PATH.lock, and replace the file in one step: a reader sees it before or after.
    InputError where it cannot be written, or is no accuracy file; it is then left as it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed
            added = list(records)
            merged = AccuracyFile.read(path).merged(added)
            replace_json(path, merged.to_json())
        kept = {record.key: record for record in merged.records}
        return [kept[record.key] for record in added if kept[record.key] != record]
    except OSError as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror or exc}") from exc
