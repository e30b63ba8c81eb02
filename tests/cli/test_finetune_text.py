"""`edgeprism finetune` of causal language models on running text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import edgeprism
from edgeprism.cli.main import main
from edgeprism.evaluate.finetune import Trainer
from tests.evaluate.tiny import learn, running_text, write_data, write_model_directory

NUM_WINDOWS, NUM_HELD_OUT, WINDOW = 420, 20, 16
TINY = ("--batch", "4", "--steps", "6", "--checkpoint-every", "2", "--hold-out", "0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that have learned the text, one that has not and has dropout, and texts."""
    root = tmp_path_factory.mktemp("finetune-text")
    learn("GPT2LMHeadModel", root / "gpt2")
    learn("LlamaForCausalLM", root / "llama")
    write_model_directory("GPT2LMHeadModel", root / "dropout", resid_pdrop=0.1, attn_pdrop=0.1, embd_pdrop=0.1)
    write_model_directory("BertForSequenceClassification", root / "bert")
    words = running_text(NUM_WINDOWS).split()
    cut = WINDOW * (NUM_WINDOWS - NUM_HELD_OUT)
    (root / "novel").mkdir()
    (root / "novel" / "1.txt").write_text(" ".join(words[: cut // 2]))
    (root / "novel" / "2.txt").write_text(" ".join(words[cut // 2 :]))
    (root / "held-out.txt").write_text(" ".join(words[cut:]))
    (root / "empty.txt").write_text(" \n")
    (root / "few.txt").write_text("a cat sat")
    (root / "latin-1.txt").write_bytes("a cat\nsat o\xf9\n".encode("latin-1"))
    write_data(root / "data")
    return root


def finetune(root: Path, output: Path, *options: str, model: str = "gpt2") -> int:
    """The command's exit status."""
    words = ["finetune", str(root / model), "--dataset", "text", "--data", str(root / "novel"), "--output", str(output)]
    given = ("--window", str(WINDOW), "--codec", "means:4", "--device", "cpu", *options)
    return main([*words, *given])


def evaluate(root: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `edgeprism evaluate` measures on the held-out text."""
    given = ["--dataset", "text", "--data", str(root / "held-out.txt"), "--window", str(WINDOW), "--codec", "means:4"]
    assert main(["evaluate", str(model), *given, "--json", "--accuracy-file", str(model / "accuracy.json")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_inputs"] == NUM_HELD_OUT
    return dict(document["results"][0])


@pytest.mark.parametrize("loss", ["distil", "task"])
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_means_cost_less_afterwards(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, loss: str
) -> None:
    """The codec's perplexity on text that was held out comes down most of the way to what one device had; `edgeprism
    evaluate` measures the same, before and after, on devices."""
    options = ("--loss", loss, "--steps", "60", "--batch", "16", "--lr", "3e-3", "--hold-out", str(NUM_HELD_OUT))
    assert finetune(root, tmp_path / "out", *options, "--json", model=model) == 0
    document = json.loads(capsys.readouterr().out)
    held_out = document["held_out"]
    assert document["num_examples"] == NUM_WINDOWS - NUM_HELD_OUT and document["window"] == WINDOW
    assert held_out["measure"] == "perplexity" and held_out["num_inputs"] == NUM_HELD_OUT
    lost = [math.log(held_out[f"{when}codec"] / held_out["one_device"]) for when in ("", "finetuned_")]
    assert lost[0] > 0.02 and lost[1] < 0.3 * lost[0]
    for directory, when in ((root / model, ""), (tmp_path / "out", "finetuned_")):
        measured = evaluate(root, directory, capsys)
        assert measured["exact"] == pytest.approx(held_out[f"{when}one_device"], rel=1e-4)
        assert measured["value"] == pytest.approx(held_out[f"{when}codec"], rel=1e-4)


def test_an_ordinary_directory(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other weights in blocks, the same embedding and norms, a tokenizer; it generates."""
    assert finetune(root, tmp_path / "out", *TINY, "--loss", "task") == 0
    assert "trained 6 steps" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"], "nothing is left beside it"
    before, after = (load_file(folder / "model.safetensors") for folder in (root / "gpt2", tmp_path / "out"))
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 12 and all(".h." in name and before[name].ndim == 2 for name in changed)
    with edgeprism.load(str(tmp_path / "out")) as engine:
        assert engine.generate(torch.tensor([[2, 4, 7]]), max_new_tokens=2).shape == (1, 5)


class _BrokenOffError(Exception):
    """In the middle of a run."""


@pytest.mark.parametrize(
    ("model", "options"),
    [("dropout", ("--full", "--loss", "task")), ("llama", ("--dtype", "bfloat16", "--codec", "kv:int4"))],
    ids=["full", "low-rank"],
)
def test_goes_on_to_the_same_bits(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, options: tuple[str, ...]
) -> None:
    """Broken off after step 5, with a checkpoint of step 4, it ends with the bytes of a run that was not; windows of
    another length are another run."""
    assert finetune(root, tmp_path / "whole", *TINY, *options, model=model) == 0
    step = Trainer._step

    def breaks(self: Trainer, number: int, indices: Any) -> float:
        if number == 5:
            raise _BrokenOffError
        return step(self, number, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", breaks)
        with pytest.raises(_BrokenOffError):
            finetune(root, tmp_path / "parts", *TINY, *options, model=model)
    assert finetune(root, tmp_path / "parts", *TINY, *options, "--resume", "--window", "20", model=model) == 2
    assert finetune(root, tmp_path / "parts", *TINY, *options, "--resume", model=model) == 0
    assert finetune(root, tmp_path / "seed", *TINY, *options, "--seed", "1", model=model) == 0
    whole, parts, other = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts", "seed"))
    assert whole == parts != other


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "window": (("--window", "41"), "--window must be from 2 to this model's 40 tokens, not 41"),
    "no window": (("--window", "0"), "--window must be at least 1, not 0"),
    "codec": (("--codec", "means:12"), "use a rate of at most 8"),
    "empty": (("--data", "empty.txt"), "it is empty"),
    "few": (("--data", "few.txt"), "has 3 tokens, less than one window of 16"),
    "not UTF-8": (("--data", "latin-1.txt"), "latin-1.txt, line 2: it is not UTF-8"),
    "no text": (("--data", "data"), "has no text (all) in it; running text is a file in UTF-8, or a folder"),
    "no data": (("--data", "none"), "does not exist"),
    "labels": (("--dataset", "sst2", "--data", "data"), "sst2 needs a model that classifies texts; GPT2LMHeadModel"),
    "held out": (("--hold-out", "420"), "leaves none of the 420 inputs"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_used(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    """Exit status 2, one line, and no file."""
    named = [str(root / word) if (root / word).exists() or word == "none" else word for word in options]
    assert finetune(root, tmp_path / "out", *named) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "loading torch" not in line]
    assert len(lines) == 1 and message in lines[0] and lines[0].startswith("edgeprism: ")
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_has_no_next_token(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is named."""
    assert finetune(root, tmp_path / "out", model="bert") == 2
    assert "needs a causal language model; BertForSequenceClassification is none" in capsys.readouterr().err
