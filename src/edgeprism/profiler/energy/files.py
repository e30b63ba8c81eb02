"""Small files of the kernel that hold one value, for meters: read or said why not."""

from __future__ import annotations

from pathlib import Path

from edgeprism.errors import SensorError

ROOT = Path("/")


def read_text(path: Path) -> str:
    """What the file says, without the line's end. SensorError names the file that cannot be read, and what helps."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \n\0")
    except PermissionError as exc:
        raise SensorError(f"this user may not read it: sudo chmod a+r {path}") from exc
    except OSError as exc:
        raise SensorError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def read_number(path: Path) -> int:
    """A whole number. SensorError where the file holds something else."""
    text = read_text(path)
    try:
        return int(text)
    except ValueError as exc:
        raise SensorError(f"{path} holds {text[:40]!r}, not a number") from exc


def text_or_empty(path: Path) -> str:
    """What the file says; empty where it is not there, or closed."""
    try:
        return read_text(path)
    except SensorError:
        return ""
