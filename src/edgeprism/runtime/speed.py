"""How fast a device computes one block of a model: what shares and deadlines start from, until requests tell more."""

from __future__ import annotations

import time

import torch

from edgeprism.models.block import run_block
from edgeprism.models.model import Model
from edgeprism.specs.cost import block_macs
from edgeprism.specs.model import ModelSpec

_NUM_ROWS = 64
_MIN_RUNS, _MIN_S = 3, 0.1


def measure_speed(model: Model) -> float:
    """Multiply-accumulates per second: the fastest of a few runs of the first block on seeded rows."""
    spec, block = model.spec, model.blocks[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, _NUM_ROWS, spec.hidden_size, generator=generator).to(model.device, model.dtype)
    positions = torch.arange(_NUM_ROWS)[None]
    fastest_s = float("inf")
    with torch.no_grad():
        began, num_runs = time.perf_counter(), 0
        while num_runs < _MIN_RUNS or time.perf_counter() - began < _MIN_S:  # the first ones warm up
            start = time.perf_counter()
            float(run_block(block, x, positions).sum())  # reading a number waits for an accelerator
            fastest_s = min(fastest_s, time.perf_counter() - start)
            num_runs += 1
    return macs_of_block(spec) / fastest_s


def macs_of_block(spec: ModelSpec) -> int:
    """Multiply-accumulates of what ``measure_speed`` runs."""
    return block_macs(spec, own_rows=_NUM_ROWS, key_rows=_NUM_ROWS, projected_rows=_NUM_ROWS)
