"""Running text to train on: which rows count, against transformers' own logits, and what cannot be used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprism.errors import InputError, PlanError
from edgeprism.evaluate import windows
from edgeprism.evaluate.build import make_examples
from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.language import Stream
from edgeprism.evaluate.metrics import METRICS
from edgeprism.evaluate.trainable import with_codec, without_codec
from edgeprism.evaluate.windows import Windows
from edgeprism.models.load import load_pretrained
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.tasks.inputs import load_tokenizer
from tests.evaluate.tiny import running_text, write_model_directory
from tests.families import VOCABULARY

ARCHITECTURES = ("GPT2LMHeadModel", "LlamaForCausalLM")
WINDOW, FIRST = 16, {2: 8, 3: 5}
"""Where the second of P partitions begins."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models with their tokenizer."""
    root = tmp_path_factory.mktemp("windows")
    for architecture in ARCHITECTURES:
        write_model_directory(architecture, root / architecture)
    write_model_directory("BertForSequenceClassification", root / "bert")
    return root


def stream(text: str) -> Dataset:
    """A running text."""
    return Dataset(name="text", split="all", kind="stream", inputs=[text], targets=None)


def made(directory: Path, *, codec: str = "means:4", devices: int = 2, window: int = WINDOW, text: str = "") -> Any:
    """Six windows, unless a text is given."""
    spec, data = ModelSpec.from_directory(directory), stream(text or running_text(6))
    return make_examples(data, directory, spec, CodecSpec.parse(codec), devices, window)


def by_hand(logits: Tensor, ids: Tensor, first: int) -> float:
    """Mean loss of the tokens after ``first``."""
    return float(F.cross_entropy(logits[:, first:-1].flatten(0, 1), ids[:, first + 1 :].flatten()))


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_over_the_rows_that_see_the_codec(root: Path, architecture: str, devices: int) -> None:
    """Of all partitions but the first: next tokens, or the teacher's distributions over the vocabulary."""
    examples = made(root / architecture, devices=devices)
    student, teacher = (load_pretrained(str(root / architecture)) for _ in range(2))
    inputs, ids = examples.batch([4, 1, 0])
    with_codec(student, "means:4", devices)
    with torch.no_grad():
        got, wanted = student(input_ids=ids).logits, teacher(input_ids=ids).logits
        task = examples.loss(student, None, inputs, ids, dtype="float32", temperature=1.0)
        distil = examples.loss(student, teacher, inputs, ids, dtype="float32", temperature=1.0)
    assert float(task) == pytest.approx(by_hand(got, ids, FIRST[devices]), rel=1e-5)
    p, q = (x[:, FIRST[devices] : -1].log_softmax(-1) for x in (wanted, got))
    assert float(distil) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    same = examples.loss(without_codec(student), teacher, inputs, ids, dtype="float32", temperature=1.0)
    assert float(same.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("has_teacher", [True, False])
def test_chunks_change_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, has_teacher: bool) -> None:
    """Loss and gradients of a batch whose logits are made five rows at a time are those of all at once."""
    directory = root / "GPT2LMHeadModel"
    teacher = load_pretrained(str(directory)) if has_teacher else None
    losses, gradients = [], []
    for at_once in (1000, 5):
        monkeypatch.setattr(windows, "MAX_LOGITS", at_once * VOCABULARY)
        student = with_codec(load_pretrained(str(directory)), "means:4", 2)
        examples = made(directory)
        loss = examples.loss(student, teacher, *examples.batch([0, 3]), dtype="float32", temperature=2.0)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[0] > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("devices", [2, 3])
def test_the_score_is_what_evaluate_measures(root: Path, devices: int) -> None:
    """The perplexity of the same windows' last partitions."""
    directory = root / "LlamaForCausalLM"
    examples, model = made(directory, devices=devices), load_pretrained(str(directory))
    with_codec(model, "means:4", devices)
    last = {2: 8, 3: 10}[devices]
    spec, words = ModelSpec.from_directory(directory), load_tokenizer(directory)
    task = Stream(stream(running_text(6)), words, spec, window=WINDOW, last_start=last, limit=None)
    with torch.no_grad():
        kept = [one for part in task.batches(4) for one in task.read(dict(model(**part.inputs)), part)]
    wanted = float(METRICS["perplexity"](task.answers(kept), np.zeros(6))(np.ones((1, 6)))[0])
    assert examples.score(model, examples.indices, "float32") == pytest.approx(wanted, rel=1e-5)
    assert math.isfinite(wanted) and wanted > 2


def test_every_window_once_in_an_order_of_the_seed(root: Path) -> None:
    """Windows follow one another in the text; those of a batch are drawn."""
    examples = made(root / "GPT2LMHeadModel")
    assert isinstance(examples, Windows) and examples.indices == [0, 1, 2, 3, 4, 5]
    assert examples.batches(examples.indices, 4) == [[0, 1, 2, 3], [4, 5]]
    drawn = [examples.batches(examples.indices, 4, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2] and sorted(drawn[0][0] + drawn[0][1]) == examples.indices
    words = running_text(6).split()
    tokenizer = load_tokenizer(root / "GPT2LMHeadModel")
    assert tokenizer.decode(examples.batch([2])[1][0]) == " ".join(words[32:48])


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "long": ({"window": 41}, InputError, "--window must be from 2 to this model's 40 tokens, not 41"),
    "short": ({"window": 2}, InputError, "2 tokens begins at 1: it predicts none of its own"),
    "less than devices": ({"window": 1}, PlanError, "more devices than tokens"),
    "text": ({"text": "a cat sat"}, InputError, "text all has 3 tokens, less than one window of 16"),
    "codec": ({"codec": "means:12"}, PlanError, "use a rate of at most 8"),
}


@pytest.mark.parametrize(("given", "error", "message"), WRONG.values(), ids=WRONG)
def test_windows_that_cannot_be_used(root: Path, given: dict[str, Any], error: type[Exception], message: str) -> None:
    """One line each."""
    with pytest.raises(error, match=message):
        made(root / "GPT2LMHeadModel", **given)


def test_models_that_predict_no_text(root: Path) -> None:
    """A classifier has no next token."""
    with pytest.raises(InputError, match="needs a causal language model; BertForSequenceClassification is none"):
        made(root / "bert")
