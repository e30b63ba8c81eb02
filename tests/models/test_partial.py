"""Models of which only some pieces are held: what they compute, and what they do not read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeprism.errors import ModelFilesError
from edgeprism.models.load import load_pretrained
from edgeprism.models.model import Model
from edgeprism.models.partial import adapt_partial, load_partial
from edgeprism.models.registry import ADAPTORS, adapt
from edgeprism.specs.codec import CodecSpec
from edgeprism.strategies.pipeline.forward import Passage, enter, leave, run
from tests.families import NUM_LAYERS, difference, example, expected, make

CPU = torch.device("cpu")
NUM_PIECES = 4 * NUM_LAYERS


def stage(directory: Path, start: int, stop: int) -> Model:
    """The pieces [start, stop) of the model in a directory."""
    return adapt_partial(load_partial(directory, start, stop), CPU, start, stop)


@pytest.mark.parametrize("architecture", sorted(ADAPTORS))
def test_stages_that_hold_only_their_pieces_give_the_models_answers(architecture: str, tmp_path: Path) -> None:
    """Cut inside of blocks, and at every kind of cut."""
    model, inputs = make(architecture), example(architecture)
    model.save_pretrained(tmp_path)
    cuts = (0, 1, 3, 6, 8, NUM_PIECES)
    models = [stage(tmp_path, start, stop) for start, stop in itertools.pairwise(cuts)]
    with torch.no_grad():
        flow = enter(models[0], inputs)
        for one, (start, stop) in zip(models, itertools.pairwise(cuts), strict=True):
            flow = run(one, flow, start, stop)
            if stop < NUM_PIECES:
                passage = Passage(
                    one, CodecSpec(), stop, batch=flow.rows.shape[0], num_tokens=flow.num_tokens, reads=flow.reads
                )
                rows, side = passage.unpack(passage.pack(flow))
                flow = replace(flow, rows=rows, side=side)
        output = leave(models[-1], flow)
    assert difference(output, expected(model, inputs), inputs) <= 1e-4


def values(model: Any) -> int:
    """Parameters that have values, each counted once."""
    return sum(one.numel() for one in {id(one): one for one in model.parameters() if not one.is_meta}.values())


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "GPT2LMHeadModel", "BertForMaskedLM"])
def test_every_weight_is_held_once(architecture: str, tmp_path: Path) -> None:
    """But for words that the embedding and the head share, which first and last stage both need."""
    model = make(architecture)
    model.save_pretrained(tmp_path)
    whole = values(load_pretrained(str(tmp_path)))
    parts = [values(load_partial(tmp_path, start, stop)) for start, stop in ((0, 5), (5, 8), (8, NUM_PIECES))]
    shared = 0 if architecture.startswith("ViT") else model.get_input_embeddings().weight.numel()
    assert sum(parts) == whole + shared
    assert max(parts) < 0.7 * whole


def test_words_are_held_once_by_the_last_stage(tmp_path: Path) -> None:
    """The first one needs no head, the last one no table to look words up in but its head."""
    make("GPT2LMHeadModel").save_pretrained(tmp_path)
    models = [stage(tmp_path, start, stop) for start, stop in ((0, 4), (4, 8), (8, NUM_PIECES))]
    has_words = [not one._words.weight.is_meta for one in models]  # type: ignore[attr-defined]
    has_head = [not one.to_logits._weight.is_meta for one in models]  # type: ignore[attr-defined]
    assert has_words == [True, False, False] and has_head == [False, False, True]


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "BertForMaskedLM"])
@pytest.mark.parametrize("kept", ["both", "head"])
def test_words_as_the_checkpoint_has_them(architecture: str, kept: str, tmp_path: Path) -> None:
    """A head of its own keeps its values though the configuration ties it; where only the head was saved, it is what
    words are looked up in: as transformers loads them."""
    model, inputs = make(architecture), example(architecture)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head, words = {
        "GPT2LMHeadModel": ("lm_head.weight", "transformer.wte.weight"),
        "BertForMaskedLM": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    }[architecture]
    tensors[head] = tensors[words] + (0.1 if kept == "both" else 0.0)
    if kept == "head":
        del tensors[words]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    whole = load_pretrained(str(tmp_path))
    models = [stage(tmp_path, start, stop) for start, stop in ((0, 5), (5, NUM_PIECES))]
    with torch.no_grad():
        flow = run(models[0], enter(models[0], inputs), 0, 5)
        output = leave(models[1], run(models[1], flow, 5, NUM_PIECES))
    assert difference(output, expected(whole, inputs), inputs) <= 1e-4


def test_what_others_hold_is_not_read(tmp_path: Path) -> None:
    """A file that has only the first two blocks' tensors is enough for these."""
    model = make("ViTForImageClassification")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    there = {name: value for name, value in tensors.items() if ".2." not in name and "classifier" not in name}
    assert len(there) < len(tensors)
    save_file(there, tmp_path / "model.safetensors", metadata={"format": "pt"})
    inputs = example("ViTForImageClassification")
    with torch.no_grad():
        first = stage(tmp_path, 0, 8)
        rows = run(first, enter(first, inputs), 0, 8).rows
        whole = adapt(model)
        assert torch.allclose(rows, run(whole, enter(whole, inputs), 0, 8).rows, atol=1e-5)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    """By the stage that needs it, and by no other."""
    make("ViTForImageClassification").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    wide = ("fc1.weight", "intermediate.dense.weight")
    name = next(name for name in tensors if ".2." in name and name.endswith(wide) and "output" not in name)
    lost = {key: value for key, value in tensors.items() if key != name}
    save_file(lost, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_partial(tmp_path, 0, 8)
    load_partial(tmp_path, 11, NUM_PIECES)
    with pytest.raises(ModelFilesError, match=r"lacks 1 tensors of ViTForImageClassification: vit.layers.2.mlp.fc1"):
        load_partial(tmp_path, 8, NUM_PIECES)
