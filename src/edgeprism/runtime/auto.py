"""What plan `auto` needs before the first request: a performance map that fits, and what codecs cost."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from edgeprism.codecs.calibration import Calibration
from edgeprism.errors import EdgeprismError, InputError, PeerError
from edgeprism.models.load import directory_of
from edgeprism.models.manifest import fingerprint
from edgeprism.policy.points import points_lost
from edgeprism.policy.table import POLICIES
from edgeprism.runtime.adaptive import Adaptive
from edgeprism.runtime.cache import cache_root
from edgeprism.runtime.calibrations import find
from edgeprism.runtime.cluster import Cluster
from edgeprism.runtime.link_probe import ask
from edgeprism.runtime.maps import facts_of, has_any, place_of
from edgeprism.runtime.probe import facts
from edgeprism.specs.accuracy import AccuracyFile
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.performance_map import DeviceFacts, PerformanceMap
from edgeprism.wire.transport import Transport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoSettings:
    """How plan `auto` chooses. ``max_accuracy_drop``: points that a lossy codec may cost; None allows exact ones only.
    ``performance_map``, ``accuracy_file``: those of the cache by default. ``policy``: "model" predicts every plan,
    "table" looks up the best of one device and one codec by batch and bandwidth, as the published system does."""

    objective: str = "latency"
    max_accuracy_drop: float | None = None
    performance_map: Path | None = None
    accuracy_file: Path | None = None
    policy: str = "model"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise InputError(f"unknown policy {self.policy!r}; use one of {', '.join(POLICIES)}")


class NoMap(EdgeprismError):
    """There is no performance map that `auto` could use; the text says why, and what to run."""


class AutoPlans:
    """What chooses for an engine, one for each of the settings that it was used with: they learn apart."""

    def __init__(self, model: str | PreTrainedModel, cluster: Cluster, dtype: str | None) -> None:
        self._model, self._cluster = model, cluster
        self._dtype = None if dtype is None else dtype.removeprefix("torch.")
        self._settings = AutoSettings()
        self._maps: dict[Path | None, PerformanceMap | None] = {}
        self._adaptives: dict[AutoSettings, Adaptive | None] = {}

    def tables(self, settings: AutoSettings) -> dict[str, Calibration]:
        """Those of the codecs that `auto` may come to use, as far as they are here: devices get them with the model."""
        self._settings = settings
        found = self._map(settings)
        return {} if found is None else tables_for(self._model, found, settings)

    def adaptive(
        self, settings: AutoSettings | None, tables: Mapping[str, Calibration], computes_on: str
    ) -> Adaptive | None:
        """For the thread that owns the transport; None, after a warning, where there is no map. InputError where one
        was named that does not fit."""
        self._settings = settings = settings or self._settings
        if settings in self._adaptives:
            return self._adaptives[settings]
        found = self._map(settings)
        if found is None:
            return None
        try:
            self._adaptives[settings] = make_adaptive(
                self._cluster.transport, found, tables, settings, computes_on
            )  # fmt: skip
        except NoMap as exc:
            if settings.performance_map is not None:
                raise InputError(str(exc)) from exc
            self._adaptives[settings] = None  # said once
            _warn(exc)
        return self._adaptives[settings]

    def _map(self, settings: AutoSettings) -> PerformanceMap | None:
        if self._cluster.num_devices == 1:
            return None
        place = settings.performance_map
        if place not in self._maps:
            try:
                self._maps[place] = find_map(self._model, self._cluster, self._dtype, settings)
            except NoMap as exc:
                self._maps[place] = None
                _warn(exc)
        return self._maps[place]


def _warn(exc: NoMap) -> None:
    warnings.warn(f"plan auto runs on one device: {exc}", stacklevel=5)


def find_map(
    model: str | PreTrainedModel, cluster: Cluster, dtype: str | None, settings: AutoSettings
) -> PerformanceMap:
    """The map of a model on a cluster. NoMap where there is none; InputError where one was named and cannot be used."""
    name = model if isinstance(model, str) else "MODEL"
    command = f"run: edgeprism profile {name} {cluster.option}"
    if not isinstance(model, str):
        raise NoMap(f"a model that was given loaded has no performance map; give its directory, and {command}")
    if settings.performance_map is None and not has_any():
        raise NoMap(f"no performance map was ever made here; {command}")
    directory = directory_of(model)
    identity, dtype = fingerprint(directory), dtype or ModelSpec.from_directory(directory).dtype
    path = settings.performance_map or place_of(identity, cluster.key, dtype)
    if settings.performance_map is None and not path.exists():
        raise NoMap(f"there is no performance map of this model in {dtype} on these devices; {command}")
    try:
        found = PerformanceMap.read(path)
        check_fit(found, fingerprint=identity, dtype=dtype, cluster=cluster.key, devices={}, path=path)
    except InputError as exc:
        if settings.performance_map is not None:
            raise InputError(f"{exc}; to make one, {command}") from exc
        raise NoMap(f"{exc}; {command}") from exc
    return found


def check_fit(
    found: PerformanceMap,
    *,
    fingerprint: str,
    dtype: str,
    cluster: str,
    devices: Mapping[int, DeviceFacts],
    path: Path | None = None,
) -> None:
    """InputError says how the map differs from what is here."""
    misfit = found.misfit(fingerprint=fingerprint, dtype=dtype, cluster=cluster, devices=devices)
    if misfit:
        raise InputError(f"the performance map {'' if path is None else f'{path} '}does not fit: {misfit}")


def tables_for(model: str | PreTrainedModel, found: PerformanceMap, settings: AutoSettings) -> dict[str, Calibration]:
    """The tables of the codecs that `auto` may come to use, as far as they are here."""
    tables: dict[str, Calibration] = {}
    if settings.max_accuracy_drop is None:
        return tables
    for name in found.codecs:
        codec = CodecSpec.parse(name)
        if codec.needs_calibration:
            try:
                tables |= find(model, [codec])
            except InputError as exc:
                log.warning("codec %s is not used: %s", name, exc)
    return tables


def make_adaptive(
    transport: Transport,
    found: PerformanceMap,
    tables: Mapping[str, Calibration],
    settings: AutoSettings,
    computes_on: str,
) -> Adaptive:
    """For the thread that owns the transport; ``computes_on``: its model's hardware. NoMap where a device is not what
    was measured."""
    devices = {0: facts_of(found.devices[0].name, facts(computes_on))}
    for device in sorted(transport.connected()):
        try:
            devices[device] = facts_of(found.devices[device].name, ask(transport, device, "facts"))
        except PeerError as exc:
            log.info("device %d does not say what it is: %s", device, exc)
    try:
        check_fit(
            found, fingerprint=found.fingerprint, dtype=found.dtype, cluster=found.cluster, devices=devices
        )  # fmt: skip
    except InputError as exc:
        raise NoMap(f"{exc}; run: edgeprism profile --update") from exc
    accuracy = AccuracyFile.read(settings.accuracy_file or cache_root() / "accuracy.json")
    policy = POLICIES[settings.policy](
        found,
        points_lost=points_lost(accuracy, found, {name: one.digest for name, one in tables.items()}),
        objective=settings.objective,
        max_accuracy_drop=settings.max_accuracy_drop,
    )
    return Adaptive(transport, found, policy)
