"""Training data as batches of a model's inputs, in an order that depends on the seed and the epoch alone.

Texts of one batch have one length, so that none is padded: devices divide a text as it is, and padding would move the
borders between them. Texts too short for the codec (fewer tokens on a device than one mean stands for) are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeprism.errors import InputError, PlanError
from edgeprism.evaluate.classify import image_of
from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.labels import check_head, head_labels, match_labels
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.strategies.sequence.partition import token_bounds
from edgeprism.tasks.inputs import Batch, load_tokenizer, prepare_pictures_with

Indices = Sequence[int]


class Examples:
    """Inputs with their targets. ``num_left_out`` counts the texts that are too short for the codec."""

    def __init__(self, data: Dataset, directory: Path, spec: ModelSpec, codec: CodecSpec, num_devices: int) -> None:
        """InputError where the model is no classifier of such inputs, or its labels are others."""
        if data.kind not in ("pictures", "texts"):
            raise InputError(f"{data.name} is no data set for classifiers, which are what finetune trains")
        check_head(data, spec)
        self.is_pictures = spec.is_vision
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
        self.num_left_out = len(self._lengths) - len(self.indices)
        if not self.indices:
            raise PlanError(f"every text of {data.name} is too short for codec {codec} on {num_devices} devices")

    def check_head(self, config: Any) -> None:
        """InputError where the head of a model with this config cannot be trained on these targets."""
        if config.problem_type == "multi_label_classification":
            raise InputError("this head gives several labels to one input; finetune trains heads that give one")
        if not self.is_pictures and config.model_type == "gpt2" and config.pad_token_id is None:
            raise InputError("a batch needs pad_token_id in config.json, to find each text's last token; it is not set")

    def batches(self, indices: Indices, size: int, rng: np.random.Generator | None = None) -> list[Indices]:
        """``indices`` in batches of one length, at most ``size`` each; in random order where ``rng`` is given."""
        order = np.asarray(indices) if rng is None else rng.permutation(np.asarray(indices))
        by_length: dict[int, list[int]] = defaultdict(list)
        for index in order:
            by_length[int(self._lengths[index])].append(int(index))
        made: list[Indices] = [group[i : i + size] for group in by_length.values() for i in range(0, len(group), size)]
        return made if rng is None else [made[i] for i in rng.permutation(len(made))]

    def batch(self, indices: Indices) -> tuple[Batch, Tensor]:
        """Keyword arguments of the model, and the targets."""
        targets = self._targets[list(indices)]
        if self.is_pictures:
            return self._prepare([image_of(self._data.inputs[index]) for index in indices]), targets
        chosen = [self._tokens[index] for index in indices]
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in chosen[0]]
        return {name: torch.tensor([tokens[name] for tokens in chosen]) for name in names}, targets


def endless(examples: Examples, indices: Indices, size: int, seed: int, start: int = 0) -> Iterator[Indices]:
    """Batch after batch, epoch after epoch, from step ``start`` on; the same every time."""
    epoch, num_skipped = 0, start
    while True:
        made = examples.batches(indices, size, np.random.default_rng([seed, epoch]))
        yield from made[num_skipped:]
        num_skipped, epoch = max(0, num_skipped - len(made)), epoch + 1


def _outputs(data: Dataset, directory: Path, spec: ModelSpec) -> npt.NDArray[Any]:
    """For each input the number of the head's output, or the value."""
    if data.targets is None:
        raise InputError(f"{data.name} {data.split} has no labels")
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
