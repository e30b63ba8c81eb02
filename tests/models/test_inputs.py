"""Inputs that cannot be used are refused in one line that says what would be, before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgeprism.errors import InputError, UnsupportedModel
from edgeprism.models.registry import ADAPTORS, adapt
from edgeprism.specs.model import SUPPORTED_ARCHITECTURES
from tests.families import example, family_of, is_text, make, padded

IDS = torch.tensor([[4, 5, 6]])


def test_every_supported_architecture_has_an_adaptor() -> None:
    """The list that `edgeprism plan` goes by, without torch, is that of the adaptors."""
    assert sorted(ADAPTORS) == sorted(SUPPORTED_ARCHITECTURES)


@pytest.mark.parametrize("architecture", ADAPTORS)
def test_adaptor(architecture: str) -> None:
    """It knows its spec, its blocks, its dtype and whether it is causal, and counts tokens without embedding them."""
    model = adapt(make(architecture))
    assert model.spec.architecture == architecture
    assert len(model.blocks) == model.spec.num_layers == 3
    assert model.dtype == torch.float32
    assert model.is_causal == model.spec.is_causal == (family_of(architecture) in ("GPT2", "Llama", "Qwen2"))
    inputs = example(architecture)
    tokens = model.tokens(inputs)
    assert tokens.batch == 3 and tokens.mask is None
    assert tokens.num_tokens == model.num_tokens(inputs)
    if not is_text(architecture):
        assert tokens.num_tokens == model.spec.fixed_tokens


@pytest.mark.parametrize("architecture", ADAPTORS)
def test_unknown_inputs_are_refused_by_name(architecture: str) -> None:
    """A misspelt or unsupported keyword is not silently ignored."""
    model = adapt(make(architecture))
    for unknown in ("labels", "head_mask", "output_attentions", "pixel_value"):
        with pytest.raises(InputError, match=f"it was given {unknown}"):
            model.tokens({**example(architecture), unknown: True})
    with pytest.raises(InputError, match=r"this model needs (input_ids|pixel_values); it was given nothing"):
        model.tokens({})


def test_none_is_as_good_as_absent() -> None:
    """As in transformers, an argument that is None was not given."""
    model = adapt(make("BertModel"))
    tokens = model.tokens({"input_ids": IDS, "attention_mask": None, "position_ids": None, "token_type_ids": None})
    assert tokens.mask is None and set(tokens.features) == {"ids", "positions"}


def test_distilbert_takes_no_token_types() -> None:
    """DistilBERT has none; they are refused rather than ignored."""
    with pytest.raises(InputError, match="token_type_ids"):
        adapt(make("DistilBertModel")).tokens({"input_ids": IDS, "token_type_ids": torch.zeros_like(IDS)})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"input_ids": torch.tensor([[4, 97]])}, "input_ids must lie between 0 and 96; they reach 4 and 97"),
        ({"input_ids": torch.tensor([[-1, 5]])}, "between 0 and 96"),
        ({"input_ids": torch.tensor([4, 5])}, "integers of shape"),
        ({"input_ids": torch.empty(1, 0, dtype=torch.long)}, "integers of shape"),
        ({"input_ids": torch.empty(0, 4, dtype=torch.long)}, "integers of shape"),
        ({"input_ids": torch.rand(1, 3)}, "integers of shape"),
        ({"input_ids": [[4, 5]]}, "must be a torch.Tensor, not list"),
        ({"input_ids": torch.full((1, 41), 4)}, "41 tokens reach position 40; this model has positions 0 to 39"),
        ({"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 40]])}, "position 40"),
        ({"input_ids": IDS, "position_ids": torch.tensor([[-1, 0, 1]])}, "positions 0 to 39"),
        ({"input_ids": IDS, "position_ids": torch.tensor([[0, 1]])}, "shape of input_ids"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 4)}, "shape of input_ids"),
        ({"input_ids": IDS, "attention_mask": torch.ones(3)}, "shape of input_ids"),
        ({"input_ids": IDS, "token_type_ids": torch.tensor([[0, 1, 2]])}, "token_type_ids must lie between 0 and 1"),
        ({"input_ids": IDS, "token_type_ids": torch.tensor([[0, 1]])}, "shape of input_ids"),
    ],
)
def test_bad_texts_are_refused(inputs: dict[str, Any], words: str) -> None:
    """Ids, masks, positions and types that the tables of the model do not hold."""
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        adapt(make("BertModel")).tokens(inputs)


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "DistilBertModel", "RobertaModel"])
def test_too_many_tokens_are_refused(architecture: str) -> None:
    """Forty tokens fit each of these models (RoBERTa's positions begin at 2), forty-one do not."""
    model = adapt(make(architecture))
    assert model.tokens(example(architecture, length=40)).num_tokens == 40
    with pytest.raises(InputError, match="41 tokens reach position"):
        model.tokens(example(architecture, length=41))


@pytest.mark.parametrize(
    "pixels", [torch.rand(3, 32, 32), torch.rand(0, 3, 32, 32), torch.rand(1, 4, 32, 32), torch.rand(1, 3, 40, 32)]
)
def test_bad_images_are_refused(pixels: torch.Tensor) -> None:
    """Not four axes, no sample, another number of channels, another size than ViT was made for."""
    with pytest.raises(InputError, match="pixel_values"):
        adapt(make("ViTModel")).tokens({"pixel_values": pixels})


def test_images_smaller_than_a_patch_are_refused() -> None:
    """DINOv2 takes any size that holds a patch."""
    with pytest.raises(InputError, match="pixel_values"):
        adapt(make("Dinov2Model")).tokens({"pixel_values": torch.rand(1, 3, 32, 4)})


def test_training_mode_is_refused() -> None:
    """Dropout would be random; the message says what to call."""
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        adapt(make("ViTModel").train())


def test_a_model_in_training_mode_below_the_head_is_refused() -> None:
    """A classifier in training mode has its base in training mode."""
    with pytest.raises(InputError, match="training mode"):
        adapt(make("BertForSequenceClassification").train())


@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("BertModel", {"is_decoder": True}, "is_decoder"),
        ("GPT2Model", {"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_decoders_of_another_kind_are_refused(architecture: str, changes: dict[str, Any], words: str) -> None:
    """Causal BERT and cross-attention compute something else than these adaptors do."""
    with pytest.raises(InputError, match=words):
        adapt(make(architecture, **changes))


def test_unsupported_architecture_is_refused_with_the_list() -> None:
    """Every supported name is in the message."""
    from transformers import BertConfig, BertForNextSentencePrediction

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(UnsupportedModel, match="BertForNextSentencePrediction") as refused:
        adapt(BertForNextSentencePrediction(config).eval())
    assert all(name in str(refused.value) for name in ADAPTORS)


def test_gpt2_classifier_needs_a_padding_id_for_batches() -> None:
    """Without pad_token_id the last token of each sample of a batch is unknown; a single text has one."""
    model = adapt(make("GPT2ForSequenceClassification", pad_token_id=None))
    assert model.tokens({"input_ids": IDS}).reads.rows == ((2,),)
    with pytest.raises(InputError, match="pad_token_id"):
        model.tokens({"input_ids": IDS.expand(2, -1)})


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_becomes_a_boolean_mask(side: str) -> None:
    """True at real tokens; a mask of ones only is no mask."""
    model, inputs = adapt(make("BertModel")), padded("BertModel", side)
    mask = model.tokens(inputs).mask
    assert mask is not None and mask.dtype == torch.bool and torch.equal(mask, inputs["attention_mask"].bool())
    assert model.tokens({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}).mask is None
