"""The policy: of all plans that keep the accuracy budget, the one that is best for this request on this network.

Best is fastest, cheapest in energy, or most samples a second. Predictions come from the performance map, scaled by the
load of the devices and corrected by what requests under the same plan were seen to take. A plan in use is left only for
one that is clearly better. The decision says why: every candidate, its parts, and what was left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprism.errors import InputError
from edgeprism.policy.candidates import Candidates, scaled
from edgeprism.policy.network import Network
from edgeprism.policy.predict import Prediction
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.model import element_bytes_of
from edgeprism.specs.performance_map import PerformanceMap
from edgeprism.specs.plan import Plan

OBJECTIVES = ("latency", "throughput", "energy")

BETTER = 0.03
"""A plan in use is left for one whose prediction is better by so much."""
ELSEWHERE = 0.1
"""The same for another device to get everything, where only what was seen of this one's load speaks for that: nobody
sees the load of one that does nothing, and where a machine is slower for a while others may be, too."""
NEW_WEIGHT = 0.3  # of the newest request, against those before
MIN_CORRECTION, MAX_CORRECTION = 0.5, 4.0
HALF_LIFE_S = 30.0
"""What was seen of a plan that is not used fades: it may do better by now."""
SHORT_S = 5e-4  # latencies below it are one
MAX_KNOWN = 256  # decisions, plans in use, and sizes of requests of which something was seen
SAME = 0.08  # rates, loads and corrections that differ by less are one, for a decision that is kept

PointsLost = Callable[[CodecSpec, int], float | None]
"""What a codec costs in points among so many devices; None where it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan and what it is expected to take. ``score``: what is made small."""

    plan: Plan
    prediction: Prediction
    correction: float
    score: float

    @property
    def total_s(self) -> float:
        """Predicted and corrected."""
        return self.prediction.total_s * self.correction


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The first of ``candidates`` by score, but for hysteresis."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...]
    kept: bool
    """Whether another was better, but not by enough to leave the plan in use."""
    local: Candidate
    batch: int
    objective: str
    max_accuracy_drop: float | None

    @property
    def is_stream(self) -> bool:
        """Whether single samples are to run several at once, one on each device."""
        is_single = self.objective == "throughput" and self.chosen.plan.strategy == "replica" and self.batch == 1
        return is_single and sum(share > 0 for share in self.chosen.plan.shares) > 1

    @property
    def reason(self) -> str:
        """One line."""
        name, local = describe(self.chosen.plan), self.local
        if self.chosen.plan.strategy == "local":
            others = [one for one in self.candidates if one.plan.strategy != "local"]
            if not others:
                return "auto: local, since nothing else can be used"
            best = min(others, key=lambda one: one.score)
            why = "; that is too little to trouble other devices" if best.score < local.score else ""
            return f"auto: local; the next is {describe(best.plan)} at {best.score / local.score:.2f} of it{why}"
        return f"auto: {name}, predicted {self.chosen.score / local.score:.2f} of local ({_UNITS[self.objective]})"


_UNITS = {"latency": "time", "throughput": "time a sample in a stream", "energy": "joules"}


@dataclass(slots=True, kw_only=True)
class _Seen:
    ratio: float
    at_s: float

    def faded(self, now_s: float) -> float:
        return float(self.ratio ** (0.5 ** ((now_s - self.at_s) / HALF_LIFE_S)))


class Policy:
    """For one map. ``points_lost`` says what codecs cost; ``max_accuracy_drop`` in points, None: exact plans only."""

    def __init__(
        self,
        performance_map: PerformanceMap,
        *,
        points_lost: PointsLost,
        objective: str = "latency",
        max_accuracy_drop: float | None = None,
    ) -> None:
        if objective not in OBJECTIVES:
            raise InputError(f"unknown objective {objective!r}; use one of {', '.join(OBJECTIVES)}")
        if max_accuracy_drop is not None and not 0 <= max_accuracy_drop <= 100:
            raise InputError(f"the accuracy budget is 0 to 100 points, not {max_accuracy_drop:g}")
        costs = performance_map.costs
        unknown = [index for index in costs.measured if costs.devices[index].idle_w + costs.devices[index].busy_w == 0]
        if objective == "energy" and unknown:
            name = performance_map.devices[unknown[0]].name
            raise InputError(f"the performance map has no watts of {name}; run edgeprism profile --update")
        self._map, self._objective, self._budget = performance_map, objective, max_accuracy_drop
        self._element_bytes = element_bytes_of(performance_map.dtype)
        self._points_lost = points_lost
        self._seen: dict[tuple[int, int], dict[tuple[object, ...], _Seen]] = {}  # by batch and tokens, then plan
        self._in_use: dict[tuple[int, int], Plan] = {}
        self._decided: dict[tuple[object, ...], Decision] = {}

    def candidates(
        self,
        batch: int,
        num_tokens: int,
        network: Network,
        *,
        load: Sequence[float] | None = None,
        devices: Collection[int] | None = None,
    ) -> Candidates:
        """Plans and predictions for such a request."""
        costs = self._map.costs if load is None else scaled(self._map.costs, load)
        known = self._map.costs.measured
        devices = known if devices is None else [device for device in devices if device in known]
        return Candidates(
            costs, self._map.model, batch=batch, num_tokens=num_tokens, element_bytes=self._element_bytes,
            network=network, devices=devices,
        )  # fmt: skip

    def decide(
        self,
        batch: int,
        num_tokens: int,
        network: Network,
        *,
        now_s: float = 0.0,
        load: Sequence[float] | None = None,
        devices: Collection[int] | None = None,
    ) -> Decision:
        """The plan for a request of ``batch`` samples, ``num_tokens`` tokens each. ``devices``: those that can be used.

        PlanError when the model cannot take such a request.
        """
        self._map.model.check_num_tokens(num_tokens)
        load = (1.0,) * len(self._map.devices) if load is None else load
        key = self._key(batch, num_tokens, network, load, devices, now_s)
        decision = self._decided.get(key)
        if decision is None:
            decision = self._decided[key] = self._compare(batch, num_tokens, network, load, devices, now_s)
            _forget_first(self._decided)
        self._in_use[batch, num_tokens] = decision.chosen.plan
        _forget_first(self._in_use)
        return decision

    def observe(
        self,
        plan: Plan,
        batch: int,
        num_tokens: int,
        total_s: float,
        predicted_s: float,
        now_s: float,
        *,
        is_bound: bool = False,
    ) -> None:
        """A request took so long; ``predicted_s`` as the map said for the network as it was found to be. ``is_bound``:
        it was given up then, and would have taken longer."""
        if total_s <= 0 or predicted_s <= 0:
            return
        ratio = min(max(total_s / predicted_s, MIN_CORRECTION), MAX_CORRECTION)
        before = self.correction(plan, batch, num_tokens, now_s)
        if is_bound and ratio <= before:
            return
        weight = 1.0 if is_bound else NEW_WEIGHT
        seen = self._seen.setdefault((batch, num_tokens), {})
        seen[_kind(plan)] = _Seen(ratio=before * (ratio / before) ** weight, at_s=now_s)
        _forget_first(self._seen)

    def correction(self, plan: Plan, batch: int, num_tokens: int, now_s: float) -> float:
        """How many times as long as predicted such requests were seen to take."""
        seen = self._seen.get((batch, num_tokens), {}).get(_kind(plan))
        return 1.0 if seen is None else seen.faded(now_s)

    def _compare(
        self,
        batch: int,
        num_tokens: int,
        network: Network,
        load: Sequence[float],
        devices: Collection[int] | None,
        now_s: float,
    ) -> Decision:
        num_devices = len(self._map.devices)
        allowed = {count: self._allowed(count) for count in range(2, num_devices + 1)}
        left_out = allowed[num_devices][1] if allowed else []
        comparing = self.candidates(batch, num_tokens, network, load=load, devices=devices)
        found = [
            self._candidate(plan, prediction, batch, num_tokens, now_s)
            for plan, prediction in comparing.all({count: codecs for count, (codecs, _) in allowed.items()})
        ]
        if self._objective == "throughput" and batch == 1:
            found += self._streams(comparing, num_tokens, now_s)
        found.sort(key=lambda one: one.score)
        local = next(one for one in found if one.plan.strategy == "local")
        measured = self.candidates(batch, num_tokens, network, devices=devices)
        best = chosen = next(  # as good as one device is no reason to trouble the others
            one for one in found if one is local or one.score <= (1 - self._margin(one.plan, measured)) * local.score
        )
        used = self._in_use.get((batch, num_tokens))
        if used is not None and used != best.plan:
            same = [one for one in found if _kind(one.plan) == _kind(used)]
            still = min(same, key=lambda one: one.score, default=None)
            if still is not None and still.score <= best.score * (1 + BETTER) and still.score <= local.score:
                chosen = still
        return Decision(
            chosen=chosen,
            candidates=tuple(found),
            left_out=tuple(left_out),
            kept=chosen is not best,
            local=local,
            batch=batch,
            objective=self._objective,
            max_accuracy_drop=self._budget,
        )

    def _streams(self, comparing: Candidates, num_tokens: int, now_s: float) -> list[Candidate]:
        """Single samples under `replica`, several at once, one on each device: seconds a sample is the time between
        two that are done, and each takes as long as its device does."""
        alone = comparing.alone()
        local = Plan.local()
        found = []
        for last in range(2, len(alone) + 1):
            used = dict(sorted(alone.items(), key=lambda pair: pair[1].total_s)[:last])
            rates = {
                device: 1 / (one.total_s * self.correction(local, 1, num_tokens, now_s)) for device, one in used.items()
            }
            shares = tuple(rates.get(device, 0.0) / sum(rates.values()) for device in range(len(self._map.devices)))
            plan = Plan(strategy="replica", shares=shares)
            slowest = max(used.values(), key=lambda one: one.total_s)
            found.append(Candidate(plan=plan, prediction=slowest, correction=1.0, score=1 / sum(rates.values())))
        return found

    def _candidate(self, plan: Plan, prediction: Prediction, batch: int, num_tokens: int, now_s: float) -> Candidate:
        correction = self.correction(plan, batch, num_tokens, now_s)
        score = self._score(prediction) * correction
        return Candidate(plan=plan, prediction=prediction, correction=correction, score=score)

    def _score(self, prediction: Prediction) -> float:
        return prediction.joules if self._objective == "energy" else prediction.total_s

    def _margin(self, plan: Plan, measured: Candidates) -> float:
        """By how much it must be better than one device here. ``measured``: as all were when the map was made."""
        if any(plan.shares[1:]) and max(plan.shares) == 1.0:
            here, there = (self._score(measured.predict(one)) for one in (Plan.local(), plan))
            return BETTER if there <= (1 - BETTER) * here else ELSEWHERE
        return BETTER

    def _allowed(self, num_devices: int) -> tuple[list[CodecSpec], list[str]]:
        """The codecs that keep the budget, and why the others are left out."""
        model = self._map.model
        codecs, left_out = [model.narrower(EXACT)], list[str]()
        for name in self._map.codecs:
            codec = CodecSpec.parse(name)
            if codec.is_exact:
                if codec not in codecs:
                    codecs.append(codec)
                continue
            if self._budget is None:
                left_out.append(f"{name}: not exact, and no accuracy budget was given (--max-accuracy-drop)")
                continue
            lost = self._points_lost(codec, num_devices)
            if lost is None:
                left_out.append(
                    f"{name}: its accuracy was not measured for this model, {num_devices} devices and "
                    f"{self._map.dtype}, or on too few inputs (edgeprism evaluate)"
                )
            elif lost > self._budget:
                left_out.append(f"{name}: costs {lost:.1f} points, and the budget is {self._budget:g}")
            else:
                codecs.append(codec)
        return [codec for codec in codecs if str(codec) in self._map.codecs], left_out

    def _key(
        self,
        batch: int,
        num_tokens: int,
        network: Network,
        load: Sequence[float],
        devices: Collection[int] | None,
        now_s: float,
    ) -> tuple[object, ...]:
        """What a decision depends on, coarsely enough that it is not made anew for every request."""
        links = tuple((_step(link.bytes_per_s), _step(max(link.latency_s, SHORT_S))) for link in network.links)
        loads = tuple(_step(factor) for factor in load)
        corrections = tuple(
            (kind, _step(seen.faded(now_s))) for kind, seen in self._seen.get((batch, num_tokens), {}).items()
        )
        used = self._in_use.get((batch, num_tokens))
        ready = None if devices is None else tuple(sorted(devices))
        return batch, num_tokens, links, loads, corrections, ready, None if used is None else _kind(used)


def describe(plan: Plan) -> str:
    """A plan in a few words: sequence int8 over 0 and 1 (60 %, 40 %)."""
    if plan.strategy == "local":
        return "local"
    used = [device for device, share in enumerate(plan.shares) if share > 0]
    name = f"sequence {plan.codec}" if plan.strategy == "sequence" else plan.strategy
    where = " and ".join(", ".join(map(str, used)).rsplit(", ", 1)) if len(used) > 1 else str(used[0])
    even = len({round(plan.shares[device], 3) for device in used}) == 1
    parts = "" if even else " (" + ", ".join(f"{100 * plan.shares[device]:.0f} %" for device in used) + ")"
    return f"{name} over {where}{parts}"


def _kind(plan: Plan) -> tuple[object, ...]:
    """Plans of one kind are corrected together: shares may differ a little from request to request."""
    used = tuple(device for device, share in enumerate(plan.shares) if share > 0) if plan.num_devices > 1 else (0,)
    return plan.strategy, str(plan.codec), used


def _forget_first(known: dict[Any, Any]) -> None:
    """Texts have many lengths: what came first goes first."""
    while len(known) > MAX_KNOWN:
        del known[next(iter(known))]


def _step(value: float) -> int:
    return round(math.log(max(value, 1e-12)) / math.log1p(SAME))
