"""Pictures and texts, to train classifiers on: with labels, or without, for a model that learns its own answers.

Texts of one batch have one length. Texts too short for the codec (fewer tokens on a device than one mean stands for)
are left out.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from edgeprism.errors import InputError, PlanError
from edgeprism.evaluate.classify import image_of
from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.examples import Examples, Indices
from edgeprism.evaluate.labels import check_head, head_labels, match_labels
from edgeprism.evaluate.losses import divergence, products_in
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.strategies.sequence.partition import token_bounds
from edgeprism.tasks.inputs import Batch, load_tokenizer, prepare_pictures_with

SCORED_AT_ONCE = 32


class Labelled(Examples):
    """Inputs with one label or one value each, or with none. InputError where the model is no classifier of such
    inputs, or its labels are others."""

    trains_head = True  # for new labels it may be a new one
    default_batch, most_held_out = 32, 500

    def __init__(self, data: Dataset, directory: Path, spec: ModelSpec, codec: CodecSpec, num_devices: int) -> None:
        check_head(data, spec)
        self.can_vary = spec.is_vision
        self.about: dict[str, Any] = {}
        self.has_targets = data.targets is not None
        is_value = data.is_regression or (not self.has_targets and spec.num_labels == 1)
        self.measure = "mean squared error" if is_value else "accuracy"
        if not self.has_targets:
            self.measure += " against its own answers before" if is_value else ", its own answers before being right"
        self._data = data
        self._targets = torch.from_numpy(_outputs(data, directory, spec))
        if spec.is_vision:
            self._prepare = prepare_pictures_with(directory)
            self._lengths = np.zeros(len(data.inputs), dtype=np.int64)
        else:
            tokenizer = load_tokenizer(directory)
            self._tokens = [tokenizer(*texts, truncation=True, max_length=spec.max_tokens) for texts in data.inputs]
            self._lengths = np.array([len(tokens["input_ids"]) for tokens in self._tokens])
        usable = {n for n in np.unique(self._lengths) if spec.is_vision or _fits(int(n), codec, num_devices)}
        self.indices = [i for i, length in enumerate(self._lengths) if length in usable]
        if not self.indices:
            raise PlanError(f"every text of {data.name} is too short for codec {codec} on {num_devices} devices")
        if num_left_out := len(self._lengths) - len(self.indices):
            many = f"{num_left_out} of {len(self._lengths)}"
            self.notes = (f"{many} texts are too short for codec {codec} and are left out",)

    def check_head(self, config: Any) -> None:
        if config.problem_type == "multi_label_classification":
            raise InputError("this head gives several labels to one input; finetune trains heads that give one")
        if not self.can_vary and config.model_type == "gpt2" and config.pad_token_id is None:
            raise InputError("a batch needs pad_token_id in config.json, to find each text's last token; it is not set")

    def batches(self, indices: Indices, size: int, rng: np.random.Generator | None = None) -> list[Indices]:
        order = np.asarray(indices) if rng is None else rng.permutation(np.asarray(indices))
        by_length: dict[int, list[int]] = defaultdict(list)
        for index in order:
            by_length[int(self._lengths[index])].append(int(index))
        made: list[Indices] = [group[i : i + size] for group in by_length.values() for i in range(0, len(group), size)]
        return made if rng is None else [made[i] for i in rng.permutation(len(made))]

    def batch(self, indices: Indices) -> tuple[Batch, Tensor]:
        targets = self._targets[list(indices)]
        if self.can_vary:
            return self._prepare([image_of(self._data.inputs[index]) for index in indices]), targets
        chosen = [self._tokens[index] for index in indices]
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in chosen[0]]
        return {name: torch.tensor([tokens[name] for tokens in chosen]) for name in names}, targets

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
        logits = _logits(student, inputs, dtype)
        is_regression = logits.shape[1] == 1
        if teacher is None:
            return F.mse_loss(logits[:, 0], targets.float()) if is_regression else F.cross_entropy(logits, targets)
        with torch.no_grad():
            wanted = _logits(teacher, inputs, dtype)
        return F.mse_loss(logits, wanted) if is_regression else divergence(logits, wanted, temperature)

    @torch.no_grad()
    def take_answers(self, model: PreTrainedModel, indices: Indices, dtype: str) -> None:
        for part in self.batches(indices, SCORED_AT_ONCE):
            inputs, _ = self.batch(part)
            logits = _logits(model, {name: tensor.to(model.device) for name, tensor in inputs.items()}, dtype).cpu()
            self._targets[list(part)] = logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0]

    @torch.no_grad()
    def score(self, model: PreTrainedModel, indices: Indices, dtype: str) -> float:
        """Share of the inputs whose largest logit is at their label; of values the mean squared error."""
        total = 0.0
        for part in self.batches(indices, SCORED_AT_ONCE):
            inputs, targets = self.batch(part)
            logits = _logits(model, {name: tensor.to(model.device) for name, tensor in inputs.items()}, dtype).cpu()
            right = logits.argmax(1) == targets if logits.shape[1] > 1 else (logits[:, 0] - targets).square()
            total += float(right.sum())
        return total / len(indices)


def _logits(model: PreTrainedModel, inputs: Batch, dtype: str) -> Tensor:
    """(batch, outputs) in float32."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:  # some tokenizers give them to any model
        inputs = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids"}
    with products_in(dtype, model):
        return model(**inputs).logits.float()  # type: ignore[no-any-return]


def _outputs(data: Dataset, directory: Path, spec: ModelSpec) -> npt.NDArray[Any]:
    """For each input the number of the head's output, or the value."""
    if data.targets is None:
        return np.zeros(len(data.inputs), dtype=np.float32 if spec.num_labels == 1 else np.int64)
    if data.is_regression:
        return data.targets.astype(np.float32)
    stands_for = match_labels(data, head_labels(directory, spec.num_labels))
    output_of = {int(label): output for output, label in enumerate(stands_for)}
    return np.array([output_of[int(label)] for label in data.targets], dtype=np.int64)


def _fits(num_tokens: int, codec: CodecSpec, num_devices: int) -> bool:
    try:
        for start, stop in token_bounds(num_tokens, (1 / num_devices,) * num_devices):
            codec.num_rows(stop - start)
    except PlanError:
        return False
    return True
