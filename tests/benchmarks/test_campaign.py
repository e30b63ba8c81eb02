"""How the campaign judges: plain numbers, no boards."""

from __future__ import annotations

import pytest
import torch

from benchmarks.campaign import FLOOR_S, RECOVER_S, Rule, histogram
from benchmarks.stream import Answered, Way, smallest_distance

SEQUENCE, LOCAL = Way("sequence", "exact", 1), Way("local", "exact", 1)


def answered(way: Way, started_s: float, took_s: float, failures: tuple[str, ...] = ()) -> Answered:
    """A request that waited for nobody."""
    return Answered(
        way=way, asked_s=started_s, started_s=started_s, ended_s=started_s + took_s, took_s=took_s, unaccounted_s=0.0,
        devices=(0,) if way is LOCAL else (0, 1), failures=failures, difference=0.0, is_right=True,
    )  # fmt: skip


def test_a_request_may_take_what_the_rule_says() -> None:
    """The floor, or three times what was seen before it; then finding out, then the slowest local one."""
    calm = [answered(SEQUENCE, at, 0.1) for at in (0.0, 1.0, 2.0)]
    local = [answered(LOCAL, 3.0, 0.02), answered(LOCAL, 4.0, 0.05)]
    failed = answered(SEQUENCE, 5.0, 9.0, ("device 1: it does not answer",))
    rule = Rule([*calm, *local, failed], calm)
    assert rule.expected_s(failed) == pytest.approx(0.1)
    assert rule.allowed_s(failed) == pytest.approx(FLOOR_S + RECOVER_S + 0.05)
    slow = [answered(SEQUENCE, 10.0 + at, 0.4) for at in range(20)]
    later = answered(SEQUENCE, 40.0, 9.0, ("device 1: it does not answer",))
    rule = Rule([*calm, *local, failed, *slow, later], calm)
    assert rule.expected_s(later) == pytest.approx(0.4, rel=0.01)  # the failed one told nothing
    assert rule.allowed_s(later) == pytest.approx(1.2 + RECOVER_S + 0.05, rel=0.01)
    assert rule.expected_s(failed) == pytest.approx(0.1)  # what came later tells nothing of it


def test_every_request_is_in_one_bin() -> None:
    """The first and the last bins take what is beyond them."""
    times_s = (0.0, 0.01, 0.0100001, 0.1, 3.0, 1e6)
    bins = histogram([answered(SEQUENCE, 0.0, took_s) for took_s in times_s])
    assert sum(one["requests"] for one in bins) == len(times_s)
    assert bins[0] == {"up_to_ms": 10.0, "requests": 2}
    assert bins[-1]["requests"] == 1


def test_the_smallest_distance_between_answers() -> None:
    """By the largest difference of two rows; a row is not compared with itself."""
    assert smallest_distance(torch.tensor([[0.0, 0.0], [3.0, 1.0], [3.0, 3.5]])) == 2.5
