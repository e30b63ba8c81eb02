"""What is under way in a pipeline: requests, and the micro-batches that they go in as."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from edgeprism.runtime.answers import Answer
from edgeprism.runtime.text import Text
from edgeprism.runtime.trace import DeviceTrace
from edgeprism.specs.plan import Plan, Stage

_SUMMED = tuple(one.name for one in fields(DeviceTrace) if one.name not in ("device", "work"))


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One request: what has come of its micro-batches, in their order."""

    answer: Answer | None
    """None for texts that are continued: their caller waits for them."""
    plan: Plan
    batch: int
    num_tokens: int
    left_out: tuple[str, ...]
    outputs: list[dict[str, Tensor] | None]
    asked: tuple[Stage, ...] = ()
    """The stages that the caller named, if any; those that ran are the plan's."""
    later: deque[Micro] = field(default_factory=deque)
    """Texts that begin when others have ended."""
    parts: dict[int, DeviceTrace] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    error: BaseException | None = None

    def note(self, parts: Sequence[DeviceTrace]) -> None:
        """A device's micro-batches add up; its work is the number of its pieces."""
        for part in parts:
            before = self.parts.get(part.device)
            if before is None:
                self.parts[part.device] = part
                continue
            summed = {name: getattr(before, name) + getattr(part, name) for name in _SUMMED}
            self.parts[part.device] = replace(before, work=max(before.work, part.work), **summed)


@dataclass(slots=True, kw_only=True, eq=False)
class Micro:
    """One micro-batch: the samples at ``index`` of its request. ``text``: where it is continued."""

    request: Request
    index: int
    inputs: dict[str, Any]
    batch: int
    num_tokens: int
    text: Text | None = None
    number: int | None = None
    given_s: float = 0.0
