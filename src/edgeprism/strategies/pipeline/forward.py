"""One stage of a pipeline: rows in, its pieces, rows out. The first one embeds, the last one has the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.utils import ModelOutput

from edgeprism.codecs.codec import make_pack
from edgeprism.codecs.pack import Layout, Pack
from edgeprism.models.block import Block, Rows, attend, merge_heads, split_heads
from edgeprism.models.model import Model
from edgeprism.models.reads import Reads, pick_rows
from edgeprism.models.text import CausalLM
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import PIECES_A_BLOCK, Stage
from edgeprism.strategies.kv_cache import KeyValueCache, Seen
from edgeprism.strategies.sequence.bias import attention_bias, pick_bias


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One micro-batch between two pieces. ``rows`` are what a block takes and gives; ``side`` is what a cut inside of a
    half has besides: what attention gathered (batch, rows, width), or the wide half of the MLP (batch, rows,
    intermediate). ``mask``, ``positions``, ``reads``: as in `Tokens`, of the whole micro-batch; ``num_tokens``: as many
    as its samples have, where rows may be fewer behind the last attention."""

    rows: Rows
    side: Float[Tensor, "batch rows wide"] | None = None
    mask: Bool[Tensor, "batch tokens"] | None = None
    positions: Tensor | None = None
    reads: Reads
    num_tokens: int


def enter(model: Model, inputs: dict[str, Any]) -> Flow:
    """Inputs as the first block takes them. InputError for what the model cannot use."""
    tokens = model.tokens(inputs)
    rows = model.embed(tokens.features)
    return Flow(
        rows=rows, mask=tokens.mask, positions=tokens.positions, reads=tokens.reads, num_tokens=tokens.num_tokens
    )


def enter_text(model: Model, features: dict[str, Tensor], mask: Tensor | None, reads: Reads | None) -> Flow:
    """A prompt that is to be continued, as `Tokens` features; without ``reads`` the next token of one."""
    rows = model.embed(features)
    positions = features["positions"] if reads is None or _turns(model, features["positions"]) else None
    return Flow(
        rows=rows, mask=mask, positions=positions, reads=reads or Reads(every_row=True), num_tokens=rows.shape[1]
    )


def _turns(model: Model, positions: Tensor) -> bool:
    """Whether positions matter behind the embedding, and are not the tokens' indices."""
    indices = torch.arange(positions.shape[1], device=positions.device)
    return bool(getattr(model, "is_rotary", False)) and not bool((positions == indices).all())


def run(model: Model, flow: Flow, start: int, stop: int, cache: KeyValueCache | None = None) -> Flow:
    """The pieces [start, stop). With a ``cache`` the flow is a prompt, whose keys and values it keeps, or what comes
    after that."""
    attention = _Attention(model, flow, cache)
    for piece in range(start, stop):
        block, part = divmod(piece, PIECES_A_BLOCK)
        flow = attention(block, flow) if part == 0 else _PARTS[part - 1](model, model.blocks[block], flow)
    return flow


def leave(model: Model, flow: Flow) -> ModelOutput:
    """The output, after the last piece."""
    rows, reads = model.finish(flow.rows), flow.reads
    part = reads.take(rows, 0, flow.num_tokens, picked=reads.only_rows)
    return model.head(reads.join([part], [(0, flow.num_tokens)]))


def next_ids(model: Model, flow: Flow) -> Tensor:
    """Ids (batch,) of the likeliest next token, after the last piece."""
    assert isinstance(model, CausalLM)
    return model.next_logits(model.finish(flow.rows)).argmax(-1)


class _Attention:
    """The first piece of each block of a stage. Positions and biases are the same in all of them, and made once."""

    def __init__(self, model: Model, flow: Flow, cache: KeyValueCache | None) -> None:
        self._model, self._cache = model, cache
        self._positions = torch.arange(flow.num_tokens)[None] if flow.positions is None else flow.positions
        self._biases: tuple[Tensor | None, Tensor | None] | None = None

    def __call__(self, index: int, flow: Flow) -> Flow:
        """In the last block only the rows that the head reads go on."""
        model, cache, positions = self._model, self._cache, self._positions
        reads, rows, block = flow.reads, flow.rows, model.blocks[index]
        y = block.attention_input(rows)
        keys, values = block.keys_values(y, positions)
        if cache is not None and cache.holds(index):
            keys, values, bias = cache.append(index, keys, values)
        else:
            bias, next_bias = self._bias(flow)
            if cache is not None:
                cache.keep(index, Seen(keys, values, next_bias))
        if index == len(model.blocks) - 1 and reads.only_rows:
            picked = reads.local_indices(0, flow.num_tokens)
            rows, y, bias = pick_rows(rows, picked), pick_rows(y, picked), pick_bias(bias, picked)
            batch = max(positions.shape[0], picked.shape[0])
            positions = positions.expand(batch, -1).gather(1, picked.to(positions.device).expand(batch, -1))
        context = attend(block.queries(y, positions), keys, values, bias, block.scale)
        return replace(flow, rows=rows, side=merge_heads(context))

    def _bias(self, flow: Flow) -> tuple[Tensor | None, Tensor | None]:
        """Of these tokens, and, where they are cached, of one that comes after them."""
        if self._biases is None:
            own = _bias(self._model, flow, is_causal=self._model.is_causal)
            self._biases = own, None if self._cache is None else _bias(self._model, flow, is_causal=False)
        return self._biases


def _bias(model: Model, flow: Flow, *, is_causal: bool) -> Tensor | None:
    bias = attention_bias([flow.mask], [flow.num_tokens], 0, is_causal=is_causal, dtype=model.dtype)
    return None if bias is None else bias.to(flow.rows.device)


def _output(model: Model, block: Block, flow: Flow) -> Flow:
    assert flow.side is not None
    return replace(flow, rows=block.attention_output(flow.rows, split_heads(flow.side, block.num_heads)), side=None)


def _up(model: Model, block: Block, flow: Flow) -> Flow:
    return replace(flow, side=block.mlp_up(flow.rows))


def _down(model: Model, block: Block, flow: Flow) -> Flow:
    assert flow.side is not None
    return replace(flow, rows=block.mlp_down(flow.rows, flow.side), side=None)


_PARTS = (_output, _up, _down)


class Passage:
    """What travels at one cut, for micro-batches of one shape: made alike by the sender and the receiver."""

    def __init__(self, model: Model, codec: CodecSpec, cut: int, *, batch: int, num_tokens: int, reads: Reads) -> None:
        spec = model.spec
        block, part = divmod(cut, PIECES_A_BLOCK)
        behind = block == spec.num_layers - 1 and part > 0 and reads.only_rows
        num_rows = len(reads.rows[0]) if behind else num_tokens
        widths = [spec.hidden_size]
        if part in (1, 3):
            widths.append(spec.hidden_size if part == 1 else spec.intermediate_size)
        self._packs: list[Pack] = [make_pack(codec, width, model.dtype, model.device, None) for width in widths]
        self._layouts = [pack.layout(batch, num_rows) for pack in self._packs]

    @property
    def layout(self) -> tuple[Layout, ...]:
        """Dtype and shape of each tensor that travels."""
        return tuple(one for layout in self._layouts for one in layout)

    def pack(self, flow: Flow) -> list[Tensor]:
        """The tensors that travel, contiguous."""
        parts = [flow.rows] if flow.side is None else [flow.rows, flow.side]
        return [one for pack, part in zip(self._packs, parts, strict=True) for one in pack.pack(part, 0)]

    def unpack(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Rows and side."""
        parts, at = [], 0
        for pack, layout in zip(self._packs, self._layouts, strict=True):
            parts.append(pack.unpack(tuple(tensors[at : at + len(layout)]), 0))
            at += len(layout)
        return parts[0], parts[1] if len(parts) > 1 else None


def run_stages(model: Model, inputs: dict[str, Any], stages: Sequence[Stage], codec: CodecSpec) -> ModelOutput:
    """A whole pipeline on one device, what travels packed and unpacked at every cut: what several devices compute."""
    flow = enter(model, inputs)
    for stage in stages:
        flow = run(model, flow, stage.start, stage.stop)
        if stage is not stages[-1]:
            passage = Passage(
                model, codec, stage.stop, batch=flow.rows.shape[0], num_tokens=flow.num_tokens, reads=flow.reads
            )
            rows, side = passage.unpack(passage.pack(flow))
            flow = replace(flow, rows=rows, side=side)
    return leave(model, flow)
