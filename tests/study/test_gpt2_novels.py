"""A GPT-2 trained from nothing: what is written, that it learns, and that a seed gives the same weights."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeprism
from edgeprism.specs.model import ModelSpec
from edgeprism.tasks.inputs import load_tokenizer
from study import gpt2_novels
from study.gpt2_novels import Settings
from tests.evaluate.tiny import running_text

TINY = Settings(num_entries=300, num_layers=2, width=32, num_heads=2, window=48, num_steps=60, learning_rate=5e-3)
TEXTS = {
    split: running_text(number, seed=seed).replace("good", "“Good!”")
    for split, number, seed in (("train", 300, 0), ("valid", 30, 9))
}


def test_the_directory_is_a_gpt2_that_has_learned(tmp_path: Path) -> None:
    """It loads, generates, tells its own perplexity, and is used again; any character has tokens."""
    out = gpt2_novels.build(tmp_path / "cache" / "gpt2", TINY, TEXTS)
    account = json.loads((out / "training.json").read_text())
    assert account["num_tokens_seen"] == 60 * 4 * 48 and account["settings"]["seed"] == 20
    assert account["held_out_perplexity"] < 0.1 * account["num_entries"]
    assert len(account["weights_sha256_here"]) == 64
    spec = ModelSpec.from_directory(out)
    assert spec.architecture == "GPT2LMHeadModel" and spec.max_tokens == 48
    tokenizer = load_tokenizer(out)
    ids = tokenizer("“Good!” ½ a cat")["input_ids"]
    assert tokenizer.decode(ids) == "“Good!” ½ a cat" and len(tokenizer) == account["num_entries"] == spec.vocab_size
    with edgeprism.load(str(out)) as engine:
        assert engine.generate(torch.tensor([ids]), max_new_tokens=3).shape == (1, len(ids) + 3)
    assert gpt2_novels.build(out, texts={}) == out, "nothing is trained again"


def test_weights_are_those_of_the_seed() -> None:
    """The same twice; others of another seed. Training makes a difference."""
    settings = replace(TINY, num_steps=2)
    tokenizer = gpt2_novels.learn_tokens(TEXTS["train"], settings)
    models = [
        gpt2_novels.train(TEXTS, tokenizer, chosen)[0] for chosen in (settings, settings, replace(settings, seed=1))
    ]
    first, again, other = (model.transformer.h[0].attn.c_attn.weight for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_perplexity_is_a_tokens() -> None:
    """Of a model that knows nothing: about the number of entries."""
    tokenizer = gpt2_novels.learn_tokens(TEXTS["train"], TINY)
    model, account = gpt2_novels.train(TEXTS, tokenizer, replace(TINY, num_steps=0))
    assert account["held_out_perplexity"] == pytest.approx(len(tokenizer), rel=0.1)
    assert math.isfinite(model.num_parameters())


def test_a_directory_of_somebody_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One line, exit status 2."""
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["gpt2_novels", "--out", str(tmp_path)])
    assert gpt2_novels.main() == 2
    error = capsys.readouterr().err
    assert "was not written by study.gpt2_novels" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    monkeypatch.setattr(sys, "argv", ["gpt2_novels", "--steps", "0"])
    with pytest.raises(SystemExit, match="2"):
        gpt2_novels.main()
    assert "--steps must be at least 1, not 0" in capsys.readouterr().err
