"""The published policy (arXiv 2605.25682), to compare with: a table by batch and bandwidth, of one device or PRISM.

Offline every cell of batch size and bandwidth gets the mode that is faster, one device or tokens shared evenly with
means at one compression rate; at run time the nearest cell is looked up. It knows no other plan, no load, and no
accuracy budget beyond the codec that it was made with.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgeprism.errors import PlanError
from edgeprism.policy.candidates import Candidates
from edgeprism.policy.choose import Candidate, Decision, Policy
from edgeprism.policy.network import Network
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.plan import Plan

BATCHES = (1, 2, 4, 8, 16, 32)
RATES_MBIT = (200, 300, 400, 500, 600, 700, 800, 900)
MAX_RATE = RATES_MBIT[-1] * 1e6 / 8
CODEC = CodecSpec.parse("means:9.9")


class TablePolicy(Policy):
    """As `Policy`, but for the plans that it knows."""

    def _compare(
        self,
        batch: int,
        num_tokens: int,
        network: Network,
        load: Sequence[float],
        devices: Collection[int] | None,
        now_s: float,
    ) -> Decision:
        del now_s
        batch_bin = min(BATCHES, key=lambda one: abs(one - batch))
        rate_mbit = min((link.bytes_per_s for link in network.links), default=MAX_RATE) * 8 / 1e6
        cell = network.at(min(RATES_MBIT, key=lambda one: abs(one - rate_mbit)) * 1e6 / 8)
        in_cell = self._found(self.candidates(batch_bin, num_tokens, cell, devices=devices), devices)
        looked_up = min(in_cell, key=lambda one: one.score).plan
        found = self._found(self.candidates(batch, num_tokens, network, load=load, devices=devices), devices)
        local = found[0]  # what the request is expected to take is for how long to wait; the cell has chosen
        return Decision(
            chosen=next((one for one in found if one.plan == looked_up), local),
            candidates=tuple(sorted(found, key=lambda one: one.score)),
            left_out=("every plan but one device and tokens shared with means: --policy table knows no other",),
            kept=False,
            local=local,
            batch=batch,
            objective=self._objective,
            max_accuracy_drop=self._budget,
        )

    def _found(self, cell: Candidates, devices: Collection[int] | None) -> list[Candidate]:
        plans = [Plan.local()]
        num_devices = len(self._map.costs.measured)
        codec = CODEC if num_devices > 1 and CODEC in self._allowed(num_devices)[0] else EXACT
        if num_devices > 1 and (devices is None or {*self._map.costs.measured} <= {*devices}):
            plans.append(Plan.among("sequence", self._map.costs.measured, len(self._map.devices), codec))
        predictions = []
        for plan in list(plans):
            try:
                predictions.append(cell.predict(plan))
            except PlanError:  # too few tokens
                plans.remove(plan)
        energy = self._objective == "energy"
        return [
            Candidate(plan=plan, prediction=one, correction=1.0, score=one.joules if energy else one.total_s)
            for plan, one in zip(plans, predictions, strict=True)
        ]


POLICIES: dict[str, type[Policy]] = {"model": Policy, "table": TablePolicy}
"""By the name that a command line gives."""
