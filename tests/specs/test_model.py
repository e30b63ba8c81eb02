"""What config.json says of each family, in the units that counting needs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprism.errors import InputError, ModelFilesError, PlanError, UnsupportedModel
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import SUPPORTED_ARCHITECTURES, ModelSpec, element_bytes_of
from tests.specs.configs import BERT_BASE, GPT2, QWEN2, SMOLLM2, VIT_BASE


def test_vit_base() -> None:
    """ViT-B/16 makes 14 x 14 patches and one CLS token of an image."""
    spec = ModelSpec.from_config(VIT_BASE)
    assert (spec.num_layers, spec.hidden_size, spec.num_heads, spec.intermediate_size) == (12, 768, 12, 3072)
    assert spec.fixed_tokens == spec.max_tokens == 197
    assert spec.patch_embedding_macs == 196 * 768 * 768
    assert spec.num_labels == 1000
    assert not spec.is_causal


def test_bert_base() -> None:
    """BERT-base takes up to 512 tokens and embeds them by looking up, without arithmetic."""
    spec = ModelSpec.from_config(BERT_BASE)
    assert (spec.num_layers, spec.hidden_size, spec.intermediate_size, spec.max_tokens) == (12, 768, 3072, 512)
    assert spec.fixed_tokens is None
    assert spec.patch_embedding_macs == 0
    assert (spec.num_labels, spec.vocab_size) == (0, 30522)


def test_gpt2_names() -> None:
    """GPT-2's own key names are read; its MLP is four times as wide unless n_inner says otherwise."""
    spec = ModelSpec.from_config({**GPT2, "n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 50})
    assert (spec.hidden_size, spec.num_layers, spec.num_heads, spec.max_tokens) == (96, 3, 6, 50)
    assert spec.intermediate_size == 384
    assert spec.is_causal
    assert ModelSpec.from_config({**GPT2, "n_inner": 100}).intermediate_size == 100
    assert ModelSpec.from_config({**GPT2, "n_inner": None}).intermediate_size == 3072


def test_llama_like_decoders_share_keys() -> None:
    """SmolLM2-135M has 3 heads of keys for its 9 of queries, Qwen2-0.5B 2 for 14; each is 64 wide."""
    smol, qwen = ModelSpec.from_config(SMOLLM2), ModelSpec.from_config(QWEN2)
    assert (smol.hidden_size, smol.num_heads, smol.key_value_width, smol.max_tokens) == (576, 9, 192, 8192)
    assert (qwen.hidden_size, qwen.num_heads, qwen.key_value_width, qwen.max_tokens) == (896, 14, 128, 131072)
    assert smol.mlp_matrices == qwen.mlp_matrices == 3
    assert smol.is_causal and smol.generates and qwen.generates
    assert not ModelSpec.from_config({**SMOLLM2, "architectures": ["LlamaModel"]}).generates
    as_many = ModelSpec.from_config({**SMOLLM2, "num_key_value_heads": None})
    assert as_many.key_value_width == 576


def test_exact_sends_whichever_is_narrower() -> None:
    """Keys and values of SmolLM2 are two thirds of a row; with as many heads as queries they are twice as wide."""
    rows, keys_values, int8 = map(CodecSpec.parse, ("exact", "kv:exact", "int8"))
    smol = ModelSpec.from_config(SMOLLM2)
    assert smol.narrower(rows) == smol.narrower(keys_values) == keys_values
    assert smol.narrower(int8) == int8
    assert ModelSpec.from_config({**SMOLLM2, "num_key_value_heads": None}).narrower(rows) == rows


def test_distilbert_names() -> None:
    """DistilBERT has names and a depth of its own."""
    spec = ModelSpec.from_config({"architectures": ["DistilBertModel"], "dim": 64, "n_heads": 4, "hidden_dim": 100})
    assert (spec.hidden_size, spec.num_layers, spec.num_heads, spec.intermediate_size) == (64, 6, 4, 100)


def test_roberta_positions_start_after_padding() -> None:
    """RoBERTa's table of 514 positions serves 512 tokens."""
    config = {"architectures": ["RobertaModel"], "max_position_embeddings": 514, "pad_token_id": 1}
    assert ModelSpec.from_config(config).max_tokens == 512


def test_deit_has_a_distillation_token() -> None:
    """DeiT makes one token more than ViT, also for those checkpoints that do not use it."""
    assert ModelSpec.from_config({"architectures": ["DeiTForImageClassificationWithTeacher"]}).fixed_tokens == 198


def test_dinov2() -> None:
    """DINOv2's MLP width is a ratio; with SwiGLU it has three matrices of two thirds, rounded up to eights."""
    plain = ModelSpec.from_config({"architectures": ["Dinov2Model"], "hidden_size": 384, "num_attention_heads": 6})
    assert (plain.intermediate_size, plain.mlp_matrices, plain.fixed_tokens) == (1536, 2, 257)
    giant = {"architectures": ["Dinov2Model"], "hidden_size": 1536, "num_attention_heads": 24, "use_swiglu_ffn": True}
    assert ModelSpec.from_config(giant).intermediate_size == 4096
    assert ModelSpec.from_config(giant).mlp_matrices == 3


def test_rectangular_images() -> None:
    """Image and patch sizes may be pairs; a remainder that fills no patch is dropped, as the convolution does."""
    spec = ModelSpec.from_config({**VIT_BASE, "image_size": [64, 100], "patch_size": [16, 32]})
    assert spec.fixed_tokens == 4 * 3 + 1
    assert spec.input_values(13) == 12 * 16 * 32 * 3


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_defaults_are_those_of_transformers(architecture: str) -> None:
    """A config.json that omits everything means what transformers' configuration class means."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, architecture).config_class()
    spec = ModelSpec.from_config({"architectures": [architecture]})
    assert spec.model_type == config.model_type
    assert spec.num_layers == config.num_hidden_layers
    assert spec.hidden_size == config.hidden_size
    assert spec.num_heads == config.num_attention_heads
    assert spec == ModelSpec.from_config({**json.loads(config.to_json_string()), "architectures": [architecture]})


@pytest.mark.parametrize("config", [VIT_BASE, BERT_BASE, GPT2, SMOLLM2])
def test_json_round_trip(config: dict[str, Any]) -> None:
    """A spec read from the text of its JSON is the same spec."""
    spec = ModelSpec.from_config(config)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_json_of_another_version_or_shape_is_refused() -> None:
    """A document from elsewhere is refused by name."""
    document = ModelSpec.from_config(VIT_BASE).to_json()
    with pytest.raises(ModelFilesError, match="schema_version 9"):
        ModelSpec.from_json({**document, "schema_version": 9})
    with pytest.raises(ModelFilesError, match="colour"):
        ModelSpec.from_json({**document, "colour": "red"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, r"'MistralForCausalLM' is not supported; supported: .*ViTModel"),
        ({"architectures": []}, "names no architecture"),
        ({}, "names no architecture"),
        ({"architectures": [3]}, "3 is not supported"),
        ({**VIT_BASE, "model_type": "bert"}, "contradicts itself"),
        ({**BERT_BASE, "is_decoder": True}, "is_decoder"),
        ({**GPT2, "add_cross_attention": True}, "cross-attention"),
        ({**QWEN2, "use_sliding_window": True}, "sliding window"),
        ({**QWEN2, "layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({**SMOLLM2, "head_dim": 128}, "9 heads of head_dim 128 are not as wide as hidden_size 576"),
        (
            {**SMOLLM2, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "'dynamic' are not supported; supported:",
        ),
        ({**SMOLLM2, "rope_parameters": {"rope_type": "longrope"}}, "'longrope' are not supported"),
        ({**SMOLLM2, "partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5"),
    ],
)
def test_unsupported_models_are_named(config: dict[str, Any], message: str) -> None:
    """What no adaptor computes is refused, with the list of what is."""
    with pytest.raises(UnsupportedModel, match=message):
        ModelSpec.from_config(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "768"}, "hidden_size must be a whole number"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"num_attention_heads": 7}, "no multiple of the 7"),
        ({"num_attention_heads": 0}, "num_heads must be at least 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"image_size": "big"}, "image_size must be a number of pixels"),
        ({"patch_size": [16]}, "patch_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": 500}, "larger than image_size"),
        ({"torch_dtype": "float99"}, "dtype 'float99'"),
        ({"intermediate_size": 10**40}, "intermediate_size"),
    ],
)
def test_nonsense_in_config_is_named(change: dict[str, Any], message: str) -> None:
    """A broken config.json is refused by the key that is broken."""
    with pytest.raises(ModelFilesError, match=message):
        ModelSpec.from_config({**VIT_BASE, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 0},
        {"num_attention_heads": 0},
        {"num_attention_heads": 7},
        {"rope_parameters": "yarn"},
        {"head_dim": "64"},
    ],
)
def test_nonsense_in_a_llama_config_is_named(change: dict[str, Any]) -> None:
    """Heads that do not divide, or keys of the wrong kind, are refused by name."""
    with pytest.raises(ModelFilesError, match=next(iter(change))):
        ModelSpec.from_config({**SMOLLM2, **change})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.sampled_from(SUPPORTED_ARCHITECTURES),
    st.dictionaries(
        st.sampled_from(sorted({*VIT_BASE, *BERT_BASE, *GPT2, *QWEN2, "mlp_ratio", "dtype", "rope_parameters"})),
        json_values,
    ),
)
def test_any_config_is_read_or_refused(architecture: str, config: dict[str, Any]) -> None:
    """Whatever JSON stands in config.json, the only errors are ours."""
    with suppress(InputError):
        ModelSpec.from_config({**config, "architectures": [architecture]})


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "float16"}, "float16"), ({"torch_dtype": None}, "float32")],
)
def test_dtype_keys_old_and_new(dtype: dict[str, Any], expected: str) -> None:
    """transformers 5 writes dtype, earlier releases wrote torch_dtype."""
    assert ModelSpec.from_config({**VIT_BASE, **dtype}).dtype == expected


def test_directory_is_read_without_weights(tmp_path: Path) -> None:
    """config.json alone is enough."""
    (tmp_path / "config.json").write_text(json.dumps(VIT_BASE), encoding="utf-8")
    assert ModelSpec.from_directory(tmp_path) == ModelSpec.from_config(VIT_BASE)


def test_directories_without_a_usable_config_are_refused(tmp_path: Path) -> None:
    """No directory, no config.json, no JSON, no object: each is said as it is."""
    with pytest.raises(ModelFilesError, match="is no directory"):
        ModelSpec.from_directory(tmp_path / "absent")
    with pytest.raises(ModelFilesError, match=r"has no config\.json"):
        ModelSpec.from_directory(tmp_path)
    config = tmp_path / "config.json"
    for content in (b"{", b"\xff\xfe\xff", b"[" * 100_000):
        config.write_bytes(content)
        with pytest.raises(ModelFilesError, match="is not JSON"):
            ModelSpec.from_directory(tmp_path)
    config.write_text("[]", encoding="utf-8")
    with pytest.raises(ModelFilesError, match="JSON object"):
        ModelSpec.from_directory(tmp_path)


def test_lengths_are_checked() -> None:
    """Text up to the positions there are; images as they come, except where positions are interpolated."""
    bert, vit = ModelSpec.from_config(BERT_BASE), ModelSpec.from_config(VIT_BASE)
    dinov2 = ModelSpec.from_config({"architectures": ["Dinov2Model"]})
    bert.check_num_tokens(512)
    vit.check_num_tokens(197)
    dinov2.check_num_tokens(65)
    for spec, num_tokens in ((bert, 513), (bert, 0), (vit, 196), (dinov2, 1), (dinov2, 2**40)):
        with pytest.raises(PlanError, match=f"not {num_tokens}"):
            spec.check_num_tokens(num_tokens)


def test_bytes_of_dtypes() -> None:
    """Only dtypes that a model computes in have a size."""
    assert [element_bytes_of(name) for name in ("float32", "bfloat16", "float16")] == [4, 2, 2]
    with pytest.raises(PlanError, match="unknown dtype 'int8'; use one of float32"):
        element_bytes_of("int8")
