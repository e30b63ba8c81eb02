"""Deadlines of a pipeline, held to when outputs of stages come that are computed one behind the other."""

from __future__ import annotations

import time

import pytest
import torch

from edgeprism.models.model import Model
from edgeprism.models.registry import adapt
from edgeprism.models.text import CausalLM
from edgeprism.runtime.lateness import Lateness
from edgeprism.runtime.membership import Membership
from edgeprism.runtime.micro_batch import Micro, Request
from edgeprism.runtime.patience import FLOOR_S, Patience
from edgeprism.runtime.text import Text
from edgeprism.specs.cost import whole_model_macs
from edgeprism.specs.plan import Plan, Stage
from edgeprism.strategies.greedy import GreedySettings
from edgeprism.wire.memory import MemoryTransport
from tests.families import make

pytestmark = pytest.mark.alone

PROMPT_TOKENS = 24


class Clock:
    """Seconds as the test says."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now_s


def lateness_of(model: Model, num_devices: int, whole_s: float) -> Lateness:
    """Of devices that are alike, and compute a prompt in so many seconds."""
    members = Membership(MemoryTransport.mesh(num_devices)[0])
    members.macs_per_s = dict.fromkeys(range(num_devices), whole_model_macs(model.spec, PROMPT_TOKENS) / whole_s)
    return Lateness(model, members, Patience(FLOOR_S))


@pytest.mark.parametrize("num_stages", [2, 3, 4, 8])
@pytest.mark.parametrize("prompt_s", [0.2, 0.5, 1.0, 3.0])
def test_a_prompt_behind_tokens_is_not_late(num_stages: int, prompt_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty texts, a few at a time: each is a prompt, which takes a stage ``prompt_s``, and five tokens, a hundredth
    of that. A prompt that goes in when a text has ended comes home long after the tokens in front of it."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    model = adapt(make("GPT2LMHeadModel", num_hidden_layers=2))
    stages = tuple(Stage(device=device, start=device, stop=device + 1) for device in range(num_stages - 1))
    stages = (*stages, Stage(device=num_stages - 1, start=num_stages - 1, stop=8))
    assert isinstance(model, CausalLM)
    settings = GreedySettings(max_new_tokens=6, stop_ids=(), padding_id=0)
    text = Text(model, torch.ones(1, PROMPT_TOKENS, dtype=torch.int64), None, settings)
    lateness = lateness_of(model, num_stages, num_stages * prompt_s)
    plan = Plan.pipeline(stages, num_stages)
    request = Request(answer=None, plan=plan, batch=20, num_tokens=PROMPT_TOKENS, left_out=(), outputs=[None] * 20)
    lateness.begin()
    free_s = [clock.now_s] * num_stages  # when each stage is done with what it has
    under_way: list[tuple[float, Micro, int]] = []  # when it is home, and how many tokens are still to come

    def give(num_tokens: int, num_left: int) -> None:
        """In at the first stage, now."""
        micro = Micro(request=request, index=0, inputs={}, batch=1, num_tokens=num_tokens, text=text)
        micro.given_s = at_s = clock.now_s
        for stage in range(num_stages):
            at_s = max(at_s, free_s[stage]) + (prompt_s if num_tokens > 1 else prompt_s / 100)
            free_s[stage] = at_s
        under_way.append((at_s, micro, num_left))

    for _ in range(2 * num_stages):
        give(PROMPT_TOKENS, 5)
    num_left = 20 - 2 * num_stages
    while under_way:
        home_s, oldest, num_tokens = under_way.pop(0)
        assert home_s <= lateness.at_s(oldest, stages), f"late by {home_s - lateness.at_s(oldest, stages):.2f} s"
        clock.now_s = home_s
        lateness.learn(oldest, stages)
        if num_tokens:
            give(1, num_tokens - 1)
        elif num_left > 0:
            num_left -= 1
            give(PROMPT_TOKENS, 5)


def test_what_stands_still_is_late() -> None:
    """However much was expected: some times what it takes after it was due."""
    model = adapt(make("GPT2LMHeadModel", num_hidden_layers=2))
    stages = (Stage(device=0, start=0, stop=4), Stage(device=1, start=4, stop=8))
    lateness = lateness_of(model, 2, 0.1)
    request = Request(
        answer=None, plan=Plan.pipeline(stages, 2), batch=1, num_tokens=PROMPT_TOKENS, left_out=(), outputs=[None]
    )
    lateness.begin()
    for _ in range(3):
        micro = Micro(request=request, index=0, inputs={}, batch=1, num_tokens=PROMPT_TOKENS)
        micro.given_s = time.monotonic() - 0.1
        lateness.learn(micro, stages)
    micro = Micro(request=request, index=0, inputs={}, batch=1, num_tokens=PROMPT_TOKENS)
    micro.given_s = time.monotonic()
    assert lateness.at_s(micro, stages) - micro.given_s < 1.0
