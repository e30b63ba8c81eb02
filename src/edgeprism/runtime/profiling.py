"""Runs the sweep of a model on a cluster and makes its performance map: `edgeprism profile`.

Everything is measured by real requests through the runtime itself, one plan after the other; what each device did comes
from their traces. A point that runs out of memory skips the larger batches of its plan. A device that cannot be reached
is left out, one that fails later skips the points that need it; whatever ends the sweep, what was measured is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from edgeprism.errors import PeerError
from edgeprism.profiler.fit import NO_POWER, Power, fit
from edgeprism.profiler.sweep import Point, Sweep
from edgeprism.runtime.engine import Engine
from edgeprism.runtime.link_probe import ask, measure_link, measure_together
from edgeprism.runtime.maps import facts_of
from edgeprism.runtime.power import measure_powers
from edgeprism.runtime.probe import facts
from edgeprism.runtime.staging_probe import measure_staging
from edgeprism.runtime.trace import Trace
from edgeprism.specs.performance_map import (
    LinkMeasured,
    PartMeasured,
    PerformanceMap,
    RequestMeasured,
    StagingMeasured,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a map belongs to."""

    fingerprint: str
    cluster: str
    names: tuple[str, ...]


class Profiler:
    """One sweep. ``run`` may be ended by KeyboardInterrupt; ``result`` gives what there is."""

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        *,
        before: PerformanceMap | None = None,
        calibrations: dict[str, str] | None = None,
    ) -> None:
        self._engine, self._identity = engine, identity
        self._calibrations = calibrations or {}
        self._num_devices = len(identity.names)
        self._devices = [facts_of(name, {}) for name in identity.names]
        self._links: dict[int, LinkMeasured] = {}
        self._requests: list[RequestMeasured] = []
        self._powers: list[Power] = []
        self._staging: dict[int, list[StagingMeasured]] = {}
        if before is not None:
            self._devices, self._requests = list(before.devices), list(before.requests)
            self._links = {link.device: link for link in before.links}
            for one in before.staging:
                self._staging.setdefault(one.device, []).append(one)
            self._powers = [
                (one.idle_w, one.busy_w, one.joules_per_megabyte, one.energy_source) for one in before.costs.devices
            ]
        self._skipped: list[str] = []
        self._is_complete = self._has_news = False

    def look_around(self) -> tuple[int, ...]:
        """The devices and their links; those of them that can be measured."""
        engine = self._engine
        # on the thread that computes, with its own settings
        here = engine.on_device_thread(lambda _: facts(engine.computes_on))
        self._devices[0] = facts_of(self._identity.names[0], here)
        self._measure_staging(0)
        reached = [0]
        for device in range(1, self._num_devices):
            name = self._identity.names[device]
            try:
                found = self._engine.on_device_thread(partial(ask, device=device, what="facts"))
                self._links[device] = self._engine.on_device_thread(partial(measure_link, device=device))
            except PeerError as exc:
                self._skipped.append(f"all that needs {name}: {exc}")
                continue
            self._devices[device] = facts_of(name, found)
            self._measure_staging(device)
            reached.append(device)
        if len(reached) > 2:
            try:
                self._measure_together(reached[1:])
            except PeerError as exc:
                self._skipped.append(f"all links at once: {exc}")
        return tuple(reached)

    def _measure_together(self, devices: Sequence[int]) -> None:
        round_trips_s = {device: self._links[device].round_trip_s for device in devices}
        rates = self._engine.on_device_thread(partial(measure_together, round_trips_s=round_trips_s))
        for device, rate in rates.items():
            self._links[device] = replace(self._links[device], together_bytes_per_s=rate)

    @property
    def has_news(self) -> bool:
        """Whether there is anything to keep that was not known before."""
        return self._has_news

    def _measure_staging(self, device: int) -> None:
        """Of a device that has an accelerator. Where that fails the map is as good without."""
        self._staging.pop(device, None)
        computes_on = self._devices[device].computes_on
        if computes_on in ("", "cpu"):
            return
        try:
            if device == 0:
                copies = self._engine.on_device_thread(lambda _: measure_staging(computes_on))
            else:
                copies = self._engine.on_device_thread(partial(ask, device=device, what="staging"))["copies"]
            self._staging[device] = [StagingMeasured(device=device, **copy) for copy in copies]
        except (PeerError, KeyError, TypeError) as exc:
            self._skipped.append(f"staging of {self._identity.names[device]}: {exc}")

    def forget_changed(self, before: PerformanceMap) -> None:
        """Drops what was measured with a device that is not what it was. Links are measured anew in any case."""
        changed = {
            index
            for index, (now, then) in enumerate(zip(self._devices, before.devices, strict=True))
            if now != then
        }  # fmt: skip
        self._requests = [
            one for one in self._requests if not changed & {part.device for part in one.parts if part.compute_s}
        ]

    def run(self, sweep: Sweep, *, until_s: float, done: Callable[[int], object]) -> None:
        """Measures the points that are not measured yet; ``until_s`` in seconds of time.monotonic. ``done`` is told of
        each forward pass."""
        have = {(one.plan, one.batch, one.num_tokens) for one in self._requests}
        too_large: dict[object, int] = {}
        self._skipped += [f"{_what(point)}: more forward passes than one sweep makes" for point in sweep.left_out]
        for point in sweep.points:
            if (point.plan, point.batch, point.num_tokens) in have:
                done(point.num_passes)
                continue
            what = _what(point)
            limit = too_large.get(point.plan)
            if limit is not None and point.batch >= limit:
                self._skipped.append(f"{what}: batch {limit} needed more memory than there is")
            elif time.monotonic() > until_s:
                self._skipped.append(f"{what}: no time was left")
            else:
                try:
                    self._requests.append(self._measured(point, done))
                    self._has_news = True
                    continue
                except (MemoryError, RuntimeError) as exc:
                    if "memory" not in str(exc).lower() and not isinstance(exc, MemoryError):
                        raise
                    too_large[point.plan] = point.batch
                    self._skipped.append(f"{what}: {exc}")
                except PeerError as exc:
                    self._skipped.append(f"{what}: {exc}")
            done(point.num_passes)
        self._is_complete = not any("no time was left" in one for one in self._skipped)

    def measure_powers(self, num_tokens: int) -> None:
        """Watts of every device, idle and at work."""
        found = measure_powers(self._engine, self._num_devices, example(self._engine, 1, num_tokens))
        before = [*self._powers, *[NO_POWER] * (self._num_devices - len(self._powers))]
        # of a device that is away now, what was measured before stays
        self._powers = [now if now[0] + now[1] else then for now, then in zip(found, before, strict=True)]

    def result(self) -> PerformanceMap:
        """The map of what was measured. InputError where that is too little."""
        spec, dtype = self._engine.spec, self._engine.dtype
        links = tuple(self._links.values())
        costs = fit(spec, dtype, self._num_devices, self._requests, links, self._powers)
        return PerformanceMap(
            fingerprint=self._identity.fingerprint,
            model=spec,
            dtype=dtype,
            cluster=self._identity.cluster,
            devices=tuple(self._devices),
            requests=tuple(self._requests),
            links=links,
            costs=costs,
            skipped=tuple(self._skipped),
            is_complete=self._is_complete,
            staging=tuple(one for copies in self._staging.values() for one in copies),
            calibrations=self._calibrations,
        )

    def _measured(self, point: Point, done: Callable[[int], object]) -> RequestMeasured:
        self._engine.use(point.plan)
        inputs = example(self._engine, point.batch, point.num_tokens)
        traces: list[Trace] = []
        for repeat in range(point.num_passes):
            self._engine(**inputs)
            trace = self._engine.last_trace
            assert trace is not None
            if trace.failures or trace.left_out:
                raise _Disturbed("; ".join((*trace.failures, *trace.left_out)))
            if repeat:  # the first allocates, and starts threads
                traces.append(trace)
            done(1)
        return RequestMeasured(
            plan=point.plan,
            batch=point.batch,
            num_tokens=traces[0].num_tokens,
            total_s=tuple(trace.total_s for trace in traces),
            parts=tuple(_part(traces, index) for index in range(len(traces[0].devices))),
        )


def _what(point: Point) -> str:
    """A point, as people are told of it."""
    plan = point.plan
    used = [device for device, share in enumerate(plan.shares) if share]
    name = f"{plan.strategy} {plan.codec}" if plan.strategy == "sequence" else plan.strategy
    where = f" over {', '.join(map(str, used))}" if plan.num_devices > 1 else ""
    return f"{name}{where}, batch {point.batch}, {point.num_tokens} tokens"


class _Disturbed(PeerError):
    """A device failed, so what was measured is not what the plan takes."""


def example(engine: Engine, batch: int, num_tokens: int) -> dict[str, Any]:
    """Inputs of that size, with values as they come."""
    spec, generator = engine.spec, torch.Generator().manual_seed(batch)
    if not spec.is_vision:
        ids = torch.randint(0, spec.vocab_size, (batch, num_tokens), generator=generator)
        return {"input_ids": ids}
    height_px, width_px = _size_px(engine, num_tokens)
    eight_bits = torch.randint(0, 256, (batch, spec.num_channels, height_px, width_px), generator=generator)
    return {"pixel_values": (eight_bits / 255 - 0.5) / 0.5}


def _size_px(engine: Engine, num_tokens: int) -> tuple[int, int]:
    """Of a picture that becomes so many tokens: as near to a square as it goes."""
    spec = engine.spec
    if not spec.resizes_images:
        return engine.image_size
    num_patches = num_tokens - spec.special_tokens
    rows = max(count for count in range(1, int(num_patches**0.5) + 1) if num_patches % count == 0)
    return rows * spec.patch_size_px[0], num_patches // rows * spec.patch_size_px[1]


def _part(traces: Sequence[Trace], index: int) -> PartMeasured:
    parts = [trace.devices[index] for trace in traces]

    def middle(name: str) -> float:
        return float(median(getattr(part, name) for part in parts))

    return PartMeasured(
        device=parts[0].device,
        compute_s=middle("compute_s"),
        codec_s=middle("codec_s"),
        staging_s=middle("staging_s"),
        wire_s=middle("wire_s"),
        wait_s=middle("wait_s"),
        bytes_sent=int(middle("bytes_sent")),
        bytes_received=int(middle("bytes_received")),
    )
