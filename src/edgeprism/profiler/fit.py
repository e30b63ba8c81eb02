"""From measured requests to costs: for each device, seconds a unit of each kind of work that are never negative.

Non-negative least squares on relative errors, over all requests that a device took part in, whatever the plan: a matrix
product takes as long under each.
Points that are far off are counted less (iteratively, towards least absolute errors): machines stall now and then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from edgeprism.errors import InputError
from edgeprism.policy.network import Network
from edgeprism.policy.predict import predict
from edgeprism.policy.work import LINEAR_FEATURES, DeviceWork, work_of
from edgeprism.specs.model import ModelSpec, element_bytes_of
from edgeprism.specs.performance_map import (
    Costs,
    DeviceCosts,
    LinkCosts,
    LinkMeasured,
    PartMeasured,
    RequestMeasured,
)

FASTEST_MEDIUM_BYTES_PER_S = 1.6e8
NUM_WEIGHINGS = 6
USUAL_ERROR = 0.03  # errors below it count in full
LIKE_WEIGHT = 0.05
"""Of the wish that a multiply-accumulate costs the same with more rows: it decides only where nothing was measured."""
NO_LINK_BYTES_PER_S = 1e3  # of a link that was not measured; nothing is sent over it
MIN_S = 5e-4  # relative errors of shorter times mean nothing

Array = NDArray[np.float64]
Power = tuple[float, float, float, str]
"""Watts while idle, watts more while it computes, joules a megabyte sent, and where that is from."""
NO_POWER: Power = (0.0, 0.0, 0.0, "")


def fit(
    model: ModelSpec,
    dtype: str,
    num_devices: int,
    requests: Sequence[RequestMeasured],
    links: Sequence[LinkMeasured],
    powers: Sequence[Power] = (),
) -> Costs:
    """Costs of every device and link; a device that took part in nothing has none. InputError where none did."""
    element_bytes = element_bytes_of(dtype)
    pairs: list[list[tuple[DeviceWork, PartMeasured, str]]] = [[] for _ in range(num_devices)]
    for request in requests:
        works = work_of(
            model, request.plan, batch=request.batch, num_tokens=request.num_tokens, element_bytes=element_bytes
        )
        for part in request.parts:
            if works[part.device].takes_part:
                pairs[part.device].append((works[part.device], part, str(request.plan.codec)))
    if not pairs[0]:
        raise InputError("nothing was measured on device 0, without which nothing can be predicted; give it more time")
    given = [*powers, *[NO_POWER] * (num_devices - len(powers))]
    devices = tuple(_device(measured, power) for measured, power in zip(pairs, given, strict=True))
    by_device = {link.device: link_costs(link) for link in links}
    no_link = partial(LinkCosts, latency_s=0.0, bytes_per_s=NO_LINK_BYTES_PER_S)
    others = range(1, num_devices)
    return Costs(
        devices=devices, links=tuple(by_device.get(device) or no_link(device=device) for device in others)
    )  # fmt: skip


def errors(costs: Costs, model: ModelSpec, dtype: str, requests: Iterable[RequestMeasured]) -> list[float]:
    """Of each request, predicted over measured time less 1."""
    element_bytes, network = element_bytes_of(dtype), Network.measured(costs)
    return [
        predict(
            costs, model, one.plan, batch=one.batch, num_tokens=one.num_tokens, element_bytes=element_bytes,
            network=network,
        ).total_s / median(one.total_s) - 1
        for one in requests
    ]  # fmt: skip


def _device(measured: Sequence[tuple[DeviceWork, PartMeasured, str]], power: Power) -> DeviceCosts:
    codecs: dict[str, tuple[float, ...]] = {}
    for name in sorted({name for work, _, name in measured if work.num_payloads}):
        rows = [(work.codec_features(), part.codec_s) for work, part, codec in measured if codec == name]
        rows = [(features, seconds) for features, seconds in rows if features[0]]
        codecs[name] = _solve(rows)
    idle_w, busy_w, joules_per_megabyte, source = power
    return DeviceCosts(
        compute=_solve(
            [(work.compute_features(), part.compute_s) for work, part, _ in measured], alike=LINEAR_FEATURES
        ),
        wire=_solve([(work.wire_features(), part.wire_s) for work, part, _ in measured if part.bytes_sent])
        or (0.0, 0.0),
        codecs=codecs,
        staging=_staging(measured),
        idle_w=idle_w,
        busy_w=busy_w,
        joules_per_megabyte=joules_per_megabyte,
        energy_source=source,
    )


def _staging(measured: Sequence[tuple[DeviceWork, PartMeasured, str]]) -> tuple[float, float]:
    rows = [(work.wire_features(), part.staging_s) for work, part, _ in measured if part.staging_s > 0]
    fixed_s, a_megabyte_s = _solve(rows) or (0.0, 0.0)
    return fixed_s, a_megabyte_s


def _solve(rows: Sequence[tuple[Sequence[float], float]], *, alike: range = range(0)) -> tuple[float, ...]:
    """Costs that are not negative, with the least relative errors; empty without rows. Features ``alike`` are of one
    kind: one of which little was seen costs what its neighbours do."""
    if not rows:
        return ()
    features = np.array([one for one, _ in rows], dtype=np.float64)
    scale = np.maximum(np.abs(features).max(axis=0), 1e-30)
    scale[alike] = scale[alike].max(initial=0.0)
    seconds = np.array([value for _, value in rows])
    usual = np.maximum(seconds, MIN_S)
    relative, target = features / scale / usual[:, None], seconds / usual
    likeness = _likeness(features.shape[1], alike) * LIKE_WEIGHT * relative[:, alike].sum(axis=1).mean()
    weights = np.ones(len(rows))
    for _ in range(NUM_WEIGHINGS):
        solution = _non_negative(
            np.concatenate([relative * weights[:, None], likeness]),
            np.concatenate([target * weights, np.zeros(len(likeness))]),
        )
        weights = np.sqrt(USUAL_ERROR / np.maximum(np.abs(relative @ solution - target), USUAL_ERROR))
    return tuple(float(value) for value in solution / scale)


def _likeness(num_features: int, alike: range) -> Array:
    """A row for each two neighbours among features: by how much the later costs more."""
    rows = np.zeros((max(0, len(alike) - 1), num_features))
    for row, feature in zip(rows, alike, strict=False):
        row[feature], row[feature + 1] = -1.0, 1.0
    return rows


def _non_negative(matrix: Array, target: Array) -> Array:
    """The x that is nowhere negative with the least |matrix x - target|: the best of the least-squares solutions over
    all sets of unknowns, the others 0, that happen to be nowhere negative. There are at most seven unknowns."""
    gram, moments = matrix.T @ matrix, matrix.T @ target
    num = matrix.shape[1]
    best, best_gain = np.zeros(num), 0.0
    for chosen in range(1, 2**num):
        used = [i for i in range(num) if chosen >> i & 1]
        try:
            part = np.linalg.solve(gram[np.ix_(used, used)], moments[used])
        except np.linalg.LinAlgError:  # two of them say the same here: a smaller set does as well
            continue
        gain = float(moments[used] @ part)
        if gain > best_gain and (part >= 0).all():
            best, best_gain = np.zeros(num), gain
            best[used] = part
    return best


def link_costs(link: LinkMeasured, *, device: int | None = None) -> LinkCosts:
    """What predictions take a link for. ``device``: its number, where that is another one than was measured."""
    rate = min(link.to_bytes_per_s, link.from_bytes_per_s)
    # beyond it the processors that encrypt are the limit, not the medium; in requests that is a part of their work
    is_medium = rate < FASTEST_MEDIUM_BYTES_PER_S
    return LinkCosts(
        device=link.device if device is None else device,
        latency_s=link.round_trip_s / 2,
        bytes_per_s=rate,
        both_factor=min(1.0, link.both_bytes_per_s / rate) if is_medium else 1.0,
    )
