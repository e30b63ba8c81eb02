"""Pictures and texts, one or two at a time, that a head gives labels or values to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset, Picture
from edgeprism.evaluate.metrics import Answers
from edgeprism.evaluate.task import Batch, Task, of_equal_length
from edgeprism.specs.model import ModelSpec
from edgeprism.tasks.inputs import PreparePictures
from edgeprism.tasks.pictures import read_image

StandsFor = npt.NDArray[np.int64] | None
"""For each output of the head the data set's label, or below 0; None keeps its numbers, where nothing is labelled."""


class _Classification(Task):
    """What both kinds of input share: the largest output, or the only one."""

    def __init__(self, dataset: Dataset, stands_for: StandsFor) -> None:
        self.num_inputs = self.num_samples = len(dataset.inputs)
        self._inputs, self._is_regression, self._stands_for = dataset.inputs, dataset.is_regression, stands_for

    def read(self, output: Mapping[str, Any], batch: Batch) -> list[Any]:
        logits = output["logits"].float().cpu().numpy()
        if self._is_regression:
            return [float(value) for value in logits[:, 0]]
        best = logits.argmax(axis=1)
        return [int(number) for number in (best if self._stands_for is None else self._stands_for[best])]

    def answers(self, kept: Sequence[Any]) -> Answers:
        return Answers(predictions=np.array(kept, dtype=np.float64 if self._is_regression else np.int64))


class Pictures(_Classification):
    """Pictures, read and prepared when their batch comes."""

    def __init__(self, dataset: Dataset, stands_for: StandsFor, prepare: PreparePictures, spec: ModelSpec) -> None:
        super().__init__(dataset, stands_for)
        self._prepare, self._spec = prepare, spec

    def batches(self, size: int) -> Iterator[Batch]:
        patch_height_px, patch_width_px = self._spec.patch_size_px
        for start in range(0, self.num_inputs, size):
            pictures = self._inputs[start : start + size]
            inputs = self._prepare([image_of(picture) for picture in pictures])
            height_px, width_px = inputs["pixel_values"].shape[-2:]
            num_patches = (height_px // patch_height_px) * (width_px // patch_width_px)
            yield Batch(
                samples=range(start, start + len(pictures)),
                inputs=inputs,
                num_tokens=num_patches + self._spec.special_tokens,
            )


class Texts(_Classification):
    """Sentences or pairs of them, cut to the model's length."""

    def __init__(
        self,
        dataset: Dataset,
        stands_for: StandsFor,
        tokenizer: Any,
        spec: ModelSpec,
        accepts: Callable[[str], bool],
        *,
        one_at_a_time: bool = False,
    ) -> None:
        super().__init__(dataset, stands_for)
        self._one_at_a_time = one_at_a_time
        made = tokenizer(*map(list, zip(*dataset.inputs, strict=True)))
        names = [name for name in made if accepts(name)]
        self._tokens = [{name: made[name][number] for name in names} for number in range(self.num_inputs)]
        num_cut = 0
        for number, tokens in enumerate(self._tokens):
            if not tokens["input_ids"]:
                raise InputError(f"input {number + 1} of {dataset.name} is empty: the tokenizer makes no token of it")
            if len(tokens["input_ids"]) > spec.max_tokens:
                cut = tokenizer(*dataset.inputs[number], truncation=True, max_length=spec.max_tokens)
                self._tokens[number] = {name: cut[name] for name in names}
                num_cut += 1
        if num_cut:
            self.notes = (f"{num_cut} texts were cut to the model's {spec.max_tokens} tokens",)

    def batches(self, size: int) -> Iterator[Batch]:
        return of_equal_length(self._tokens, 1 if self._one_at_a_time else size)


def image_of(picture: Picture) -> Image.Image:
    """The picture, read where it is a file."""
    return read_image(str(picture)) if isinstance(picture, Path) else Image.fromarray(picture)
