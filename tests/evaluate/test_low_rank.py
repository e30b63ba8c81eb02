"""Low-rank adaptors start as nothing, train only what they should, and end as plain weights."""

from __future__ import annotations

import pytest
import torch

from edgeprism.evaluate.low_rank import LowRank, adapt, merge
from edgeprism.models.registry import adapt as adapt_family
from tests.families import difference, example, expected, make

ARCHITECTURES = ["ViTForImageClassification", "GPT2ForSequenceClassification", "BertForMaskedLM", "DistilBertModel"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapted_trained_and_merged(architecture: str) -> None:
    """Adapted, a model computes what it did; merged, what it did when adapted, and edgeprism takes it again."""
    model, inputs = make(architecture), example(architecture)
    before, names = expected(model, inputs), list(model.state_dict())
    adapt(model, 4, trains_head=True)
    assert difference(expected(model, inputs), before, inputs) < 1e-5
    for layer in model.modules():
        if isinstance(layer, LowRank):
            layer.low_b.data.normal_(0, 0.05)
    adapted = expected(model, inputs)
    assert difference(adapted, before, inputs) > 0.01
    merge(model)
    assert difference(expected(model, inputs), adapted, inputs) < 1e-4
    assert list(model.state_dict()) == names
    adapt_family(model)


def test_what_is_trained() -> None:
    """Adaptors and the head; of a language model's head not the part that is its embedding."""
    model = make("BertForMaskedLM")
    adapt(model, 4, trains_head=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-1] for name in trained if name.startswith("bert.")} == {"low_a", "low_b"}
    assert "cls.predictions.transform.dense.weight" in trained
    assert not any("word_embeddings" in name or "decoder.weight" in name for name in trained)
    assert sum(isinstance(module, LowRank) for module in model.modules()) == 3 * 6


def test_the_head_is_frozen_unless_asked_for() -> None:
    """Then adaptors are all that is trained."""
    model = make("ViTForImageClassification")
    adapt(model, 4, trains_head=False)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[-1] for name in trained} == {"low_a", "low_b"}


def test_computes_under_autocast() -> None:
    """The adaptors are float32; their products are computed as the layer's own are."""
    layer = LowRank(torch.nn.Linear(8, 4), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 8)).dtype == torch.bfloat16
