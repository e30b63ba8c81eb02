"""Strategies by name. Modules load on demand: counting needs no torch, running does.

A new strategy is a directory here and one entry in `specs.plan.STRATEGIES`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Protocol, runtime_checkable

from edgeprism.errors import PlanError
from edgeprism.specs.cost import Cost
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import STRATEGIES, Plan

MAX_BATCH = 2**31 - 1
"""What 32-bit sizes on the wire allow; anyone's memory ends far below."""


@runtime_checkable
@runtime_checkable
class CostFunction(Protocol):
    """What every strategy's cost.py defines as ``cost``."""

    def __call__(self, model: ModelSpec, plan: Plan, *, num_tokens: int, batch: int, element_bytes: int) -> Cost:
        """Count one request of ``batch`` samples, ``num_tokens`` tokens each."""
        ...


def count(model: ModelSpec, plan: Plan, *, num_tokens: int, batch: int, element_bytes: int) -> Cost:
    """Multiply-accumulates and bytes of one request under ``plan``, by its strategy's own arithmetic.

    PlanError when the model cannot take that many tokens, or the plan cannot be carried out on them.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise PlanError(f"a batch has 1 to {MAX_BATCH} samples, not {batch}")
    model.check_num_tokens(num_tokens)
    return load_cost(plan.strategy)(model, plan, num_tokens=num_tokens, batch=batch, element_bytes=element_bytes)


def load_cost(strategy: str) -> CostFunction:
    """The function that counts ``strategy``, for requests whose tokens were checked by the model itself."""
    cost: CostFunction = _module(strategy, "cost").cost
    return cost


def load_forward(strategy: str) -> ModuleType:
    """The module that runs ``strategy`` on tensors (it imports torch)."""
    return _module(strategy, "forward")


def _module(strategy: str, part: str) -> ModuleType:
    assert strategy in STRATEGIES, strategy
    return import_module(f"edgeprism.strategies.{strategy}.{part}")
