"""Running text in windows, to train causal language models on.

What counts are the rows of all partitions but the first, which see earlier ones through the codec. The first partition
computes what one device would: its rows have nothing to learn of a codec. Scored are those of the last partition only,
as `edgeprism evaluate` does.

The head runs on these rows alone, some of them at a time: a batch has rows x vocabulary logits, several times over in
a backward pass. Where there is more than one chunk, each is computed again for its gradients (Chen et al., 2016).
Measured with 50,257 entries, two blocks 256 wide, a batch of 4 x 512 tokens: 0.7 GB instead of 1.6, in the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.examples import Examples, Indices
from edgeprism.evaluate.labels import check_head
from edgeprism.evaluate.language import cut_windows
from edgeprism.evaluate.losses import divergence, products_in
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.strategies.sequence.partition import token_bounds
from edgeprism.tasks.inputs import Batch, load_tokenizer

MAX_LOGITS = 2**24
"""In one chunk: 64 MB in float32."""
SCORED_AT_ONCE = 4


class Windows(Examples):
    """Windows of ``window`` tokens; an input is a window, and its targets are its own tokens. InputError where the
    model is no causal language model, or the text or the window cannot be used; PlanError where the codec cannot."""

    measure = "perplexity"
    trains_head = False  # it is no small layer, and mostly the embedding itself
    default_batch, most_held_out = 4, 50

    def __init__(
        self, data: Dataset, directory: Path, spec: ModelSpec, codec: CodecSpec, num_devices: int, window: int
    ) -> None:
        check_head(data, spec)
        bounds = token_bounds(window, (1 / num_devices,) * num_devices)
        self._first, self._last = bounds[1][0], bounds[-1][0]
        self._windows = cut_windows(data, load_tokenizer(directory), spec, window=window, last_start=self._last)
        for start, stop in bounds:
            codec.num_rows(stop - start)
        self.indices = list(range(len(self._windows)))
        self.about: dict[str, Any] = {"window": window}
        self._rows_at_once = max(1, MAX_LOGITS // spec.vocab_size)

    def batches(self, indices: Indices, size: int, rng: np.random.Generator | None = None) -> list[Indices]:
        order = list(indices) if rng is None else rng.permutation(np.asarray(indices)).tolist()
        return [order[i : i + size] for i in range(0, len(order), size)]

    def batch(self, indices: Indices) -> tuple[Batch, Tensor]:
        ids = self._windows[list(indices)]
        return {"input_ids": ids}, ids

    def loss(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        inputs: Batch,
        targets: Tensor,
        *,
        dtype: str,
        temperature: float,
    ) -> Tensor:
        """Nats a token."""
        rows, true = _predicting(student, inputs, self._first, dtype), _predicted(targets, self._first)
        if teacher is None:
            return self._sum(partial(_surprise, student, dtype), rows, true) / len(rows)
        with torch.no_grad():
            wanted = _predicting(teacher, inputs, self._first, dtype)
        return self._sum(partial(_divergence, student, teacher, dtype, temperature), rows, wanted) / len(rows)

    @torch.no_grad()
    def score(self, model: PreTrainedModel, indices: Indices, dtype: str) -> float:
        """Perplexity over the tokens that the last partition predicts."""
        total, num_tokens = 0.0, 0
        for part in self.batches(indices, SCORED_AT_ONCE):
            inputs, targets = self.batch(part)
            rows = _predicting(model, {"input_ids": inputs["input_ids"].to(model.device)}, self._last, dtype)
            true = _predicted(targets.to(model.device), self._last)
            total += float(self._sum(partial(_surprise, model, dtype), rows, true))
            num_tokens += len(true)
        return math.exp(total / num_tokens)

    def _sum(self, loss_of: Callable[[Tensor, Tensor], Tensor], rows: Tensor, against: Tensor) -> Tensor:
        """The sum of ``loss_of`` over chunks of both."""
        chunks = list(zip(rows.split(self._rows_at_once), against.split(self._rows_at_once), strict=True))
        if len(chunks) == 1 or not torch.is_grad_enabled():
            return torch.stack([loss_of(*chunk) for chunk in chunks]).sum()
        losses = [checkpoint(loss_of, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        return torch.stack(losses).sum()


def _predicting(model: PreTrainedModel, inputs: Batch, first: int, dtype: str) -> Float[Tensor, "rows width"]:
    """The rows, before the head, that predict the tokens after ``first``: all from there on but the last."""
    with products_in(dtype, model):
        rows: Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
    return rows[:, first:-1].flatten(0, 1)


def _predicted(ids: Int[Tensor, "batch tokens"], first: int) -> Int[Tensor, " rows"]:
    return ids[:, first + 1 :].flatten()


def _logits(model: PreTrainedModel, rows: Tensor, dtype: str) -> Float[Tensor, "rows vocabulary"]:
    with products_in(dtype, model):
        return model.get_output_embeddings()(rows).float()  # type: ignore[no-any-return]


def _surprise(model: PreTrainedModel, dtype: str, rows: Tensor, true: Tensor) -> Tensor:
    return F.cross_entropy(_logits(model, rows, dtype), true, reduction="sum")


def _divergence(
    student: PreTrainedModel, teacher: PreTrainedModel, dtype: str, temperature: float, rows: Tensor, wanted: Tensor
) -> Tensor:
    with torch.no_grad():
        answers = _logits(teacher, wanted, dtype)
    return divergence(_logits(student, rows, dtype), answers, temperature) * len(rows)
