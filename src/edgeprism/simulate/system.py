"""A system to simulate, in a file: devices by kind, their link rates, and what a model's pieces take on each kind."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.errors import InputError
from edgeprism.planner.pipeline import Pipeline

SCHEMA_VERSION = 1
_FIELDS = ("schema_version", "source", "model", "micro_batch", "cut_bytes", "weight_bytes", "work_bytes", "devices",
           "latency_s", "has_one_medium")  # fmt: skip
_DEVICE_FIELDS = ("name", "count", "piece_s", "bytes_per_s", "memory_bytes", "s_per_byte")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """``piece_s``: seconds of each piece for one micro-batch. ``bytes_per_s``: of its link; between two devices the
    slower one counts. ``s_per_byte``: of its computing, for each byte that it is sent or sends."""

    name: str
    count: int
    piece_s: tuple[float, ...]
    bytes_per_s: float
    memory_bytes: float = float("inf")
    s_per_byte: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """See the module. Device 0, of the first kind, has the inputs and wants the outputs."""

    source: str
    model: str
    micro_batch: int
    cut_bytes: tuple[int, ...]
    weight_bytes: tuple[int, ...]
    work_bytes: tuple[int, ...]
    devices: tuple[DeviceKind, ...]
    latency_s: float = 0.0
    has_one_medium: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of every device."""
        return tuple(
            kind.name if kind.count == 1 else f"{kind.name} {index + 1}"
            for kind in self.devices
            for index in range(kind.count)
        )

    def pipeline(self, *, rate_factor: float = 1.0) -> Pipeline:
        """To plan, and to simulate. InputError where the numbers do not fit together."""
        kinds = [kind for kind in self.devices for _ in range(kind.count)]
        everyone = range(len(kinds))
        return Pipeline(
            piece_s=tuple(kind.piece_s for kind in kinds),
            cut_bytes=self.cut_bytes,
            weight_bytes=self.weight_bytes,
            work_bytes=self.work_bytes,
            memory_bytes=tuple(kind.memory_bytes for kind in kinds),
            latency_s=tuple(tuple(0.0 if i == j else self.latency_s for j in everyone) for i in everyone),
            has_one_medium=self.has_one_medium,
            bytes_per_s=tuple(
                tuple(rate_factor * min(one.bytes_per_s, other.bytes_per_s) for other in kinds) for one in kinds
            ),
            s_per_byte=tuple(kind.s_per_byte for kind in kinds),
        )

    @classmethod
    def read(cls, path: Path) -> System:
        """Of a file. InputError says what is wrong with it."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"there is no file {path}; a system file, or published:MODEL:DEVICE=COUNT,...") from None
        except (OSError, ValueError, RecursionError) as exc:
            raise InputError(
                f"{path} cannot be read as JSON ({exc}); a system file is wanted, or published:MODEL:DEVICE=COUNT,..."
            ) from None
        try:
            return cls.from_json(document)
        except InputError as exc:
            raise InputError(f"{path}: {exc}") from None

    @classmethod
    def from_json(cls, document: Any) -> System:
        """InputError names the field that is wrong."""
        if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
            raise InputError(f"a system is a JSON object with schema_version {SCHEMA_VERSION}")
        _check_fields(document, _FIELDS)
        kinds = _list(document, "devices")
        if not isinstance(has_one_medium := document.get("has_one_medium", False), bool):
            raise InputError(f"has_one_medium must be true or false, not {has_one_medium!r}")
        found = cls(
            source=_text(document, "source", ""),
            model=_text(document, "model", "a model"),
            micro_batch=_count(document, "micro_batch"),
            cut_bytes=_counts(document, "cut_bytes"),
            weight_bytes=_counts(document, "weight_bytes"),
            work_bytes=_counts(document, "work_bytes", default=[0] * len(_list(document, "weight_bytes"))),
            devices=tuple(_kind(kind) for kind in kinds),
            latency_s=_number(document, "latency_s", default=0.0),
            has_one_medium=has_one_medium,
        )
        found._check_lengths()
        return found

    def _check_lengths(self) -> None:
        """InputError names the list that has another length than the rest."""
        pieces = len(self.cut_bytes) - 1
        lengths = {"weight_bytes": len(self.weight_bytes), "work_bytes": len(self.work_bytes)}
        lengths |= {f"piece_s of {kind.name}": len(kind.piece_s) for kind in self.devices}
        for name, length in lengths.items():
            if length != pieces:
                raise InputError(
                    f"cut_bytes is of {pieces} pieces (it has one number more), and {name} of {length}; give one a "
                    "piece"
                )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that ``from_json`` reads back."""
        return {
            "schema_version": SCHEMA_VERSION,
            "source": self.source,
            "model": self.model,
            "micro_batch": self.micro_batch,
            "cut_bytes": list(self.cut_bytes),
            "weight_bytes": list(self.weight_bytes),
            "work_bytes": list(self.work_bytes),
            "devices": [
                {
                    "name": kind.name, "count": kind.count, "piece_s": list(kind.piece_s),
                    "bytes_per_s": kind.bytes_per_s,
                    **({} if kind.memory_bytes == float("inf") else {"memory_bytes": kind.memory_bytes}),
                    **({"s_per_byte": kind.s_per_byte} if kind.s_per_byte else {}),
                }
                for kind in self.devices
            ],
            "latency_s": self.latency_s,
            "has_one_medium": self.has_one_medium,
        }  # fmt: skip


def _kind(document: Any) -> DeviceKind:
    if not isinstance(document, dict):
        raise InputError("devices must be a list of objects")
    _check_fields(document, _DEVICE_FIELDS)
    name, bytes_per_s = _text(document, "name", "device"), _number(document, "bytes_per_s")
    piece_s = tuple(_is_number(value, "piece_s") for value in _list(document, "piece_s"))
    if not bytes_per_s or not sum(piece_s):
        raise InputError(f"{'piece_s' if bytes_per_s else 'bytes_per_s'} of {name} must be more than 0")
    has_limit = "memory_bytes" in document
    return DeviceKind(
        name=name,
        count=_count({"count": document.get("count", 1)}, "count"),
        piece_s=piece_s,
        bytes_per_s=bytes_per_s,
        memory_bytes=_number(document, "memory_bytes") if has_limit else float("inf"),
        s_per_byte=_number(document, "s_per_byte", default=0.0),
    )


def _check_fields(document: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := sorted(set(document) - set(known)):
        raise InputError(f"unknown field {unknown[0]!r}; there are {', '.join(known)}")


def _text(document: Mapping[str, Any], name: str, default: str) -> str:
    value = document.get(name, default)
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, not {value!r}")
    return value


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if not isinstance(value, list) or not value:
        raise InputError(f"{name} must be a list that is not empty")
    return value


def _counts(document: Mapping[str, Any], name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
    if default is not None and name not in document:
        return tuple(default)
    values = _list(document, name)
    if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
        wrong = next(value for value in values if not isinstance(value, int) or isinstance(value, bool) or value < 0)
        raise InputError(f"{name} must be whole numbers of bytes, not {wrong!r}")
    return tuple(values)


def _count(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a count of at least 1, not {value!r}")
    return value


def _number(document: Mapping[str, Any], name: str, default: float | None = None) -> float:
    return float(_is_number(document.get(name, default), name))


def _is_number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise InputError(f"{name} must be a number that is not negative, not {value!r}")
    return float(value)
