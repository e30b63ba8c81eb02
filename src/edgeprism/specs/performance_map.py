"""The performance map: what was measured of a model on a cluster, and the costs fitted to it, as one JSON file.

It belongs to one model (by the hash of its weights), one dtype and one cluster, and says so; a file that was cut off or
edited is refused, by a hash over its content. The raw measurements stay in it: costs can be fitted anew, and plots are
drawn from the file alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from edgeprism.errors import InputError
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What a device is. Where any of it changes, what was measured no longer holds."""

    name: str
    """As its cluster calls it."""
    hardware: str
    """Such as "aarch64, Cortex-A76, 4 cores, 2400 MHz"."""
    num_threads: int
    computes_on: str = ""
    """"cpu" or "cuda"."""
    power_mode: str = ""
    versions: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartMeasured:
    """One device's part of a request: medians of seconds of its own thread, as a trace gives them, and bytes."""

    device: int
    compute_s: float
    codec_s: float
    staging_s: float
    wire_s: float
    wait_s: float
    bytes_sent: int
    bytes_received: int
    joules: float | None = None
    """Over idle; None where nothing could be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMeasured:
    """A request that was run some times. ``plan`` as `Plan.to_json` writes it."""

    plan: Plan
    batch: int
    num_tokens: int
    total_s: tuple[float, ...]
    """Of each repeat."""
    parts: tuple[PartMeasured, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMeasured:
    """The coordinator's link with ``device``. Rates are of what a program gets, behind encryption and TCP."""

    device: int
    round_trip_s: float
    jitter_s: float
    to_bytes_per_s: float
    from_bytes_per_s: float
    both_bytes_per_s: float
    """In either direction, while the other is used as well: less than alone where the medium is shared."""
    together_bytes_per_s: float | None = None
    """To the device, while all others are sent to as well; None where there are no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingMeasured:
    """A copy between the accelerator of ``device`` and its host; the median of some. ``direction``: "to device" or "to
    host"."""

    device: int
    direction: str
    is_pinned: bool
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCosts:
    """Seconds that a device's work takes: sums of `DeviceWork` features, each times one of these."""

    compute: tuple[float, ...]
    """Empty where nothing was measured."""
    wire: tuple[float, ...]
    codecs: Mapping[str, tuple[float, ...]]
    """By the codec's name. A codec that was not measured is not here, and not used."""
    staging: tuple[float, float] = (0.0, 0.0)
    """Seconds of a copy between accelerator and host, and seconds a megabyte of it."""
    idle_w: float = 0.0
    busy_w: float = 0.0
    """More than idle, while it computes."""
    joules_per_megabyte: float = 0.0
    energy_source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCosts:
    """``latency_s`` is one way."""

    device: int
    latency_s: float
    bytes_per_s: float
    both_factor: float = 1.0
    """Of the rate, while both directions are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All that predictions are made from. Devices in the cluster's order; links from device 1 on."""

    devices: tuple[DeviceCosts, ...]
    links: tuple[LinkCosts, ...]

    def __post_init__(self) -> None:
        if len(self.links) != len(self.devices) - 1:
            raise InputError(f"costs of {len(self.devices)} devices and {len(self.links)} links do not fit together")

    @property
    def measured(self) -> tuple[int, ...]:
        """The devices that are known: one that could not be reached has no costs, and is not used."""
        return tuple(index for index, device in enumerate(self.devices) if device.compute)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceMap:
    """See the module. InputError on a bad value."""

    fingerprint: str
    """sha256 of the model, in hex: `models.manifest.fingerprint`."""
    model: ModelSpec
    dtype: str
    cluster: str
    """What tells this cluster from others, in hex."""
    devices: tuple[DeviceFacts, ...]
    requests: tuple[RequestMeasured, ...]
    links: tuple[LinkMeasured, ...]
    costs: Costs
    skipped: tuple[str, ...] = ()
    """What was not measured, and why."""
    is_complete: bool = True
    """Whether the sweep came to its end."""
    staging: tuple[StagingMeasured, ...] = ()
    """Of the devices that have an accelerator."""
    calibrations: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the tables of the codecs that have some, by the codec's name."""

    def __post_init__(self) -> None:
        if not self.devices or len(self.devices) != len(self.costs.devices):
            raise InputError(f"a map of {len(self.devices)} devices with costs of {len(self.costs.devices)}")

    @property
    def codecs(self) -> tuple[str, ...]:
        """Those whose time was measured on every device."""
        first, *others = (self.costs.devices[index] for index in self.costs.measured)
        return tuple(codec for codec in first.codecs if all(codec in device.codecs for device in others))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that ``from_json`` reads back, with a hash over them."""
        document = {"schema_version": SCHEMA_VERSION, **_plain(self)}
        return {**document, "sha256": _digest(document)}

    @classmethod
    def from_json(cls, document: object) -> PerformanceMap:
        """Reads what ``to_json`` wrote; InputError says what is wrong."""
        if not isinstance(document, Mapping):
            raise InputError(f"a performance map is a JSON object, not {type(document).__name__}")
        version = document.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"performance map with schema_version {version!r}; this edgeprism reads {SCHEMA_VERSION}")
        content = {name: value for name, value in document.items() if name != "sha256"}
        if document.get("sha256") != _digest(content):
            raise InputError("its content is not what was written: it was edited or damaged")
        del content["schema_version"]
        made = _made(cls, content, "map")
        assert isinstance(made, cls)
        return made

    @classmethod
    def read(cls, path: Path) -> PerformanceMap:
        """The map in a file. InputError names the file, what is wrong, and what to do."""
        what_to_do = "run edgeprism profile again"
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except OSError as exc:
            raise InputError(f"{path} cannot be read: {exc.strerror or exc}; {what_to_do}") from exc
        except InputError as exc:
            raise InputError(f"{path} cannot be used: {exc}; {what_to_do}") from exc
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{path} is no performance map, or cut off: {exc}; {what_to_do}") from exc

    def misfit(self, *, fingerprint: str, dtype: str, cluster: str, devices: Mapping[int, DeviceFacts]) -> str:
        """How a model on a cluster differs from what was measured; empty where the map fits. ``devices``: those that
        are known now."""
        if fingerprint != self.fingerprint:
            return f"it was measured with another model, or other weights ({self.model.architecture})"
        if dtype != self.dtype:
            return f"it was measured in {self.dtype}, and the model runs in {dtype}"
        if cluster != self.cluster:
            return f"it was measured on another cluster ({', '.join(device.name for device in self.devices)})"
        for index, now in devices.items():
            then = self.devices[index]
            if index not in self.costs.measured:
                continue
            if not now.computes_on:  # it has no model, and is not used
                now = replace(now, computes_on=then.computes_on)
            for name in ("hardware", "computes_on", "num_threads", "power_mode"):
                if getattr(now, name) != getattr(then, name):
                    what = name.replace("_", " ")
                    return f"{what} of {then.name} was {getattr(then, name)!r}, and is {getattr(now, name)!r}"
        return ""


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """As plain JSON values; a dataclass that has a form of its own gives that."""
    if isinstance(value, Plan | ModelSpec):
        return value.to_json()
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _made(kind: Any, value: Any, where: str) -> Any:
    """The value of a type that ``_plain`` made plain; InputError says where it is something else."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Plan, ModelSpec):
        return kind.from_json(_object(value, where))
    if is_dataclass(kind):
        return _dataclass(kind, _object(value, where), where)
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where} must be a list, not {type(value).__name__}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise InputError(f"{where} has {len(value)} entries, and needs {len(kinds)}")
        return tuple(_made(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is not None and issubclass(origin if isinstance(origin, type) else object, Mapping):
        return {key: _made(arguments[1], item, f"{where}.{key}") for key, item in _object(value, where).items()}
    if origin in (Union, types.UnionType):
        return None if value is None else _made(arguments[0], value, where)
    return _scalar(kind, value, where)


def _dataclass(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    names = {one.name for one in fields(kind)}
    if wrong := sorted(names ^ set(value)):
        raise InputError(f"{where} has missing or unknown fields: {', '.join(map(str, wrong))}")
    hints = get_type_hints(kind)
    return kind(**{name: _made(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a JSON object, not {type(value).__name__}")
    return value


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{where} must be a number, not {value!r}")
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where} must be {kind.__name__}, not {value!r}")
    return value
