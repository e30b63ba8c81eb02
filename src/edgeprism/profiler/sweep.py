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


def points(
    model: ModelSpec,
    num_devices: int,
    codecs: Sequence[CodecSpec],
    *,
    batches: Sequence[int] = BATCHES,
    lengths: Sequence[int] | None = None,
    max_passes: int = MAX_PASSES,
) -> list[Point]:
    """The sweep, small requests first; those beyond ``max_passes`` are left out, the largest batches first."""
    if lengths is None:
        lengths = _lengths(model)
    chosen: list[Point] = []
    num_passes = 0
    for point in _by_worth(model, num_devices, codecs, batches, lengths):
        if num_passes + point.num_passes <= max_passes:
            chosen.append(point)
            num_passes += point.num_passes
    return sorted(chosen, key=lambda point: point.tokens)


def _lengths(model: ModelSpec) -> tuple[int, ...]:
    if model.fixed_tokens is not None:
        return (model.fixed_tokens,)
    return tuple(dict.fromkeys(min(length, model.max_tokens) for length in LENGTHS))


def _by_worth(
    model: ModelSpec, num_devices: int, codecs: Sequence[CodecSpec], batches: Sequence[int], lengths: Sequence[int]
) -> Iterable[Point]:
    """Every point once, those that tell most first."""
    usual, *others = lengths
    exact = model.narrower(EXACT)
    lossy = [codec for codec in codecs if codec != exact]
    seen: set[tuple[object, ...]] = set()
    for plan, batch, length in (
        *((Plan.local(), batch, usual) for batch in batches),
        *_shared(num_devices, [exact], [b for b in SHARED_BATCHES if b in batches] or batches[:1], usual),
        *((_alone(device, num_devices), batch, usual) for device in range(1, num_devices)
          for batch in OTHERS_BATCHES if batch in batches),
        *_shared(num_devices, lossy, [b for b in CODEC_BATCHES if b in batches] or batches[:1], usual),
        *((plan, batch, usual) for plan in _uneven(num_devices, exact) for batch in (1, 4) if batch in batches),
        *((Plan.even("replica", num_devices), batch, usual) for batch in (8,) if num_devices > 1 and batch in batches),
        *((Plan.local(), batch, other) for other in others for batch in (1, 8) if batch in batches),
        *(shared for other in others for shared in _shared(num_devices, [exact, *lossy], [1], other)),
    ):  # fmt: skip
        key = plan, batch, length
        if key not in seen and _can_be(plan, length):
            seen.add(key)
            yield Point(plan=plan, batch=batch, num_tokens=length, num_repeats=_num_repeats(batch))


def _num_repeats(batch: int) -> int:
    """Short requests jitter more, and cost less to repeat."""
    return 7 if batch == 1 else 5 if batch <= 4 else 3


def _shared(
    num_devices: int, codecs: Sequence[CodecSpec], batches: Sequence[int], length: int
) -> list[tuple[Plan, int, int]]:
    if num_devices < 2:
        return []
    return [(Plan.even("sequence", num_devices, codec), batch, length) for codec in codecs for batch in batches]


def _alone(device: int, num_devices: int) -> Plan:
    return Plan(strategy="replica", shares=tuple(float(one == device) for one in range(num_devices)))


def _uneven(num_devices: int, codec: CodecSpec) -> list[Plan]:
    """Each device once with most of the tokens."""
    if num_devices < 2:
        return []
    rest = (1 - UNEVEN) / (num_devices - 1)
    return [
        Plan(
            strategy="sequence",
            shares=tuple(UNEVEN if one == device else rest for one in range(num_devices)),
            codec=codec,
        )
        for device in range(num_devices)
    ]


def _can_be(plan: Plan, num_tokens: int) -> bool:
    if plan.strategy != "sequence":
        return True
    try:
        for start, stop in token_bounds(num_tokens, plan.shares):
            plan.codec.num_rows(stop - start)
    except PlanError:
        return False
    return True
