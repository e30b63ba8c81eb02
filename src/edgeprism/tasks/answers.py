"""A model's outputs as answers: labels with their probabilities, embeddings, words for a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.utils import ModelOutput

from edgeprism.errors import InputError
from edgeprism.specs.model import ModelSpec

Answer = dict[str, Any]


def task_of(spec: ModelSpec) -> str:
    """classify, embed, fill-mask or generate: what the head of the architecture is for."""
    if "Classification" in spec.architecture:
        return "classify"
    if spec.architecture.endswith("MaskedLM"):
        return "fill-mask"
    return "generate" if spec.generates else "embed"


def classify(logits: Float[Tensor, "batch labels"], config: Any, top: int) -> list[Answer]:
    """The ``top`` labels of each sample with their scores, by the problem type that the model's config names.

    Probabilities of one label out of several (softmax); of each label by itself where several may hold (sigmoid); the
    numbers themselves for a regression, which one output stands for when the config names no type.
    """
    problem = config.problem_type or ("regression" if logits.shape[-1] == 1 else "single_label_classification")
    scores, kind = logits.float(), "score"
    if problem == "regression":
        kind = "value"
    elif problem == "multi_label_classification":
        scores = scores.sigmoid()
    else:
        scores = scores.softmax(-1)
    return [{"labels": row} for row in _largest(scores, lambda index: config.id2label[index], top, kind)]


def embed(output: ModelOutput, mask: Tensor | None) -> list[Answer]:
    """One vector for each sample: the pooled one where the model has it, else the mean of its real rows."""
    pooled = output.get("pooler_output")
    if pooled is None:
        rows = output["last_hidden_state"].float()
        weights = torch.ones(rows.shape[:2]) if mask is None else mask.float()
        pooled = (rows * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
    return [{"embedding": [float(value) for value in row]} for row in pooled]


def fill_mask(logits: Float[Tensor, "batch tokens words"], ids: Tensor, tokenizer: Any, top: int) -> list[Answer]:
    """For each mask of each text the ``top`` words with their probabilities; InputError for a text without a mask."""
    answers: list[Answer] = []
    for row, tokens in zip(logits, ids, strict=True):
        masks = (tokens == tokenizer.mask_token_id).nonzero()[:, 0]
        if not len(masks):
            raise InputError(f"this model fills masks, and a text has none: write {tokenizer.mask_token} in it")
        words = row[masks].float().softmax(-1)
        answers.append({"masks": _largest(words, lambda index: tokenizer.decode([index]).strip(), top)})
    return answers


def _largest(
    scores: Float[Tensor, "rows choices"], name: Callable[[int], str], top: int, kind: str = "score"
) -> list[list[dict[str, str | float]]]:
    best, indices = scores.topk(min(top, scores.shape[-1]))
    return [
        [{"label": name(int(i)), kind: round(float(s), 6)} for s, i in zip(row, index, strict=True)]
        for row, index in zip(best, indices, strict=True)
    ]
