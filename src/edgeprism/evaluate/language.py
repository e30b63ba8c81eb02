"""Causal language models: running texts by their perplexity, cloze questions by the likelihood of each candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Cloze, Dataset
from edgeprism.evaluate.metrics import Answers
from edgeprism.evaluate.task import Batch, Task, of_equal_length
from edgeprism.specs.model import ModelSpec

MAX_LOGITS = 2**26
"""In one batch: 256 MB in float32."""


def losses_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood (batch, tokens - 1) in nats of each token but the first, given those before it.

    ``logits`` (batch, tokens, vocabulary), ``ids`` (batch, tokens).
    """
    rows = logits[:, :-1].float()
    true = ids[:, 1:, None].to(rows.device)
    return (rows.logsumexp(-1) - rows.gather(-1, true)[..., 0]).cpu()


def cut_windows(
    dataset: Dataset, tokenizer: Any, spec: ModelSpec, *, window: int, last_start: int
) -> Int[Tensor, "windows tokens"]:
    """A running text in ids, cut into windows one after the other; what is left at its end is dropped. InputError where
    there is no window, or the last partition, which begins at ``last_start``, predicts nothing."""
    if not 2 <= window <= spec.max_tokens:
        raise InputError(f"--window must be from 2 to this model's {spec.max_tokens} tokens, not {window}")
    if last_start > window - 2:
        raise InputError(f"the last partition of {window} tokens begins at {last_start}: it predicts none of its own")
    ids = tokenizer(dataset.inputs[0], add_special_tokens=False)["input_ids"]
    count = len(ids) // window
    if not count:
        raise InputError(f"{dataset.name} {dataset.split} has {len(ids)} tokens, less than one window of {window}")
    return torch.tensor(ids[: count * window]).reshape(count, window)


class Stream(Task):
    """A running text in windows of equal length; an input is a window.

    Scored are the tokens that the last partition predicts: all but its first, which is predicted by a row of the one
    before. In a causal model only the last partition has seen everything through the codec.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: Any, spec: ModelSpec, *, window: int, last_start: int, limit: int | None
    ) -> None:
        self._windows = cut_windows(dataset, tokenizer, spec, window=window, last_start=last_start)[:limit]
        count = len(self._windows)
        self._first = last_start  # the row that predicts token first + 1
        self._max_batch = max(1, MAX_LOGITS // (window * max(1, spec.vocab_size)))
        self.num_inputs = self.num_samples = count
        scored = window - 1 - last_start
        self.notes = (f"{count} windows of {window} tokens; {scored} of each are scored, those of the last partition",)

    def batches(self, size: int) -> Iterator[Batch]:
        for windows in torch.arange(self.num_inputs).split(min(size, self._max_batch)):
            ids = self._windows[windows]
            yield Batch(samples=windows.tolist(), inputs={"input_ids": ids}, num_tokens=ids.shape[1])

    def read(self, output: Mapping[str, Any], batch: Batch) -> list[Any]:
        logits, ids = output["logits"][:, self._first :], batch.inputs["input_ids"][:, self._first :]
        losses, best = losses_of(logits, ids).double().mean(-1), logits[:, :-1].argmax(-1).cpu()
        return list(zip(losses.tolist(), best.numpy().astype(np.int64), strict=True))

    def answers(self, kept: Sequence[Any]) -> Answers:
        losses, best = zip(*kept, strict=True)
        return Answers(predictions=np.stack(best), losses=np.array(losses, dtype=np.float64))


class ClozeQuestions(Task):
    """Each candidate is put into the gap; that one is the answer with which the text from there on is likeliest.

    Scored are the tokens after those that all candidates' texts begin with, so each one as the tokenizer cuts it there.
    A text longer than the model's positions loses its beginning.
    """

    def __init__(self, dataset: Dataset, tokenizer: Any, spec: ModelSpec) -> None:
        self.num_inputs = len(dataset.inputs)
        self._tokens: list[dict[str, list[int]]] = []
        self._common: list[int] = []
        self._inputs_of: list[int] = []
        self._vocab_size = max(1, spec.vocab_size)
        num_cut = 0
        for number, question in enumerate(dataset.inputs):
            filled = [_filled(question, word) for word in question.candidates]
            texts = tokenizer(filled, add_special_tokens=False)["input_ids"]
            common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False)))
            num_cut += max(map(len, texts)) > spec.max_tokens
            for ids in texts:
                dropped = max(0, len(ids) - spec.max_tokens)
                self._tokens.append({"input_ids": ids[dropped:]})
                self._common.append(max(1, common - dropped))
                self._inputs_of.append(number)
        self.num_samples = len(self._tokens)
        if num_cut:
            self.notes = (f"{num_cut} questions are longer than {spec.max_tokens} tokens and lost their beginning",)

    def input_of(self, sample: int) -> int:
        return self._inputs_of[sample]

    def batches(self, size: int) -> Iterator[Batch]:
        longest = max(len(tokens["input_ids"]) for tokens in self._tokens)
        return of_equal_length(self._tokens, min(size, max(1, MAX_LOGITS // (longest * self._vocab_size))))

    def read(self, output: Mapping[str, Any], batch: Batch) -> list[Any]:
        starts = [self._common[sample] - 1 for sample in batch.samples]  # the rows that predict the first scored tokens
        first = min(starts)
        losses = losses_of(output["logits"][:, first:], batch.inputs["input_ids"][:, first:]).double()
        return [-float(row[start - first :].sum()) for row, start in zip(losses, starts, strict=True)]

    def answers(self, kept: Sequence[Any]) -> Answers:
        best: dict[int, tuple[float, int]] = {}
        place, before = 0, -1
        for number, likelihood in zip(self._inputs_of, kept, strict=True):
            place, before = (place + 1 if number == before else 0), number
            if number not in best or likelihood > best[number][0]:
                best[number] = (likelihood, place)
        return Answers(predictions=np.array([best[number][1] for number in range(self.num_inputs)], dtype=np.int64))


def _filled(question: Cloze, word: str) -> str:
    return " ".join(part for part in (question.before, word, question.after) if part)
