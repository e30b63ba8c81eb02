"""The Block seam: the points at which a distributed strategy may cut one Transformer block.

The life of a block, for the rows x of one device:

    y = block.attention_input(x)                    # what other devices need of these rows
    q = block.queries(y, positions)
    k, v = block.keys_values(y, positions)          # of own rows, and of rows that others sent
    x = block.attention_output(x, attend(q, k, v, bias, block.scale))
    x = block.mlp_down(x, block.mlp_up(x))

A strategy decides whose rows go where; a block only computes. Two blocks cover the families here: the norm before
each half (ViT, DeiT, DINOv2, GPT-2; Llama and Qwen2, which also rotate: ``models/rotary.py``) and after it (BERT,
RoBERTa, DistilBERT).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from edgeprism.models.linear import Linear

Rows = Float[Tensor, "batch rows width"]
Hidden = Float[Tensor, "batch rows intermediate"]
Heads = Float[Tensor, "batch heads rows head_width"]  # keys and values may have fewer heads than queries
Layer = Callable[[Tensor], Tensor]


class Block(ABC):
    """One block of a model. ``positions`` (batch or 1, rows) are token indices; families with absolute positions,
    which enter at the embedding, ignore them; a row that stands for several tokens has their mean position."""

    num_heads: int
    num_key_value_heads: int  # fewer where each serves a group of query heads; divides num_heads
    scale: float  # multiplies the logits

    @abstractmethod
    def attention_input(self, x: Rows) -> Rows:
        """What queries, keys and values are computed from: the norm of ``x`` where the norm comes first."""

    @abstractmethod
    def queries(self, y: Rows, positions: Tensor) -> Heads:
        """Queries of the rows ``y``."""

    @abstractmethod
    def keys_values(self, y: Rows, positions: Tensor) -> tuple[Heads, Heads]:
        """Keys and values of the rows ``y``."""

    @abstractmethod
    def attention_output(self, x: Rows, context: Heads) -> Rows:
        """Projects what attention gathered, adds the residual ``x``, norms where the norm comes last."""

    @abstractmethod
    def mlp_up(self, x: Rows) -> Hidden:
        """The wide half of the MLP, activation included."""

    @abstractmethod
    def mlp_down(self, x: Rows, h: Hidden) -> Rows:
        """The narrow half of the MLP, residual and last norm included."""


class _ProjectedBlock(Block):
    """What both kinds of block share: projections of y to heads and back."""

    def __init__(
        self,
        *,
        num_heads: int,
        num_key_value_heads: int | None = None,
        scale: float,
        query: Linear,
        key_value: Linear,
        output: Layer,
        attention_norm: Layer,
        mlp_norm: Layer,
        up: Layer,
        down: Layer,
    ) -> None:
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.scale = scale
        self._query, self._key_value, self._output = query, key_value, output
        self._attention_norm, self._mlp_norm = attention_norm, mlp_norm
        self._up, self._down = up, down

    def queries(self, y: Rows, positions: Tensor) -> Heads:
        return split_heads(self._query(y), self.num_heads)

    def keys_values(self, y: Rows, positions: Tensor) -> tuple[Heads, Heads]:
        keys, values = self._key_value(y).chunk(2, dim=-1)
        return split_heads(keys, self.num_key_value_heads), split_heads(values, self.num_key_value_heads)


class PreNormBlock(_ProjectedBlock):
    """The norm comes first: x + out(attention(norm(x))), then x + down(up(norm(x)))."""

    def attention_input(self, x: Rows) -> Rows:
        return self._attention_norm(x)

    def attention_output(self, x: Rows, context: Heads) -> Rows:
        return x + self._output(merge_heads(context))

    def mlp_up(self, x: Rows) -> Hidden:
        return self._up(self._mlp_norm(x))

    def mlp_down(self, x: Rows, h: Hidden) -> Rows:
        return x + self._down(h)


class PostNormBlock(_ProjectedBlock):
    """The norm comes last: norm(x + out(attention(x))), then norm(x + down(up(x)))."""

    def attention_input(self, x: Rows) -> Rows:
        return x

    def attention_output(self, x: Rows, context: Heads) -> Rows:
        return self._attention_norm(x + self._output(merge_heads(context)))

    def mlp_up(self, x: Rows) -> Hidden:
        return self._up(x)

    def mlp_down(self, x: Rows, h: Hidden) -> Rows:
        return self._mlp_norm(x + self._down(h))


def attend(
    q: Heads,
    k: Float[Tensor, "batch key_value_heads keys head_width"],
    v: Float[Tensor, "batch key_value_heads keys head_width"],
    bias: Tensor | None,
    scale: float,
) -> Heads:
    """softmax(q k^T * scale + bias) v. ``bias`` broadcasts to (batch, 1, rows, keys); None is no bias. The heads of
    queries may be a multiple of those of keys and values, each of which then serves a group of neighbours."""
    num_groups = k.shape[1]
    if q.shape[1] == num_groups:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    if bias is not None and bias.shape[2] > 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=True)
    # A group's queries as rows of one head: in decoding up to 20 times as fast on a CPU as enable_gqa (bfloat16).
    rows = q.unflatten(1, (num_groups, -1)).flatten(2, 3)  # (batch, key_value_heads, group * rows, head_width)
    context = F.scaled_dot_product_attention(rows, k, v, attn_mask=bias, scale=scale)
    grouped: Tensor = context.unflatten(2, (-1, q.shape[2]))
    return grouped.flatten(1, 2)  # (batch, heads, rows, head_width)


def split_heads(x: Rows, num_heads: int) -> Heads:
    """The heads of each row, apart."""
    heads: Tensor = x.unflatten(-1, (num_heads, -1))
    return heads.transpose(1, 2)  # (batch, heads, rows, head_width)


def merge_heads(x: Heads) -> Rows:
    """The heads of each row, side by side."""
    return x.transpose(1, 2).flatten(2)  # (batch, rows, width)


def run_block(block: Block, x: Rows, positions: Tensor) -> Rows:
    """One block alone, every row attending to every row: for measuring it, and for comparing devices."""
    y = block.attention_input(x)
    keys, values = block.keys_values(y, positions)
    rows = block.attention_output(x, attend(block.queries(y, positions), keys, values, None, block.scale))
    return block.mlp_down(rows, block.mlp_up(rows))
