"""BERT and RoBERTa: the norm after each half of a block."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils import ModelOutput

from edgeprism.errors import InputError
from edgeprism.models.block import PostNormBlock, Rows
from edgeprism.models.linear import joined, linear
from edgeprism.models.mlp import Up
from edgeprism.models.reads import HeadInput, Reads
from edgeprism.models.text import CLS, EVERY_ROW, TextModel


class BertLike(TextModel):
    """The encoder of both. ``base`` is BertModel or RobertaModel."""

    def __init__(self, base: Any) -> None:
        super().__init__(base)
        if self.config.is_decoder:
            raise InputError("this model is configured as a decoder (is_decoder); only encoders are supported")
        self.vocab_size = self.config.vocab_size
        self.max_positions = self.config.max_position_embeddings
        self.blocks = [bert_block(layer) for layer in base.encoder.layer]
        self._embeddings = base.embeddings
        self._first_position = base.embeddings.padding_idx if self.config.model_type == "roberta" else None

    def default_positions(self, ids: Tensor) -> Tensor:
        if self._first_position is None:
            return super().default_positions(ids)
        # RoBERTa counts the tokens that are not padding, from padding_idx + 1, and leaves padding at padding_idx.
        real = ids.ne(self._first_position).long()
        positions: Tensor = real.cumsum(1) * real + self._first_position
        return positions

    def embed(self, features: dict[str, Tensor]) -> Rows:
        ids, types = features["ids"], features.get("types")
        return self._embeddings(  # type: ignore[no-any-return]
            input_ids=ids,
            position_ids=features["positions"],
            token_type_ids=ids.new_zeros(ids.shape) if types is None else types,
        )


class BareBert(BertLike):
    """BertModel, RobertaModel: every row, and the pooled one."""

    output = BaseModelOutputWithPoolingAndCrossAttentions

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._pooler = model.pooler

    def reads(self, ids: Tensor) -> Reads:
        return EVERY_ROW

    def head(self, joined: HeadInput) -> ModelOutput:
        pooled = self._pooler(joined.rows) if self._pooler is not None else None
        return self.output(last_hidden_state=joined.rows, pooler_output=pooled)


class BertClassifier(BertLike):
    """BertForSequenceClassification: a linear layer on what the pooler makes of CLS."""

    output = SequenceClassifierOutput

    def __init__(self, model: Any) -> None:
        super().__init__(model.bert)
        self._pooler, self._classifier = model.bert.pooler, model.classifier

    def reads(self, ids: Tensor) -> Reads:
        return CLS

    def head(self, joined: HeadInput) -> ModelOutput:
        return self.output(logits=self._classifier(self._pooler(joined.rows)))


class RobertaClassifier(BertLike):
    """RobertaForSequenceClassification: two layers on the first row."""

    output = SequenceClassifierOutput

    def __init__(self, model: Any) -> None:
        super().__init__(model.roberta)
        self._classifier = model.classifier

    def reads(self, ids: Tensor) -> Reads:
        return CLS

    def head(self, joined: HeadInput) -> ModelOutput:
        return self.output(logits=self._classifier(joined.rows))


class BertMaskedLM(BertLike):
    """BertForMaskedLM and RobertaForMaskedLM: logits of every row."""

    output = MaskedLMOutput

    def __init__(self, model: Any) -> None:
        super().__init__(getattr(model, model.base_model_prefix))
        self._to_logits = model.cls if hasattr(model, "cls") else model.lm_head

    def reads(self, ids: Tensor) -> Reads:
        return EVERY_ROW

    def head(self, joined: HeadInput) -> ModelOutput:
        return self.output(logits=self._to_logits(joined.rows))


def bert_block(layer: Any) -> PostNormBlock:
    """A block of BERT or RoBERTa."""
    attention = layer.attention.self
    return PostNormBlock(
        num_heads=attention.num_attention_heads,
        scale=attention.scaling,
        query=linear(attention.query),
        key_value=joined(attention.key, attention.value),
        output=linear(layer.attention.output.dense),
        attention_norm=layer.attention.output.LayerNorm,
        mlp_norm=layer.output.LayerNorm,
        up=Up(linear(layer.intermediate.dense), layer.intermediate.intermediate_act_fn),
        down=linear(layer.output.dense),
    )
