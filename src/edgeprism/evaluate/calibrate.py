"""What `edgeprism calibrate` does: runs inputs through the exact model, keeps what devices would send, fits the tables.

The rows are those of one device, without any codec: the tables then serve every number of devices, unless the codec
averages rows, whose means depend on the partitions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgeprism.codecs.calibration import Calibration
from edgeprism.codecs.codec import make_codec
from edgeprism.codecs.fit import fit_tables
from edgeprism.errors import InputError
from edgeprism.models.block import Block, Heads, Hidden, Rows, merge_heads
from edgeprism.models.model import Model, Tokens
from edgeprism.specs.codec import CodecSpec
from edgeprism.strategies.local.forward import run_local
from edgeprism.strategies.sequence.partition import token_bounds

MAX_VECTORS = 8192  # rows of a block that are kept, the same tokens in each
_SEED = 20


def calibrate(
    model: Model,
    inputs: Iterable[dict[str, Any]],
    specs: Sequence[CodecSpec],
    shares: Sequence[float],
    *,
    num_samples: int,
    fingerprint: str = "",
    source: dict[str, Any] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Calibration]:
    """The tables of each codec, from ``inputs``: keyword arguments of calls, ``num_samples`` samples in all.

    InputError for a codec that has no tables, PlanError where the tokens of an input cannot be split as ``shares`` and
    the codec ask, InputError where there are too few.
    """
    for spec in specs:
        if not spec.needs_calibration:
            raise InputError(f"codec {spec} needs no calibration: use it as it is")
    # What is encoded is the same for all codecs that send the same of the same rows.
    keepers = {_before_packing(spec): _Keeper(_before_packing(spec), shares, num_samples, model) for spec in specs}
    with torch.no_grad():
        for given in inputs:
            tokens = model.tokens(given)
            listened, rows, keys_values = _listening(model)
            run_local(listened, tokens)
            for keeper in keepers.values():
                keeper.take(tokens, rows if keeper.spec.travels == "rows" else keys_values)
            progress(tokens.batch)
        made = []
        for spec in specs:
            keeper = keepers[_before_packing(spec)]
            tables = fit_tables(spec, keeper.rows(), [_metric(model, block, spec) for block in model.blocks])
            made.append(
                Calibration(
                    codec=spec,
                    fingerprint=fingerprint,
                    tables=tables,
                    source={**(source or {}), "samples": num_samples, "vectors": keeper.num_vectors},
                )
            )
    return made


def _before_packing(spec: CodecSpec) -> CodecSpec:
    return replace(spec, is_delta=False, is_rotated=False, bits=32, group=None)


class _Keeper:
    """Collects what would be packed: a share of each batch's tokens, the same ones in every block. ``spec`` is the
    codec without its packing."""

    def __init__(self, spec: CodecSpec, shares: Sequence[float], num_samples: int, model: Model) -> None:
        self.spec, self.num_vectors = spec, 0
        self._shares, self._num_samples = shares, num_samples
        self._blocks: list[list[Tensor]] = [[] for _ in model.blocks]
        self._generator = torch.Generator().manual_seed(_SEED)

    def take(self, tokens: Tokens, blocks: Sequence[Tensor]) -> None:
        """``blocks``: what each block's tokens would send (batch, tokens, width)."""
        parts = [(start, stop) for start, stop in token_bounds(tokens.num_tokens, self._shares) if stop > start]
        if not self.spec.has_means:
            parts = [(0, tokens.num_tokens)]
        masks = [None if tokens.mask is None else tokens.mask[:, start:stop] for start, stop in parts]
        codecs = [
            make_codec(self.spec, num_tokens=stop - start, mask=mask, width=blocks[0].shape[-1], dtype=blocks[0].dtype)
            for (start, stop), mask in zip(parts, masks, strict=True)
        ]
        picked: Tensor | None = None
        for kept, rows in zip(self._blocks, blocks, strict=True):
            reduced = [
                codec.decode(codec.encode(rows[:, start:stop], 0), 0)
                for codec, (start, stop) in zip(codecs, parts, strict=True)
            ]
            vectors = torch.cat([part.flatten(0, 1) for part, _ in reduced])
            if picked is None:
                picked = self._pick(reduced)
            kept.append(vectors[picked.to(vectors.device)].float().cpu())
        assert picked is not None
        self.num_vectors += len(picked)

    def rows(self) -> Iterable[Tensor]:
        """What was kept of each block."""
        return map(torch.cat, self._blocks)

    def _pick(self, reduced: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Numbers of the rows that stand for real tokens: as many of this batch as its share of all samples."""
        real = []
        for rows, counts in reduced:
            everyone = torch.ones(rows.shape[:2], dtype=torch.bool)
            real.append((everyone if counts is None else (counts > 0).cpu().expand(rows.shape[:2])).flatten())
        numbers = torch.cat(real).nonzero()[:, 0]
        wanted = -(-MAX_VECTORS * reduced[0][0].shape[0] // self._num_samples)
        return numbers[torch.randperm(len(numbers), generator=self._generator)[:wanted]]


class _Listening(Block):
    """A block that keeps what it would send, rows and keys with values, and is as before otherwise."""

    def __init__(self, block: Block, rows: list[Tensor], keys_values: list[Tensor]) -> None:
        self._block, self._rows, self._keys_values = block, rows, keys_values
        self.num_heads, self.num_key_value_heads, self.scale = block.num_heads, block.num_key_value_heads, block.scale

    def attention_input(self, x: Rows) -> Rows:
        y = self._block.attention_input(x)
        self._rows.append(y)
        return y

    def queries(self, y: Rows, positions: Tensor) -> Heads:
        return self._block.queries(y, positions)

    def keys_values(self, y: Rows, positions: Tensor) -> tuple[Heads, Heads]:
        keys, values = self._block.keys_values(y, positions)
        self._keys_values.append(torch.cat([merge_heads(keys), merge_heads(values)], dim=-1))
        return keys, values

    def attention_output(self, x: Rows, context: Heads) -> Rows:
        return self._block.attention_output(x, context)

    def mlp_up(self, x: Rows) -> Hidden:
        return self._block.mlp_up(x)

    def mlp_down(self, x: Rows, h: Hidden) -> Rows:
        return self._block.mlp_down(x, h)


def _listening(model: Model) -> tuple[Model, list[Tensor], list[Tensor]]:
    """The model with blocks that keep what they would send, in the lists beside it."""
    rows: list[Tensor] = []
    keys_values: list[Tensor] = []
    listening = copy.copy(model)
    listening.blocks = [_Listening(block, rows, keys_values) for block in model.blocks]
    return listening, rows, keys_values


def _metric(model: Model, block: Block, spec: CodecSpec) -> Tensor:
    """What an error of what is sent is worth (groups, group_width, group_width): see ``codecs.fit``."""
    if spec.travels == "keys_values":
        return torch.eye(model.spec.key_value_width).expand(2, -1, -1)
    width = model.spec.hidden_size
    probes = torch.cat([torch.eye(width), torch.zeros(1, width)])[None].to(model.device, model.dtype)
    worth = torch.zeros(width, width)
    for heads in block.keys_values(probes, torch.zeros(1, width + 1, dtype=torch.int64)):
        out = merge_heads(heads)[0].float().cpu()
        weight = out[:-1] - out[-1]  # without the bias
        worth += weight @ weight.T / weight.square().sum()
    return worth[None]
