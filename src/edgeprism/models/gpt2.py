"""GPT-2: the norm before each half of a block, causal attention, one matrix for queries, keys and values."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    SequenceClassifierOutputWithPast,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput

from edgeprism.errors import InputError
from edgeprism.models.block import PreNormBlock, Rows
from edgeprism.models.linear import Linear, check_plain, linear
from edgeprism.models.mlp import Up
from edgeprism.models.reads import HeadInput, Reads
from edgeprism.models.text import EVERY_ROW, CausalLM, TextModel, last_real_row


class BareGpt2(TextModel):
    """GPT2Model: every row."""

    output: type[ModelOutput] = BaseModelOutputWithPastAndCrossAttentions

    is_causal = True

    def __init__(self, base: Any) -> None:
        super().__init__(base)
        if self.config.add_cross_attention:
            raise InputError("this GPT-2 has cross-attention (add_cross_attention); only decoders alone are supported")
        self.vocab_size = self.config.vocab_size
        self.max_positions = self.config.n_positions
        self.blocks = [gpt2_block(layer) for layer in base.h]
        self._words, self._positions, self._norm = base.wte, base.wpe, base.ln_f

    @property
    def num_types(self) -> int:
        return int(self.vocab_size)  # GPT-2 looks token types up in the table of words

    def reads(self, ids: Tensor) -> Reads:
        return EVERY_ROW

    def embed(self, features: dict[str, Tensor]) -> Rows:
        rows = self._words(features["ids"]) + self._positions(features["positions"])
        return rows + self._words(features["types"]) if "types" in features else rows  # type: ignore[no-any-return]

    def finish(self, x: Rows) -> Rows:
        return self._norm(x)  # type: ignore[no-any-return]

    def head(self, joined: HeadInput) -> ModelOutput:
        return self.output(last_hidden_state=joined.rows)


class Gpt2LM(CausalLM, BareGpt2):
    """GPT2LMHeadModel: logits of every row."""

    output = CausalLMOutputWithCrossAttentions

    def __init__(self, model: Any) -> None:
        super().__init__(model.transformer)
        self.to_logits = linear(model.lm_head)
        self.generation_config = model.generation_config


class Gpt2Classifier(BareGpt2):
    """GPT2ForSequenceClassification: a linear layer on the last row that is not padding."""

    output = SequenceClassifierOutputWithPast

    def __init__(self, model: Any) -> None:
        super().__init__(model.transformer)
        self._score = model.score

    def reads(self, ids: Tensor) -> Reads:
        return last_real_row(ids, self.config.pad_token_id)

    def head(self, joined: HeadInput) -> ModelOutput:
        assert joined.rows is not None
        return self.output(logits=self._score(joined.rows[:, 0]))


def gpt2_block(layer: Any) -> PreNormBlock:
    """A block of GPT-2. Its Conv1D holds the transpose of a linear layer's weight."""
    attention = layer.attn
    for conv in (attention.c_attn, attention.c_proj, layer.mlp.c_fc, layer.mlp.c_proj):
        check_plain(conv, Conv1D)
    weight, bias = attention.c_attn.weight.t(), attention.c_attn.bias
    width = attention.embed_dim
    return PreNormBlock(
        num_heads=attention.num_heads,
        scale=attention.scaling,
        query=Linear(weight[:width], bias[:width]),
        key_value=Linear(weight[width:], bias[width:]),
        output=Linear(attention.c_proj.weight.t(), attention.c_proj.bias),
        attention_norm=layer.ln_1,
        mlp_norm=layer.ln_2,
        up=Up(Linear(layer.mlp.c_fc.weight.t(), layer.mlp.c_fc.bias), layer.mlp.act),
        down=Linear(layer.mlp.c_proj.weight.t(), layer.mlp.c_proj.bias),
    )
