"""How long a pipeline may take until its next output, and how much may travel in it at once."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable
from typing import TypedDict

from edgeprism.errors import InputError
from edgeprism.models.model import Model
from edgeprism.runtime.membership import Membership
from edgeprism.runtime.messages import MAX_TIMEOUT_S
from edgeprism.runtime.micro_batch import Micro
from edgeprism.runtime.patience import ASSUMED_LINK_BYTES_PER_S, Patience
from edgeprism.specs.cost import TEXT_TOKEN_BYTES, whole_model_macs
from edgeprism.specs.plan import Plan, Stage
from edgeprism.strategies.pipeline.partition import cut_bytes
from edgeprism.wire.mailbox import MAX_KEPT_BYTES
from edgeprism.wire.transport import COORDINATOR

Stages = tuple[Stage, ...]


class _Work(TypedDict):
    compute_s: float
    num_bytes: int


class Lateness:
    """For the one who gives micro-batches to the first stage, and gets the outputs of the last."""

    def __init__(self, model: Model, members: Membership, patience: Patience) -> None:
        self._model, self._members, self._patience = model, members, patience
        self._last_done_s = 0.0
        self._seen: tuple[Hashable, float] = (None, math.inf)  # bytes a second of the last that was alike but for width

    def begin(self) -> None:
        """Of a stream: nothing was done yet."""
        self._last_done_s = 0.0

    def at_s(self, oldest: Micro, stages: Stages) -> float:
        """When the micro-batch that went in first is late, on time.monotonic's clock. What went in not long ago is not
        due yet, whatever was done since: a prompt behind tokens has all stages before it."""
        due_s = oldest.given_s
        if self._last_done_s > oldest.given_s:
            passes_s = self._patience.expected_s(_first_kind(oldest, stages), of=stages, **self._work(oldest, stages))
            due_s = max(self._last_done_s, oldest.given_s + min(passes_s, MAX_TIMEOUT_S))
        return due_s + self._timeout_s(oldest, stages, self._kind(oldest, stages))

    def until_output_s(self, micros: Iterable[Micro], stages: Stages) -> float:
        """How long whoever has one of these may wait for the others: as long as the first output may take."""
        return max(self._timeout_s(one, stages, _first_kind(one, stages)) for one in micros)

    def learn(self, micro: Micro, stages: Stages) -> None:
        """Its output is here."""
        now = time.monotonic()
        took_s = now - max(micro.given_s, self._last_done_s)
        if self._last_done_s <= micro.given_s:
            self._seen = _alike(micro, stages), self._num_bytes(micro, stages) / max(took_s, 1e-6)
        self._patience.learn(self._kind(micro, stages), took_s, of=stages)
        self._last_done_s = now

    def learn_timeout(self, oldest: Micro, stages: Stages) -> None:
        """It may simply take longer by now; and so may what a worker waits for."""
        for kind in {self._kind(oldest, stages), _first_kind(oldest, stages)}:
            self._patience.learn_timeout(kind)

    def check_size(self, plan: Plan, batch: int, num_tokens: int, *, is_text: bool = False) -> None:
        """InputError where what a queue holds of a cut is more than a device keeps of what it has not asked for.
        ``is_text``: of one that is continued, whose last stage gives a token a sample."""
        cuts = self._cut_bytes(plan, batch, num_tokens, is_text=is_text)
        largest = max([cuts[stage.start] for stage in plan.stages[1:]] + [cuts[-1]])
        if 3 * largest > MAX_KEPT_BYTES:
            raise InputError(
                f"a micro-batch of {batch} samples hands on {largest / 1e6:.0f} MB at once, and "
                f"{MAX_KEPT_BYTES / 3e6:.0f} MB can be; use a smaller micro-batch, or cut elsewhere"
            )

    def _timeout_s(self, micro: Micro, stages: Stages, kind: Hashable) -> float:
        """How long until the next output."""
        timeout_s = self._patience.timeout_s(kind, of=stages, **self._work(micro, stages))
        return min(timeout_s, MAX_TIMEOUT_S)

    def _work(self, micro: Micro, stages: Stages) -> _Work:
        """As far as it can be counted."""
        speeds = [self._members.macs_per_s.get(stage.device, 0.0) for stage in stages]
        slowest = min((speed for speed in speeds if speed), default=self._members.macs_per_s[COORDINATOR])
        macs = micro.batch * whole_model_macs(self._model.spec, micro.num_tokens)
        num_bytes, (alike, bytes_per_s) = self._num_bytes(micro, stages), self._seen
        if alike == _alike(micro, stages):  # wider rows over the same links take longer by as much
            num_bytes = int(num_bytes * max(1.0, ASSUMED_LINK_BYTES_PER_S / bytes_per_s))
        return {"compute_s": macs / slowest, "num_bytes": num_bytes}

    def _num_bytes(self, micro: Micro, stages: Stages) -> int:
        """That travel from stage to stage, and home."""
        cuts = self._cut_bytes(
            micro.request.plan, micro.batch, micro.num_tokens, is_text=micro.text is not None
        )  # fmt: skip
        return sum(cuts[stage.start] for stage in stages) + cuts[-1]

    def _kind(self, micro: Micro, stages: Stages) -> Hashable:
        """What takes alike: the first output takes as long as all stages together, those behind it as the slowest."""
        if self._last_done_s > micro.given_s:
            return ("in line", *_first_kind(micro, stages))
        return _first_kind(micro, stages)

    def _cut_bytes(self, plan: Plan, batch: int, num_tokens: int, *, is_text: bool) -> tuple[int, ...]:
        cuts = cut_bytes(
            self._model.spec, plan.codec, num_tokens=num_tokens, batch=batch, element_bytes=self._model.dtype.itemsize
        )
        return (*cuts[:-1], batch * TEXT_TOKEN_BYTES) if is_text else cuts


def _first_kind(micro: Micro, stages: Stages) -> tuple[Hashable, ...]:
    return (*_alike(micro, stages), micro.request.plan.codecs)


def _alike(micro: Micro, stages: Stages) -> tuple[Hashable, ...]:
    """What computes alike; what travels may be wider or narrower."""
    return ("pipeline", stages, micro.batch, micro.num_tokens, micro.text is not None)
