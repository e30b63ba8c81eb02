"""Causal language models: what is scored, against transformers' own logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Cloze, Dataset
from edgeprism.evaluate.language import ClozeQuestions, Stream
from edgeprism.evaluate.metrics import METRICS
from edgeprism.evaluate.task import Task
from edgeprism.specs.model import ModelSpec
from tests.cli.test_run import WORDS, tokenizer
from tests.families import expected, make

MODEL = make("GPT2LMHeadModel", vocab_size=len(WORDS))
SPEC = ModelSpec.from_config(MODEL.config.to_dict())
TEXT = "a cat sat on the mat the dog went home again today a cat sat on a mat " * 4


def running(text: str = TEXT) -> Dataset:
    """A text to be cut into windows."""
    return Dataset(name="wikitext2", split="valid", kind="stream", inputs=[text], targets=None)


def kept_of(task: Task, batch: int) -> list[Any]:
    """What the task keeps of one device's outputs, in the order of the samples."""
    kept: dict[int, Any] = {}
    for part in task.batches(batch):
        assert part.num_tokens == part.inputs["input_ids"].shape[1] and len(part.samples) <= batch
        kept.update(zip(part.samples, task.read(expected(MODEL, part.inputs), part), strict=True))
    assert sorted(kept) == list(range(task.num_samples))
    return [kept[number] for number in range(task.num_samples)]


def loss(ids: torch.Tensor) -> float:
    """The loss that transformers itself gives for predicting each token of ``ids`` but the first."""
    with torch.no_grad():
        return float(MODEL(input_ids=ids[None], labels=ids[None]).loss)


def test_perplexity_is_that_of_transformers() -> None:
    """Over whole windows, where there is one partition; the tokens left over at the end are not used."""
    task = Stream(running(), tokenizer(), SPEC, window=10, last_start=0, limit=None)
    assert task.num_inputs == 7
    ids = torch.tensor(tokenizer()(TEXT)["input_ids"])[:70].reshape(7, 10)
    wanted = math.exp(sum(loss(window) for window in ids) / 7)
    answers = task.answers(kept_of(task, 3))
    found = float(METRICS["perplexity"](answers, np.zeros(7))(np.ones((1, 7)))[0])
    assert found == pytest.approx(wanted, rel=1e-5)


def test_only_what_the_last_partition_predicts_is_scored() -> None:
    """Rows 6 to 8 of 10 predict tokens 7 to 9; token 6 is predicted by the partition before."""
    task = Stream(running(), tokenizer(), SPEC, window=10, last_start=6, limit=2)
    answers = task.answers(kept_of(task, 2))
    ids = torch.tensor(tokenizer()(TEXT)["input_ids"])[:20].reshape(2, 10)
    logits = expected(MODEL, {"input_ids": ids})["logits"].log_softmax(-1)
    by_hand = [-float(sum(logits[window, row, ids[window, row + 1]] for row in (6, 7, 8))) / 3 for window in (0, 1)]
    assert answers.losses is not None and answers.losses.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert answers.predictions.tolist() == logits[:, 6:9].argmax(-1).tolist()
    assert task.notes == ("2 windows of 10 tokens; 3 of each are scored, those of the last partition",)


@pytest.mark.parametrize(
    ("text", "window", "last_start", "message"),
    [
        (TEXT, 41, 20, "--window must be from 2 to this model's 40 tokens, not 41"),
        (TEXT, 10, 9, "the last partition of 10 tokens begins at 9: it predicts none of its own"),
        ("a cat", 10, 5, "wikitext2 valid has 2 tokens, less than one window of 10"),
    ],
)
def test_windows_that_cannot_be(text: str, window: int, last_start: int, message: str) -> None:
    """One line each."""
    with pytest.raises(InputError, match=message):
        Stream(running(text), tokenizer(), SPEC, window=window, last_start=last_start, limit=None)


def questions(*given: Cloze) -> Dataset:
    """Cloze questions."""
    targets = np.array([question.answer for question in given])
    return Dataset(name="cbt-cn", split="valid", kind="cloze", inputs=given, targets=targets)


def likelihood(text: str, first: int, words: PreTrainedTokenizerFast) -> float:
    """Of the tokens from ``first`` on, given those before."""
    ids = torch.tensor(words(text)["input_ids"])
    logits = expected(MODEL, {"input_ids": ids[None]})["logits"][0].log_softmax(-1)
    return float(sum(logits[place - 1, ids[place]] for place in range(first, len(ids))))


def test_the_likeliest_candidate_is_the_answer() -> None:
    """By what follows the gap as well; candidates may be of several tokens, and texts of different length."""
    first = Cloze(before="the cat sat on the", after="again today", candidates=("mat", "dog", "home home"), answer=0)
    second = Cloze(before="a dog went", after="", candidates=("cat", "home"), answer=1)
    task = ClozeQuestions(questions(first, second), tokenizer(), SPEC)
    assert (task.num_inputs, task.num_samples, task.input_of(4)) == (2, 5, 1)
    kept = kept_of(task, 2)
    by_hand = [likelihood(f"the cat sat on the {word} again today", 5, tokenizer()) for word in first.candidates]
    by_hand += [likelihood(f"a dog went {word}", 3, tokenizer()) for word in second.candidates]
    assert kept == pytest.approx(by_hand, rel=1e-4)
    wanted = [int(np.argmax(by_hand[:3])), int(np.argmax(by_hand[3:]))]
    assert task.answers(kept).predictions.tolist() == wanted
    assert kept == pytest.approx(kept_of(task, 1), rel=1e-4), "no matter what else is in the batch"


def test_a_long_text_loses_its_beginning() -> None:
    """The gap is at its end, and what is scored stays."""
    question = Cloze(before=TEXT, after="again", candidates=("mat", "dog"), answer=0)
    task = ClozeQuestions(questions(question), tokenizer(), SPEC)
    assert task.notes == ("1 questions are longer than 40 tokens and lost their beginning",)
    assert all(part.num_tokens == 40 for part in task.batches(1))
    tail = " ".join(TEXT.split()[-38:])
    by_hand = [likelihood(f"{tail} {word} again", 38, tokenizer()) for word in question.candidates]
    assert kept_of(task, 2) == pytest.approx(by_hand, rel=1e-4)
