"""What a lossy codec was measured to cost, as `edgeprism evaluate` writes it down and a policy may rely on it.

A record stands for one model (by the hash of its weights and configuration), one way of running it (codec with its
tables, devices, shares, dtype) and one measure (data set, split, metric). A new measurement of the same on fewer
inputs does not replace one on more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edgeprism.errors import InputError
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan

SCHEMA_VERSION = 1
SHARES_DECIMALS = 6
"""Shares are the same where they agree to so many."""
LOWER_IS_BETTER = ("perplexity",)

_TEXTS = ("model", "codec", "dtype", "dataset", "split", "metric")
_COUNTS = ("num_inputs", "num_alone")
_NUMBERS = ("exact", "value", "low", "high", "relative_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRecord:
    """One measurement. ``exact`` is the metric on one device, ``value`` under the codec, on the same ``num_inputs``
    inputs; ``low`` and ``high`` are the ends of the 95 % interval of value - exact. InputError on a bad value.
    """

    model: str
    """sha256 of the model, in hex: `models.manifest.fingerprint`."""
    codec: str
    """In its canonical text, as `str(CodecSpec)` gives it."""
    shares: tuple[float, ...]
    """One for each device, the coordinator first; they add up to 1."""
    dtype: str
    dataset: str
    split: str
    metric: str
    num_inputs: int
    num_alone: int
    """Inputs too short for the codec; one device answered them in both."""
    exact: float
    value: float
    low: float
    high: float
    agreement: float | None
    """Part of the answers that are those of one device; None where answers are values."""
    relative_bytes: float
    """Bytes that travel, over those of the partitions' rows in float32."""
    calibration: str = ""
    """sha256 of the codec's tables, in hex: `Calibration.digest`; empty where it has none."""

    def __post_init__(self) -> None:
        if not _is_sha256(self.model):
            raise InputError(f"accuracy record: model must be a sha256 in hex, not {self.model!r}")
        if not isinstance(self.calibration, str) or (self.calibration and not _is_sha256(self.calibration)):
            raise InputError(f"accuracy record: calibration must be a sha256 in hex or empty, not {self.calibration!r}")
        if str(CodecSpec.parse(self.codec)) != self.codec:
            raise InputError(f"accuracy record: codec {self.codec!r} is written {CodecSpec.parse(self.codec)}")
        Plan(strategy="sequence", shares=self.shares)  # PlanError for shares that are none
        if empty := [name for name in _TEXTS if not getattr(self, name)]:
            raise InputError(f"accuracy record: {empty[0]} is empty")
        if self.num_inputs < 1 or not 0 <= self.num_alone <= self.num_inputs:
            raise InputError(f"accuracy record: {self.num_alone} of {self.num_inputs} inputs cannot be")
        for name in _NUMBERS:
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"accuracy record: {name} must be a number, not {getattr(self, name)}")
        if self.metric in LOWER_IS_BETTER and self.exact <= 0:
            raise InputError(f"accuracy record: exact, a {self.metric}, must be above 0, not {self.exact:g}")
        if self.low > self.high:
            raise InputError(f"accuracy record: an interval from {self.low:g} to {self.high:g}")
        if self.agreement is not None and not 0 <= self.agreement <= 1:
            raise InputError(f"accuracy record: agreement must lie between 0 and 1, not {self.agreement}")

    @property
    def num_devices(self) -> int:
        """Devices, the coordinator included."""
        return len(self.shares)

    @property
    def key(self) -> tuple[object, ...]:
        """What tells one measurement from another."""
        way = self.codec, self.calibration, _rounded(self.shares), self.dtype
        return self.model, *way, self.dataset, self.split, self.metric

    @property
    def difference(self) -> float:
        """value - exact."""
        return self.value - self.exact

    @property
    def points_lost(self) -> float:
        """Points of a hundred that the codec costs the inputs that it was used on; of a perplexity, per cent that it
        rises. Those that one device answered lose nothing, so the others lose that much more."""
        return self._points(self.difference)

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of its 95 % interval, the smaller loss first."""
        low, high = sorted(map(self._points, (self.low, self.high)))
        return low, high

    def _points(self, difference: float) -> float:
        points = 100 * difference / self.exact if self.metric in LOWER_IS_BETTER else -100 * difference
        return points * self.num_inputs / max(1, self.num_inputs - self.num_alone)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that ``from_json`` reads back; ``num_devices`` is for readers."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "shares": list(self.shares), "num_devices": self.num_devices}

    @classmethod
    def from_json(cls, document: object) -> AccuracyRecord:
        """Reads what ``to_json`` wrote; InputError names the field that is wrong."""
        if not isinstance(document, Mapping):
            raise InputError(f"an accuracy record is a JSON object, not {type(document).__name__}")
        values = {"calibration": "", **{name: value for name, value in document.items() if name != "num_devices"}}
        names = {field.name for field in fields(cls)}
        if wrong := sorted(names ^ set(values)):
            raise InputError(f"accuracy record with missing or unknown fields: {', '.join(map(str, wrong))}")
        shares = values["shares"]
        if not isinstance(shares, list) or not all(map(_is_number, shares)):
            raise InputError(f"accuracy record: shares must be a list of numbers, not {shares!r}")
        for name in _TEXTS:
            if not isinstance(values[name], str):
                raise InputError(f"accuracy record: {name} must be a text, not {values[name]!r}")
        for name in _COUNTS:
            if type(values[name]) is not int:
                raise InputError(f"accuracy record: {name} must be a whole number, not {values[name]!r}")
        numbers = _NUMBERS if values["agreement"] is None else (*_NUMBERS, "agreement")
        for name in numbers:
            if not _is_number(values[name]):
                raise InputError(f"accuracy record: {name} must be a number, not {values[name]!r}")
        floats = {name: float(values[name]) for name in numbers}
        return cls(**{**values, **floats, "shares": tuple(map(float, shares))})


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyFile:
    """All that was measured, by what tells one measurement from another."""

    records: tuple[AccuracyRecord, ...] = ()

    def __post_init__(self) -> None:
        if len({record.key for record in self.records}) != len(self.records):
            raise InputError("an accuracy file holds the same measurement twice")

    def merged(self, others: Iterable[AccuracyRecord]) -> AccuracyFile:
        """With ``others`` added; of two measurements of the same, the one on more inputs stays, else the newer one."""
        kept = {record.key: record for record in self.records}
        for record in others:
            if record.key not in kept or kept[record.key].num_inputs <= record.num_inputs:
                kept[record.key] = record
        return AccuracyFile(records=tuple(kept.values()))

    def find(
        self,
        *,
        model: str,
        codec: CodecSpec,
        num_devices: int,
        dtype: str,
        shares: tuple[float, ...] | None = None,
        calibration: str | None = None,
        dataset: str | None = None,
        metric: str | None = None,
    ) -> tuple[AccuracyRecord, ...]:
        """The measurements of this model run this way; ``shares``, ``calibration`` (the digest of the codec's tables),
        ``dataset`` and ``metric`` None: any."""
        return tuple(
            record
            for record in self.records
            if (record.model, record.codec, record.num_devices, record.dtype) == (model, str(codec), num_devices, dtype)
            and (shares is None or _rounded(record.shares) == _rounded(shares))
            and calibration in (None, record.calibration)
            and dataset in (None, record.dataset)
            and metric in (None, record.metric)
        )

    def points_lost(
        self,
        *,
        model: str,
        codec: CodecSpec,
        num_devices: int,
        dtype: str,
        shares: tuple[float, ...] | None = None,
        calibration: str | None = None,
        dataset: str | None = None,
        metric: str | None = None,
        max_uncertainty: float = math.inf,
    ) -> float | None:
        """Points of a hundred that this way of running the model costs: the most of what was measured. What is not
        known to within ``max_uncertainty`` (half of its interval) counts as what it costs at least.

        0 for an exact codec. None where nothing is known so well: then nobody knows, and a budget is not kept.
        """
        if codec.is_exact:
            return 0.0
        found = self.find(
            model=model,
            codec=codec,
            num_devices=num_devices,
            dtype=dtype,
            shares=shares,
            calibration=calibration,
            dataset=dataset,
            metric=metric,
        )
        known, at_least = list[float](), list[float]()
        for record in found:
            least, most = record.interval
            if (most - least) / 2 <= max_uncertainty:
                known.append(record.points_lost)
            else:
                at_least.append(least)
        return max(known + at_least) if known else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that ``from_json`` reads back."""
        return {"schema_version": SCHEMA_VERSION, "records": [record.to_json() for record in self.records]}

    @classmethod
    def from_json(cls, document: object) -> AccuracyFile:
        """Reads what ``to_json`` wrote; InputError says what is wrong."""
        if not isinstance(document, Mapping):
            raise InputError(f"an accuracy file is a JSON object, not {type(document).__name__}")
        if (version := document.get("schema_version")) != SCHEMA_VERSION:
            raise InputError(f"accuracy file with schema_version {version!r}; this edgeprism reads {SCHEMA_VERSION}")
        records = document.get("records")
        if not isinstance(records, list) or len(document) != 2:
            raise InputError("an accuracy file holds schema_version and records, a list, and nothing else")
        return cls(records=tuple(map(AccuracyRecord.from_json, records)))

    @classmethod
    def read(cls, path: Path) -> AccuracyFile:
        """The file's records; none where there is no such file. InputError names a file that is something else."""
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except OSError as exc:
            raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{path} is no accuracy file: {exc}") from exc


def _rounded(shares: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(share, SHARES_DECIMALS) for share in shares)


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**53  # larger ones may not fit a float
    return isinstance(value, float) and math.isfinite(value)
