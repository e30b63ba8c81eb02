"""How fast a device computes one block of a model: what shares and deadlines start from, until requests tell more."""

from __future__ import annotations

import time

import torch

from edgeprism.models.block import attend
from edgeprism.models.model import Model
from edgeprism.specs.cost import block_macs
from edgeprism.specs.model import ModelSpec

_NUM_ROWS = 64
_NUM_RUNS = 3


def measure_speed(model: Model) -> float:
    """Multiply-accumulates per second: the fastest of a few runs of the first block on seeded rows."""
    spec, block = model.spec, model.blocks[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, _NUM_ROWS, spec.hidden_size, generator=generator).to(model.device, model.dtype)
    positions = torch.arange(_NUM_ROWS)[None]
    fastest_s = float("inf")
    with torch.no_grad():
        for _ in range(1 + _NUM_RUNS):  # the first one warms up
            start = time.perf_counter()
            y = block.attention_input(x)
            keys, values = block.keys_values(y, positions)
            rows = block.attention_output(x, attend(block.queries(y, positions), keys, values, None, block.scale))
            float(block.mlp_down(rows, block.mlp_up(rows)).sum())  # reading a number waits for an accelerator
            fastest_s = min(fastest_s, time.perf_counter() - start)
    return macs_of_block(spec) / fastest_s


def macs_of_block(spec: ModelSpec) -> int:
    """Multiply-accumulates of what ``measure_speed`` runs."""
    return block_macs(spec, own_rows=_NUM_ROWS, key_rows=_NUM_ROWS, projected_rows=_NUM_ROWS)
