"""Which requests are run to learn what a model costs on a cluster: about 200 forward passes, the telling ones first.

One device alone at every batch; every other device alone at some; tokens shared evenly and unevenly, as they are and
under each codec. What a matrix product of so many rows takes, what a payload of so many values takes, and what a
message takes can then be told apart (see ``fit``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgeprism.errors import PlanError
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.sequence.partition import token_bounds

MAX_PASSES = 200
BATCHES = (1, 2, 4, 8, 16, 32)
OTHERS_BATCHES = (1, 4, 16)
MANY_DEVICES, MANY_OTHERS_BATCHES = 4, (1, 8)
"""From so many devices on each of the others is measured at fewer batches: codecs must fit in, too."""
SHARED_BATCHES = (1, 4, 16)
CODEC_BATCHES = (1, 8)
UNEVEN = 0.7
LENGTHS = (128, 32, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A request to run ``num_repeats`` times, after one that is not counted."""

    plan: Plan
    batch: int
    num_tokens: int
    num_repeats: int = 3

    @property
    def num_passes(self) -> int:
        """Forward passes that it takes."""
        return self.num_repeats + 1

    @property
    def tokens(self) -> int:
        """Of all samples: how long it takes, roughly."""
        return self.batch * self.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """``points`` to measure, small requests first; ``left_out``: those that were too many, the least telling ones."""

    points: tuple[Point, ...]
    left_out: tuple[Point, ...] = ()

    @property
    def num_passes(self) -> int:
        """Forward passes of them all."""
        return sum(point.num_passes for point in self.points)


def sweep(
    model: ModelSpec,
    devices: Sequence[int],
    num_devices: int,
    codecs: Sequence[CodecSpec],
    *,
    batches: Sequence[int] = BATCHES,
    lengths: Sequence[int] | None = None,
    max_passes: int = MAX_PASSES,
) -> Sweep:
    """For those of ``num_devices`` devices that can be reached, the coordinator first; ``max_passes`` at most."""
    if lengths is None:
        lengths = _lengths(model)
    chosen, left_out = list[Point](), list[Point]()
    num_passes = 0
    for point in _by_worth(model, _Group(devices, num_devices), codecs, batches, lengths):
        if num_passes + point.num_passes <= max_passes:
            chosen.append(point)
            num_passes += point.num_passes
        else:
            left_out.append(point)
    return Sweep(points=tuple(sorted(chosen, key=lambda point: point.tokens)), left_out=tuple(left_out))


class _Group:
    """Devices that are measured, and the plans over them."""

    def __init__(self, devices: Sequence[int], num_devices: int) -> None:
        self.devices, self._num_devices = tuple(devices), num_devices

    @property
    def others(self) -> tuple[int, ...]:
        return self.devices[1:]

    def alone(self, device: int) -> Plan:
        return Plan(strategy="replica", shares=self._shares({device: 1.0}))

    def even(self, strategy: str, codec: CodecSpec = EXACT) -> Plan:
        return Plan.among(strategy, self.devices, self._num_devices, codec)

    def uneven(self, codec: CodecSpec) -> list[Plan]:
        """Each device once with most of the tokens."""
        if not self.others:
            return []
        rest = dict.fromkeys(self.devices, (1 - UNEVEN) / len(self.others))
        return [
            Plan(strategy="sequence", shares=self._shares({**rest, device: UNEVEN}), codec=codec)
            for device in self.devices
        ]

    def shared(
        self, codecs: Sequence[CodecSpec], batches: Sequence[int], length: int
    ) -> list[tuple[Plan, int, int]]:  # fmt: skip
        if not self.others:
            return []
        return [(self.even("sequence", codec), batch, length) for codec in codecs for batch in batches]

    def _shares(self, shares: dict[int, float]) -> tuple[float, ...]:
        return tuple(shares.get(device, 0.0) for device in range(self._num_devices))


def _lengths(model: ModelSpec) -> tuple[int, ...]:
    if model.fixed_tokens is not None:
        return (model.fixed_tokens,)
    return tuple(dict.fromkeys(min(length, model.max_tokens) for length in LENGTHS))


def _by_worth(
    model: ModelSpec, group: _Group, codecs: Sequence[CodecSpec], batches: Sequence[int], lengths: Sequence[int]
) -> Iterable[Point]:
    """Every point once, those that tell most first."""
    usual, *others = lengths
    exact = model.narrower(EXACT)
    lossy = [codec for codec in codecs if codec != exact]
    others_batches = MANY_OTHERS_BATCHES if len(group.devices) >= MANY_DEVICES else OTHERS_BATCHES
    seen: set[tuple[object, ...]] = set()
    for plan, batch, length in (
        *((Plan.local(), batch, usual) for batch in batches),
        *group.shared([exact], [b for b in SHARED_BATCHES if b in batches] or batches[:1], usual),
        *((group.alone(device), batch, usual) for device in group.others
          for batch in others_batches if batch in batches),
        *group.shared(lossy, [b for b in CODEC_BATCHES if b in batches] or batches[:1], usual),
        *((plan, batch, usual) for plan in group.uneven(exact) for batch in (1, 4) if batch in batches),
        *((group.even("replica"), batch, usual) for batch in (8,) if group.others and batch in batches),
        *((Plan.local(), batch, other) for other in others for batch in (1, 8) if batch in batches),
        *(shared for other in others for shared in group.shared([exact, *lossy], [1], other)),
    ):  # fmt: skip
        key = plan, batch, length
        if key not in seen and _can_be(plan, length):
            seen.add(key)
            yield Point(plan=plan, batch=batch, num_tokens=length, num_repeats=_num_repeats(batch))


def _num_repeats(batch: int) -> int:
    """Short requests jitter more, and cost less to repeat."""
    return 7 if batch == 1 else 5 if batch <= 4 else 3


def _can_be(plan: Plan, num_tokens: int) -> bool:
    if plan.strategy != "sequence":
        return True
    try:
        for start, stop in token_bounds(num_tokens, plan.shares):
            plan.codec.num_rows(stop - start)
    except PlanError:
        return False
    return True
