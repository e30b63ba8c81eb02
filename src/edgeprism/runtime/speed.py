"""How fast a device computes one block of a model: what shares and deadlines start from, until requests tell more."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from edgeprism.models.block import run_block
from edgeprism.models.linear import Linear
from edgeprism.models.model import Model
from edgeprism.specs.cost import block_macs
from edgeprism.specs.model import ModelSpec

_CPU = torch.device("cpu")
_NUM_ROWS = 64
_MIN_RUNS, _MIN_S = 3, 0.1


def measure_speed(model: Model) -> float:
    """Multiply-accumulates per second: the fastest of a few runs of the first block on seeded rows."""
    spec = model.spec
    if model.held is not None:
        return speed_of_products(model.dtype, model.device, width=spec.hidden_size, wide=spec.intermediate_size)
    block, generator = model.blocks[0], torch.Generator().manual_seed(0)
    x = torch.randn(1, _NUM_ROWS, spec.hidden_size, generator=generator).to(model.device, model.dtype)
    positions = torch.arange(_NUM_ROWS)[None]
    return macs_of_block(spec) / _fastest_s(lambda: run_block(block, x, positions))


def speed_of_products(dtype: torch.dtype, device: torch.device = _CPU, *, width: int = 768, wide: int = 3072) -> float:
    """The same of a device that holds no whole block, or nothing yet: of the wide half of an MLP, with random weights,
    those of a base model by default."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_NUM_ROWS, width, generator=generator).to(device, dtype)
    layer = Linear(torch.randn(wide, width, generator=generator).to(device, dtype), None)
    return _NUM_ROWS * width * wide / _fastest_s(lambda: layer(x))


def _fastest_s(call: Callable[[], torch.Tensor]) -> float:
    fastest_s = float("inf")
    with torch.no_grad():
        began, num_runs = time.perf_counter(), 0
        while num_runs < _MIN_RUNS or time.perf_counter() - began < _MIN_S:  # the first ones warm up
            start = time.perf_counter()
            float(call().sum())  # reading a number waits for an accelerator
            fastest_s = min(fastest_s, time.perf_counter() - start)
            num_runs += 1
    return fastest_s


def macs_of_block(spec: ModelSpec) -> int:
    """Multiply-accumulates of what ``measure_speed`` runs."""
    return block_macs(spec, own_rows=_NUM_ROWS, key_rows=_NUM_ROWS, projected_rows=_NUM_ROWS)
