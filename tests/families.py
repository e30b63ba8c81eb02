"""Tiny models of every supported architecture, and inputs for them.

Weights are drawn wide (0.25 instead of 0.02), norms and biases at random, layer scales far from one: attention is then
far from uniform and every term matters, so a mistake shows. With transformers' own initialisation nearly everything
passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

NUM_LAYERS, NUM_HEADS, WIDTH, NUM_LABELS = 3, 4, 64, 5
IMAGE_PX, PATCH_PX = 32, 8  # 16 patches
TEXT_TOKENS = 13
VOCABULARY = 97

_GENERAL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "intermediate_size": 112,
    "initializer_range": 0.25,
    "num_labels": NUM_LABELS,
}
_IMAGE = {**_GENERAL, "image_size": IMAGE_PX, "patch_size": PATCH_PX}
_TEXT = {**_GENERAL, "vocab_size": VOCABULARY, "max_position_embeddings": 40, "type_vocab_size": 2, "pad_token_id": 0}
# Two heads of queries share one of keys and values. A small base turns even the slowest pair by a visible angle.
_ROTARY = {
    **_GENERAL,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "ViT": _IMAGE,
    "DeiT": _IMAGE,
    "Dinov2": {**_IMAGE, "mlp_ratio": 2},
    "Bert": _TEXT,
    "Roberta": {**_TEXT, "pad_token_id": 1, "max_position_embeddings": 42},
    "DistilBert": {
        "dim": WIDTH,
        "n_layers": NUM_LAYERS,
        "n_heads": NUM_HEADS,
        "hidden_dim": 112,
        "initializer_range": 0.25,
        "num_labels": NUM_LABELS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    },
    "GPT2": {
        "n_embd": WIDTH,
        "n_layer": NUM_LAYERS,
        "n_head": NUM_HEADS,
        "n_inner": 112,
        "n_positions": 40,
        "initializer_range": 0.25,
        "num_labels": NUM_LABELS,
        "vocab_size": VOCABULARY,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 3,
    },
    "Llama": _ROTARY,
    "Qwen2": {**_ROTARY, "tie_word_embeddings": True},
}
TEXT_FAMILIES = ("Bert", "Roberta", "DistilBert", "GPT2", "Llama", "Qwen2")


def family_of(architecture: str) -> str:
    """The family's name as transformers' classes begin with it."""
    return next(name for name in _CONFIGS if architecture.startswith(name))


def is_text(architecture: str) -> bool:
    """Whether its inputs are token ids."""
    return family_of(architecture) in TEXT_FAMILIES


def make(architecture: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of ``architecture`` in evaluation mode, float32; ``changes`` go into its config."""
    family = family_of(architecture)
    config = getattr(transformers, f"{family}Config")(**deepcopy({**_CONFIGS[family], **changes}))
    config.architectures = [architecture]
    torch.manual_seed(seed)
    model: PreTrainedModel = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw(name, parameter)
    return model.eval()


def _draw(name: str, parameter: Tensor) -> None:
    """Random values where transformers starts from zeros or ones."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "lambda1":  # DINOv2's layer scale
        parameter.uniform_(-1.5, 1.5)
    elif leaf == "weight" and parameter.ndim == 1:  # a norm
        parameter.uniform_(0.6, 1.4)
    elif leaf == "bias" or "token" in leaf or "position_embeddings" in leaf:
        parameter.normal_(0, 0.3)


def example(architecture: str, *, batch: int = 3, seed: int = 1, **shape: int) -> dict[str, Tensor]:
    """Inputs without padding: images of ``height`` x ``width`` pixels, or ids of ``length`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    if not is_text(architecture):
        size = (batch, 3, shape.get("height", IMAGE_PX), shape.get("width", IMAGE_PX))
        return {"pixel_values": torch.randn(size, generator=generator)}
    # ids from 4 on: none of them is a special token of any family
    return {"input_ids": torch.randint(4, VOCABULARY, (batch, shape.get("length", TEXT_TOKENS)), generator=generator)}


def padded(architecture: str, side: str, lengths: tuple[int, ...] = (13, 2, 8), **shape: int) -> dict[str, Tensor]:
    """Texts of these lengths in one batch, padded on the ``side`` left or right, with their attention mask."""
    ids = example(architecture, batch=len(lengths), **shape)["input_ids"]
    index = torch.arange(ids.shape[1])
    count = torch.tensor(lengths)[:, None]
    real = index >= ids.shape[1] - count if side == "left" else index < count
    pad = _CONFIGS[family_of(architecture)]["pad_token_id"]
    return {"input_ids": ids.masked_fill(~real, pad), "attention_mask": real.long()}


def expected(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What transformers itself gives: the fields of its output that are tensors."""
    with torch.no_grad():
        output = model(**inputs)
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


def at_real_tokens(value: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """An output with one row a token, without the rows of padding; any other output as it is."""
    mask = inputs.get("attention_mask")
    return value if mask is None or value.ndim != 3 else value[mask.bool()]


def difference(output: Mapping[str, Any], wanted: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> float:
    """Largest absolute difference over all fields; it fails when the fields are not the same."""
    assert {name for name, value in output.items() if isinstance(value, Tensor)} == set(wanted)
    differences = []
    for name, value in wanted.items():
        assert output[name].shape == value.shape and output[name].dtype == value.dtype, name
        differences.append((at_real_tokens(output[name], inputs) - at_real_tokens(value, inputs)).abs().max())
    return float(torch.stack(differences).max())
