"""Architecture, as ``config.json`` names it -> family adaptor. A new family adds its lines here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprism.models.bert import BareBert, BertClassifier, BertMaskedLM, RobertaClassifier
from edgeprism.models.distilbert import BareDistilBert, DistilBertClassifier, DistilBertMaskedLM
from edgeprism.models.gpt2 import BareGpt2, Gpt2Classifier, Gpt2LM
from edgeprism.models.llama import BareLlama, LlamaClassifier, LlamaLM
from edgeprism.models.model import Model
from edgeprism.models.vision import (
    BareVision,
    ClsClassifier,
    MeanClassifier,
    TeacherClassifier,
    dinov2_block,
    vit_block,
)
from edgeprism.specs.config_json import unsupported
from edgeprism.specs.model import ModelSpec

ADAPTORS: dict[str, Callable[[Any], Model]] = {
    "BertForMaskedLM": BertMaskedLM,
    "BertForSequenceClassification": BertClassifier,
    "BertModel": BareBert,
    "DeiTForImageClassification": lambda model: ClsClassifier(model, vit_block),
    "DeiTForImageClassificationWithTeacher": lambda model: TeacherClassifier(model, vit_block),
    "DeiTModel": lambda model: BareVision(model, vit_block),
    "Dinov2ForImageClassification": lambda model: MeanClassifier(model, dinov2_block),
    "Dinov2Model": lambda model: BareVision(model, dinov2_block),
    "DistilBertForMaskedLM": DistilBertMaskedLM,
    "DistilBertForSequenceClassification": DistilBertClassifier,
    "DistilBertModel": BareDistilBert,
    "GPT2ForSequenceClassification": Gpt2Classifier,
    "GPT2LMHeadModel": Gpt2LM,
    "GPT2Model": BareGpt2,
    "LlamaForCausalLM": LlamaLM,
    "LlamaForSequenceClassification": LlamaClassifier,
    "LlamaModel": BareLlama,
    "Qwen2ForCausalLM": LlamaLM,
    "Qwen2ForSequenceClassification": LlamaClassifier,
    "Qwen2Model": BareLlama,
    "RobertaForMaskedLM": BertMaskedLM,
    "RobertaForSequenceClassification": RobertaClassifier,
    "RobertaModel": BareBert,
    "ViTForImageClassification": lambda model: ClsClassifier(model, vit_block),
    "ViTModel": lambda model: BareVision(model, vit_block),
}


def adapt(model: Any) -> Model:
    """The adaptor of a loaded transformers model; UnsupportedModel where there is none."""
    architecture = type(model).__name__
    if architecture not in ADAPTORS:
        raise unsupported(architecture)
    adapted = ADAPTORS[architecture](model)
    adapted.spec = ModelSpec.from_config({**model.config.to_dict(), "architectures": [architecture]})
    return adapted
