"""Plans check themselves and survive JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprism.errors import PlanError
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.plan import MAX_DEVICES, Plan, Stage, parse_shares


@settings(deadline=None)
@given(
    st.sampled_from(["replica", "sequence"]),
    st.lists(st.integers(0, 100), min_size=1, max_size=8).filter(any),
    st.sampled_from(["exact", "kv:means:9.9+int4"]),
)
def test_json_round_trip(strategy: str, weights: list[int], codec: str) -> None:
    """A plan read from the text of its JSON is the same plan."""
    shares = tuple(weight / sum(weights) for weight in weights)
    plan = Plan(strategy=strategy, shares=shares, codec=CodecSpec.parse(codec))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@settings(deadline=None)
@given(st.integers(1, MAX_DEVICES))
def test_even_shares_add_up(num_devices: int) -> None:
    """Even plans are valid for any number of devices, thirds included."""
    assert Plan.even("sequence", num_devices).num_devices == num_devices


def test_local_is_one_share() -> None:
    """The local plan gives everything to the coordinator."""
    assert Plan.local() == Plan(strategy="local", shares=(1.0,))


@pytest.mark.parametrize(
    ("strategy", "shares", "message"),
    [
        ("bogus", (1.0,), "unknown strategy 'bogus'; use one of local, replica, sequence"),
        ("pipeline", (0.5, 0.5), "a pipeline needs stages"),
        ("local", (0.5, 0.5), "runs on one device"),
        ("sequence", (0.6, 0.5), "add up to 1.1, not to 1"),
        ("sequence", (0.5, 0.49999), "add up"),
        ("sequence", (1.5, -0.5), "device 1 is -0.5; it must not be negative"),
        ("sequence", (float("nan"), 1.0), "must be a number"),
        ("sequence", (float("inf"),), "must be a number"),
        ("sequence", (), "one share for each device"),
    ],
)
def test_impossible_plans_are_refused(strategy: str, shares: tuple[float, ...], message: str) -> None:
    """Each bad value is named."""
    with pytest.raises(PlanError, match=message):
        Plan(strategy=strategy, shares=shares)


@pytest.mark.parametrize("num_devices", [0, -1, 65_536])
def test_device_counts_have_bounds(num_devices: int) -> None:
    """At least one device, and no more than a frame can name."""
    with pytest.raises(PlanError, match="1 to 16 devices"):
        Plan.even("sequence", num_devices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"schema_version": None}, "schema_version None"),
        ({"strategy": 3}, "field strategy"),
        ({"strategy": None}, "field strategy"),
        ({"shares": "half"}, "field shares"),
        ({"shares": ["a", "b"]}, "field shares"),
        ({"shares": [True, 0.0]}, "field shares"),
        ({"shares": [10**400]}, "field shares"),
        ({"shares": [0.1, 0.1]}, "add up"),
        ({"codec": 8}, "field codec"),
        ({"codec": "int9"}, "unknown codec"),
        ({"speed": 1}, "unknown fields: speed"),
    ],
)
def test_bad_json_is_refused(change: dict[str, Any], message: str) -> None:
    """A document that is no plan is refused by the field that is wrong."""
    with pytest.raises(PlanError, match=message):
        Plan.from_json({**Plan.even("sequence", 2).to_json(), **change})


def test_shares_from_a_command_line() -> None:
    """Numbers with commas between them; anything else is refused."""
    assert parse_shares("0.6,0.4") == (0.6, 0.4)
    for text in ("", "0.6;0.4", "half", "0.6,"):
        with pytest.raises(PlanError, match="are not numbers"):
            parse_shares(text)


def test_a_pipeline_as_a_command_line_has_it() -> None:
    """Stages and codecs as text are those that objects say."""
    stages = (Stage(device=1, start=0, stop=20), Stage(device=0, start=20, stop=48))
    said = Plan.pipeline("1:0-20,0:20-48", 2, "exact..int4", micro_batch=8)
    assert said == Plan.pipeline(stages, 2, EXACT, micro_batch=8, narrowest=CodecSpec.parse("int4"))
    assert Plan.pipeline("0:0-4", 1, "int8").codec == CodecSpec.parse("int8")
    with pytest.raises(PlanError, match="are not devices with pieces"):
        Plan.pipeline("0-4", 1)
