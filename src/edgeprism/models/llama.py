"""Llama and Qwen2, and what is one of them under another name (SmolLM2): rotary positions, grouped heads, RMSNorm."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.utils import ModelOutput

from edgeprism.models.block import Rows
from edgeprism.models.linear import joined, linear
from edgeprism.models.mlp import GatedUp
from edgeprism.models.reads import HeadInput, Reads
from edgeprism.models.rotary import Rotary, RotaryBlock
from edgeprism.models.text import EVERY_ROW, CausalLM, TextModel, last_real_row


class BareLlama(TextModel):
    """LlamaModel, Qwen2Model: every row."""

    output: type[ModelOutput] = BaseModelOutputWithPast

    is_causal = True
    is_rotary = True
    takes_token_types = False

    def __init__(self, base: Any) -> None:
        super().__init__(base)
        self.vocab_size = self.config.vocab_size
        self.max_positions = self.config.max_position_embeddings
        rotary = Rotary(base.rotary_emb)
        self.blocks = [llama_block(layer, rotary) for layer in base.layers]
        self._words, self._norm = base.embed_tokens, base.norm

    def reads(self, ids: Tensor) -> Reads:
        return EVERY_ROW

    def embed(self, features: dict[str, Tensor]) -> Rows:
        return self._words(features["ids"])  # type: ignore[no-any-return]

    def finish(self, x: Rows) -> Rows:
        return self._norm(x)  # type: ignore[no-any-return]

    def head(self, joined: HeadInput) -> ModelOutput:
        return self.output(last_hidden_state=joined.rows)


class LlamaLM(CausalLM, BareLlama):
    """LlamaForCausalLM, Qwen2ForCausalLM: logits of every row."""

    output = CausalLMOutputWithPast

    def __init__(self, model: Any) -> None:
        super().__init__(model.model)
        self.to_logits = linear(model.lm_head)
        self.generation_config = model.generation_config


class LlamaClassifier(BareLlama):
    """LlamaForSequenceClassification, Qwen2ForSequenceClassification: a linear layer on the last row that is no
    padding."""

    output = SequenceClassifierOutputWithPast

    def __init__(self, model: Any) -> None:
        super().__init__(model.model)
        self._score = model.score

    def reads(self, ids: Tensor) -> Reads:
        return last_real_row(ids, self.config.pad_token_id)

    def head(self, joined: HeadInput) -> ModelOutput:
        assert joined.rows is not None
        return self.output(logits=self._score(joined.rows[:, 0]))


def llama_block(layer: Any, rotary: Rotary) -> RotaryBlock:
    """A block of Llama or Qwen2."""
    attention, mlp, config = layer.self_attn, layer.mlp, layer.self_attn.config
    return RotaryBlock(
        rotary=rotary,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        scale=attention.scaling,
        query=linear(attention.q_proj),
        key_value=joined(attention.k_proj, attention.v_proj),
        output=linear(attention.o_proj),
        attention_norm=layer.input_layernorm,
        mlp_norm=layer.post_attention_layernorm,
        up=GatedUp(linear(mlp.gate_proj), linear(mlp.up_proj), mlp.act_fn),
        down=linear(mlp.down_proj),
    )
