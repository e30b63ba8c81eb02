"""The partition with the shortest period, on links of their own or on one medium."""

from __future__ import annotations

from edgeprism.planner.one_medium import fastest_on_one_medium
from edgeprism.planner.own_links import fastest_on_own_links
from edgeprism.planner.pipeline import Pipeline
from edgeprism.specs.plan import Stage


def fastest(pipeline: Pipeline) -> tuple[Stage, ...]:
    """Stages with the shortest period that devices and memory allow: exact, but for more than 8 devices on one medium
    (`one_medium`, which has a bound for those). PlanError where nothing fits, with what lacks."""
    if pipeline.has_one_medium:
        return fastest_on_one_medium(pipeline).stages
    return fastest_on_own_links(pipeline)
