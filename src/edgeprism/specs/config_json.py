"""What the families write into config.json, read as the fields of a `ModelSpec`.

Key names differ by family (`n_embd` is GPT-2's hidden size); a key that is absent has the default of transformers'
own configuration class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprism.errors import ModelFilesError, UnsupportedModel

FAMILY_OF = {
    "ViTModel": "vit",
    "ViTForImageClassification": "vit",
    "DeiTModel": "deit",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "Dinov2Model": "dinov2",
    "Dinov2ForImageClassification": "dinov2",
    "BertModel": "bert",
    "BertForSequenceClassification": "bert",
    "BertForMaskedLM": "bert",
    "RobertaModel": "roberta",
    "RobertaForSequenceClassification": "roberta",
    "RobertaForMaskedLM": "roberta",
    "DistilBertModel": "distilbert",
    "DistilBertForSequenceClassification": "distilbert",
    "DistilBertForMaskedLM": "distilbert",
    "GPT2Model": "gpt2",
    "GPT2LMHeadModel": "gpt2",
    "GPT2ForSequenceClassification": "gpt2",
    "LlamaModel": "llama",
    "LlamaForCausalLM": "llama",
    "LlamaForSequenceClassification": "llama",
    "Qwen2Model": "qwen2",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2ForSequenceClassification": "qwen2",
}
"""Class name of transformers, as under "architectures" in config.json -> its family (model_type)."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotations whose angles follow from a token's position alone, whatever the length of the text."""


def read_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ModelSpec in a config.json. UnsupportedModel or ModelFilesError names what is wrong in it."""
    architecture = _architecture(config)
    family = FAMILY_OF[architecture]
    return {
        "architecture": architecture,
        "model_type": family,
        "num_labels": _num_labels(config) if "Classification" in architecture else 0,
        "dtype": _dtype(config),
        **_READERS[family](config),
    }


def unsupported(architecture: object) -> UnsupportedModel:
    """The error for an architecture that no family adaptor takes, with the list of those that are taken."""
    return UnsupportedModel(
        f"architecture {architecture!r} is not supported; supported: {', '.join(sorted(FAMILY_OF))}"
    )


def is_count(value: object) -> bool:
    """Whether a JSON value is a whole number that fits 31 bits, and no true or false."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _vision(config: Mapping[str, Any], *, special_tokens: int, patch_size_px: int) -> dict[str, Any]:
    image_height, image_width = _pair(config, "image_size", 224)
    patch_height, patch_width = _pair(config, "patch_size", patch_size_px)
    num_patches = (image_height // patch_height) * (image_width // patch_width)
    if num_patches < 1:
        raise ModelFilesError("config.json: patch_size is larger than image_size")
    hidden_size = _count(config, "hidden_size", 768)
    return {
        "num_layers": _count(config, "num_hidden_layers", 12),
        "hidden_size": hidden_size,
        "num_heads": _count(config, "num_attention_heads", 12),
        "key_value_width": hidden_size,
        "is_causal": False,
        "max_tokens": num_patches + special_tokens,
        "fixed_tokens": num_patches + special_tokens,
        "special_tokens": special_tokens,
        "patch_size_px": (patch_height, patch_width),
        "num_channels": _count(config, "num_channels", 3),
    }


def _vit(config: Mapping[str, Any]) -> dict[str, Any]:
    mlp = {"intermediate_size": _count(config, "intermediate_size", 3072), "mlp_matrices": 2}
    return _vision(config, special_tokens=1, patch_size_px=16) | mlp


def _deit(config: Mapping[str, Any]) -> dict[str, Any]:
    mlp = {"intermediate_size": _count(config, "intermediate_size", 3072), "mlp_matrices": 2}
    return _vision(config, special_tokens=2, patch_size_px=16) | mlp


def _dinov2(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = _vision(config, special_tokens=1, patch_size_px=14)
    ratio = config.get("mlp_ratio", 4)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1000:
        raise ModelFilesError(f"config.json: mlp_ratio must be a positive number, not {ratio!r}")
    intermediate_size = int(vision["hidden_size"] * ratio)
    gated = bool(config.get("use_swiglu_ffn", False))
    if gated:  # two thirds of it, rounded up to a multiple of 8: three matrices then cost what two would
        intermediate_size = (int(intermediate_size * 2 / 3) + 7) // 8 * 8
    mlp = {"intermediate_size": intermediate_size, "mlp_matrices": 3 if gated else 2}
    return vision | mlp | {"resizes_images": True}


def _bert(config: Mapping[str, Any], *, vocab_size: int = 30522) -> dict[str, Any]:
    _refuse_decoder(config)
    hidden_size = _count(config, "hidden_size", 768)
    max_tokens = _count(config, "max_position_embeddings", 512)
    return {
        "num_layers": _count(config, "num_hidden_layers", 12),
        "hidden_size": hidden_size,
        "num_heads": _count(config, "num_attention_heads", 12),
        "key_value_width": hidden_size,
        "intermediate_size": _count(config, "intermediate_size", 3072),
        "mlp_matrices": 2,
        "is_causal": False,
        "max_tokens": max_tokens,
        "fixed_tokens": None,
        "vocab_size": _count(config, "vocab_size", vocab_size),
    }


def _roberta(config: Mapping[str, Any]) -> dict[str, Any]:
    values = _bert(config, vocab_size=50265)
    pad_token_id = config.get("pad_token_id", 1)
    if not is_count(pad_token_id):
        raise ModelFilesError(f"config.json: pad_token_id must be a token's number, not {pad_token_id!r}")
    return values | {"max_tokens": values["max_tokens"] - pad_token_id - 1}  # positions start after the padding id


def _distilbert(config: Mapping[str, Any]) -> dict[str, Any]:
    hidden_size = _count(config, "dim", 768, "hidden_size")
    max_tokens = _count(config, "max_position_embeddings", 512)
    return {
        "num_layers": _count(config, "n_layers", 6, "num_hidden_layers"),
        "hidden_size": hidden_size,
        "num_heads": _count(config, "n_heads", 12, "num_attention_heads"),
        "key_value_width": hidden_size,
        "intermediate_size": _count(config, "hidden_dim", 3072),
        "mlp_matrices": 2,
        "is_causal": False,
        "max_tokens": max_tokens,
        "fixed_tokens": None,
        "vocab_size": _count(config, "vocab_size", 30522),
    }


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("add_cross_attention"):
        raise UnsupportedModel("config.json asks for cross-attention (add_cross_attention), which is not supported")
    hidden_size = _count(config, "n_embd", 768, "hidden_size")
    inner_given = config.get("n_inner") is not None
    max_tokens = _count(config, "n_positions", 1024, "max_position_embeddings")
    return {
        "num_layers": _count(config, "n_layer", 12, "num_hidden_layers"),
        "hidden_size": hidden_size,
        "num_heads": _count(config, "n_head", 12, "num_attention_heads"),
        "key_value_width": hidden_size,
        "intermediate_size": _count(config, "n_inner", 0) if inner_given else 4 * hidden_size,
        "mlp_matrices": 2,
        "is_causal": True,
        "max_tokens": max_tokens,
        "fixed_tokens": None,
        "vocab_size": _count(config, "vocab_size", 50257),
    }


def _llama(
    config: Mapping[str, Any],
    *,
    key_value_heads: int | None = None,
    intermediate_size: int = 11008,
    max_tokens: int = 2048,
    vocab_size: int = 32000,
) -> dict[str, Any]:
    """The keywords are defaults of the family; no number of ``key_value_heads`` is as many as queries have."""
    hidden_size = _count(config, "hidden_size", 4096)
    num_heads = _count(config, "num_attention_heads", 32)
    num_key_value_heads = num_heads
    if config.get("num_key_value_heads", key_value_heads) is not None:
        num_key_value_heads = _count(config, "num_key_value_heads", key_value_heads or num_heads)
    if not num_heads or not num_key_value_heads or num_heads % num_key_value_heads or hidden_size % num_heads:
        raise ModelFilesError(
            f"config.json: hidden_size {hidden_size} must be a multiple of num_attention_heads {num_heads}, and that "
            f"of num_key_value_heads {num_key_value_heads}"
        )
    head_width = hidden_size // num_heads
    if _count(config, "head_dim", head_width) != head_width:
        raise UnsupportedModel(
            f"config.json: {num_heads} heads of head_dim {config['head_dim']} are not as wide as hidden_size "
            f"{hidden_size}, which is not supported"
        )
    _refuse_rotation(config)
    return {
        "num_layers": _count(config, "num_hidden_layers", 32),
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "key_value_width": num_key_value_heads * head_width,
        "intermediate_size": _count(config, "intermediate_size", intermediate_size),
        "mlp_matrices": 3,
        "is_causal": True,
        "max_tokens": _count(config, "max_position_embeddings", max_tokens),
        "fixed_tokens": None,
        "vocab_size": _count(config, "vocab_size", vocab_size),
    }


def _qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
    layer_types = config.get("layer_types") or []
    if config.get("use_sliding_window") or "sliding_attention" in layer_types:
        raise UnsupportedModel("config.json asks for a sliding window (use_sliding_window), which is not supported")
    return _llama(config, key_value_heads=32, intermediate_size=22016, max_tokens=32768, vocab_size=151936)


def _refuse_rotation(config: Mapping[str, Any]) -> None:
    """UnsupportedModel for rotary positions that depend on more than a token's position."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}  # before transformers 5: rope_scaling
    if not isinstance(rope, Mapping):
        raise ModelFilesError(f"config.json: rope_parameters must be an object, not {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(
            f"config.json: rotary positions of type {kind!r} are not supported; supported: {', '.join(ROPE_TYPES)}"
        )
    fraction = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if fraction not in (None, 1):
        raise UnsupportedModel(
            f"config.json: a part of each head is rotated (partial_rotary_factor {fraction!r}); only whole heads are "
            "supported"
        )


_READERS = {
    "vit": _vit,
    "deit": _deit,
    "dinov2": _dinov2,
    "bert": _bert,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": _qwen2,
}


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    if not isinstance(named, list) or not named:
        raise UnsupportedModel(
            f'config.json names no architecture under "architectures"; supported: {", ".join(sorted(FAMILY_OF))}'
        )
    architecture = named[0]
    if not isinstance(architecture, str) or architecture not in FAMILY_OF:
        raise unsupported(architecture)
    model_type = config.get("model_type")
    if model_type is not None and model_type != FAMILY_OF[architecture]:
        raise UnsupportedModel(
            f"config.json contradicts itself: architecture {architecture} is of type {FAMILY_OF[architecture]}, "
            f"but its model_type is {model_type!r}"
        )
    return architecture


def _refuse_decoder(config: Mapping[str, Any]) -> None:
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise UnsupportedModel(f"config.json makes this encoder a decoder ({key}), which is not supported")


def _num_labels(config: Mapping[str, Any]) -> int:
    id2label = config.get("id2label")
    if isinstance(id2label, Mapping):
        return len(id2label)
    return _count(config, "num_labels", 2)


def _dtype(config: Mapping[str, Any]) -> str:
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"  # files before transformers 5: torch_dtype
    return str(dtype).removeprefix("torch.")


def _pair(config: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    """A size in pixels as (height, width); config.json may give one number for both."""
    value = config.get(key, default)
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(is_count(side) and side > 0 for side in pair):
        raise ModelFilesError(f"config.json: {key} must be a number of pixels or two of them, not {value!r}")
    return pair[0], pair[1]


def _count(config: Mapping[str, Any], key: str, default: int, alias: str | None = None) -> int:
    """A whole number; ``alias`` is the name that transformers also accepts for the family's own ``key``."""
    value = config.get(key)
    if value is None and alias is not None:
        value = config.get(alias)
    if value is None:
        value = default
    if not is_count(value):
        raise ModelFilesError(f"config.json: {key} must be a whole number, not {value!r}")
    assert isinstance(value, int)
    return value
