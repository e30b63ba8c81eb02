"""An oracle for `sequence` with a lossy codec: the same mathematics in one process, dense and slow.

One sample, one partition and one token at a time. It shares nothing with edgeprism.codecs and the forward passes of
edgeprism.strategies; of edgeprism.models it uses the blocks, which the first law holds to transformers' own, and of
generation the positions of its tokens, which the tests of exact generation do.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeprism.strategies.greedy import prompt_tokens

Tables = Mapping[str, Tensor]
"""Of a codec that has some, as calibration made them."""


def dense_rows(
    model: Any, tokens: Any, bounds: Sequence[tuple[int, int]], codec: str, tables: Tables | None = None
) -> Tensor:
    """The finished rows (batch, tokens, width) of every token, whatever the head reads."""
    x = model.embed(tokens.features)
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if tokens.mask is None else tokens.mask
    positions = torch.arange(x.shape[1])[None] if tokens.positions is None else tokens.positions
    positions = positions.expand(x.shape[:2])
    packings = [Packing(codec, tables or {}) for _ in range(x.shape[0])]
    for block in model.blocks:
        samples = [
            _block(model, block, x[s : s + 1], mask[s], positions[s], bounds, codec, packings[s])[0]
            for s in range(x.shape[0])
        ]
        x = torch.stack(samples)
    return model.finish(x)


def dense_generate(
    model: Any, ids: Tensor, mask: Tensor | None, bounds: Sequence[tuple[int, int]], codec: str, num_new: int
) -> tuple[Tensor, Tensor]:
    """Greedy ids (batch, prompt + new), every one from scratch, without a stop; and how far apart the two best logits
    were, (batch, new). New tokens belong to the last partition, which nobody receives."""
    steps: list[Tensor] = []
    distances: list[Tensor] = []
    for _ in range(num_new):
        tokens = prompt_tokens(model, ids, mask, steps, 1)
        grown = [*bounds[:-1], (bounds[-1][0], tokens.num_tokens)]
        best = model.next_logits(dense_rows(model, tokens, grown, codec)).topk(2)
        steps.append(best.indices[:, 0])
        distances.append(best.values[:, 0] - best.values[:, 1])
    return torch.cat([ids, torch.stack(steps, dim=1)], dim=1), torch.stack(distances, dim=1)


def _block(
    model: Any,
    block: Any,
    x: Tensor,
    mask: Tensor,
    positions: Tensor,
    bounds: Sequence[tuple[int, int]],
    codec: str,
    pack: Packing,
) -> Tensor:
    """One block for one sample: each partition sees its own rows as they are and the others' as they arrive."""
    y = block.attention_input(x)
    queries = _flat(block.queries(y, positions[None]))
    own_keys, own_values = (_flat(value) for value in block.keys_values(y, positions[None]))
    received = [
        _received(block, y, own_keys, own_values, mask, positions, start, stop, codec, pack) for start, stop in bounds
    ]
    pack.block += 1
    context = torch.zeros_like(queries)
    for index, (start, stop) in enumerate(bounds):
        others = [r for i, r in enumerate(received) if i != index and not (model.is_causal and i > index)]
        for query in range(start, stop):
            last = query + 1 if model.is_causal else stop
            seen = [token for token in range(start, last) if mask[token]]
            keys = [own_keys[token] for token in seen] + [key for other in others for key in other[0]]
            values = [own_values[token] for token in seen] + [value for other in others for value in other[1]]
            counts = [1] * len(seen) + [count for other in others for count in other[2]]
            if keys:  # padding in front of a causal model's text sees nothing
                context[query] = _attend(queries[query], keys, values, counts, block)
    x = block.attention_output(x, context.unflatten(-1, (block.num_heads, -1)).transpose(0, 1)[None])
    return block.mlp_down(x, block.mlp_up(x))


def _attend(query: Tensor, keys: list[Tensor], values: list[Tensor], counts: list[int], block: Any) -> Tensor:
    """Softmax over keys that each stand for several tokens: the exponential of a logit, times the count."""
    heads = []
    all_keys, all_values = (torch.stack(rows).chunk(block.num_key_value_heads, dim=-1) for rows in (keys, values))
    for head, q in enumerate(query.chunk(block.num_heads)):
        group = head * block.num_key_value_heads // block.num_heads
        k, v = all_keys[group], all_values[group]
        logits = k @ q * block.scale
        weights = torch.exp(logits - logits.max()) * torch.tensor(counts, dtype=q.dtype)
        heads.append((weights / weights.sum()) @ v)
    return torch.cat(heads)


def _flat(heads: Tensor) -> Tensor:
    """(1, heads, rows, head_width) to (rows, width)."""
    return heads[0].transpose(0, 1).flatten(1)


def _received(
    block: Any,
    y: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    positions: Tensor,
    start: int,
    stop: int,
    codec: str,
    pack: Packing,
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Keys, values and counts that others have of the partition [start, stop)."""
    plain = codec.removeprefix("kv:")
    if codec.startswith("kv:"):
        pairs = [_encoded(value, mask, start, stop, plain, pack) for value in (keys, values)]
        return pairs[0][0], pairs[1][0], pairs[0][1]
    rows, counts = _encoded(y[0], mask, start, stop, plain, pack)
    if not rows:
        return [], [], []
    means, _ = _encoded(positions[:, None].double(), mask, start, stop, plain, lambda row, _: row)
    k, v = block.keys_values(torch.stack(rows)[None], torch.stack(means)[None, :, 0])
    return list(_flat(k)), list(_flat(v)), counts


def _encoded(
    rows: Tensor, mask: Tensor, start: int, stop: int, codec: str, pack: Callable[[Tensor, int], Tensor]
) -> tuple[list[Tensor], list[int]]:
    """Rows that stand for at least one real token, as they arrive, and for how many each stands."""
    num_tokens = stop - start
    num_segments = num_tokens
    if match := re.search(r"means:(L=)?([\d.]+)", codec):
        number = float(match[2])
        num_segments = int(number) if match[1] else max(1, round(num_tokens / number))
    cuts = [start + i * num_tokens // num_segments for i in range(num_segments + 1)]
    arrived, counts = [], []
    for first, last in itertools.pairwise(cuts):
        real = [rows[token] for token in range(first, last) if mask[token]]
        if real:
            mean = torch.stack(real).sum(0) / len(real)
            arrived.append(pack(mean, first))
            counts.append(len(real))
    return arrived, counts


class Packing:
    """What few bits make of one sample's rows, by definition. Of differences it knows what arrived one block before,
    by the place of the first token that a row stands for; a row of padding has no successors that matter."""

    def __init__(self, codec: str, tables: Tables) -> None:
        bits = re.search(r"int(\d)", codec)
        self._bits = int(bits[1]) if bits else 32
        self._is_delta, self._is_rotated, self._tables = "delta" in codec, "rot" in codec, tables
        self._before: dict[int, Tensor] = {}
        self.block = 0

    def __call__(self, row: Tensor, place: int) -> Tensor:
        if self._bits == 32:
            return row
        if not self._is_delta:
            return _rotated_quantised(row, self._bits) if self._is_rotated else _quantised(row, self._bits)
        turn = _rotation(len(row), 32) if self._is_rotated else torch.eye(len(row)).double()
        values = row.float().double() @ turn
        gain, offset = (self._tables[name][self.block].double() for name in ("gain", "offset"))
        predicted = offset + (gain * self._before[place] if self.block else 0)
        if self._is_rotated:
            spread = self._tables["spread"][self.block, 0].double()
            arrived = predicted + _levels(values - predicted, spread, self._bits)
        else:
            arrived = predicted + _quantised(values - predicted, self._bits)
        self._before[place] = arrived
        return (arrived @ turn.T).to(row.dtype)


def _rotation(width: int, longest: int) -> Tensor:
    """(width, width): random signs, then Hadamard transforms of runs."""
    run = min(width & -width, longest)
    parity = [[(i & j).bit_count() % 2 for j in range(run)] for i in range(run)]
    hadamard = (1 - 2 * torch.tensor(parity).double()) / math.sqrt(run)
    signs = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(20)) * 2.0 - 1.0
    return signs.double()[:, None] * torch.block_diag(*[hadamard] * (width // run))


def _levels(values: Tensor, spread: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits levels, which lie halfway between multiples of Max's step."""
    step = {8: 0.0308, 4: 0.3352, 3: 0.5860, 2: 0.9957, 1: 1.5958}[bits] * spread
    half = 2 ** (bits - 1)
    return (torch.floor(values / step).clamp(-half, half - 1) + 0.5) * step


def _rotated_quantised(row: Tensor, bits: int) -> Tensor:
    turn = _rotation(len(row), 128)
    values = row.float().double() @ turn
    return (_levels(values, values.square().mean().sqrt(), bits) @ turn.T).to(row.dtype)


def _quantised(row: Tensor, bits: int) -> Tensor:
    """Symmetric, one scale a row, computed in float32 as it travels."""
    row32 = row.float()
    top = 2 ** (bits - 1) - 1
    scale = max(float(row32.abs().max()) / top, math.ulp(0.0))
    scale32 = torch.tensor(scale, dtype=torch.float32)
    return (torch.round(row32 / scale32) * scale32).to(row.dtype)
