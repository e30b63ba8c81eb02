"""DistilBERT: BERT's blocks under other names, without token types and without a pooler."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from edgeprism.models.block import PostNormBlock, Rows
from edgeprism.models.linear import joined, linear
from edgeprism.models.mlp import Up
from edgeprism.models.reads import HeadInput, Reads
from edgeprism.models.text import CLS, EVERY_ROW, TextModel


class BareDistilBert(TextModel):
    """DistilBertModel: every row."""

    output: type[ModelOutput] = BaseModelOutput

    takes_token_types = False

    def __init__(self, base: Any) -> None:
        super().__init__(base)
        self.vocab_size = self.config.vocab_size
        self.max_positions = self.config.max_position_embeddings
        self.blocks = [distilbert_block(layer) for layer in base.transformer.layer]
        self._embeddings = base.embeddings

    def reads(self, ids: Tensor) -> Reads:
        return EVERY_ROW

    def embed(self, features: dict[str, Tensor]) -> Rows:
        return self._embeddings(features["ids"], position_ids=features["positions"])  # type: ignore[no-any-return]

    def head(self, joined: HeadInput) -> ModelOutput:
        return self.output(last_hidden_state=joined.rows)


class DistilBertClassifier(BareDistilBert):
    """DistilBertForSequenceClassification: two layers on the first row."""

    output = SequenceClassifierOutput

    def __init__(self, model: Any) -> None:
        super().__init__(model.distilbert)
        self._pre_classifier, self._classifier = model.pre_classifier, model.classifier

    def reads(self, ids: Tensor) -> Reads:
        return CLS

    def head(self, joined: HeadInput) -> ModelOutput:
        assert joined.rows is not None
        return self.output(logits=self._classifier(F.relu(self._pre_classifier(joined.rows[:, 0]))))


class DistilBertMaskedLM(BareDistilBert):
    """DistilBertForMaskedLM: logits of every row."""

    output = MaskedLMOutput

    def __init__(self, model: Any) -> None:
        super().__init__(model.distilbert)
        self._transform, self._activation = model.vocab_transform, model.activation
        self._norm, self._to_logits = model.vocab_layer_norm, model.vocab_projector

    def head(self, joined: HeadInput) -> ModelOutput:
        transformed = self._norm(self._activation(self._transform(joined.rows)))
        return self.output(logits=self._to_logits(transformed))


def distilbert_block(layer: Any) -> PostNormBlock:
    """A block of DistilBERT."""
    attention, ffn = layer.attention, layer.ffn
    return PostNormBlock(
        num_heads=attention.n_heads,
        scale=attention.scaling,
        query=linear(attention.q_lin),
        key_value=joined(attention.k_lin, attention.v_lin),
        output=linear(attention.out_lin),
        attention_norm=layer.sa_layer_norm,
        mlp_norm=layer.output_layer_norm,
        up=Up(linear(ffn.lin1), ffn.activation),
        down=linear(ffn.lin2),
    )
