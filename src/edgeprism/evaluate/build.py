"""From a data set and a model directory to what asks the one of the other, or trains the one on the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.errors import InputError, PlanError
from edgeprism.evaluate.classify import Pictures, StandsFor, Texts
from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.examples import Examples
from edgeprism.evaluate.labelled import Labelled
from edgeprism.evaluate.language import ClozeQuestions, Stream
from edgeprism.evaluate.task import Task
from edgeprism.evaluate.windows import Windows
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.strategies.sequence.partition import token_bounds
from edgeprism.tasks.inputs import load_tokenizer, prepare_pictures_with


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """Of a text. ``window``: its tokens; ``shares`` say where its last partition is; ``limit``: windows at most,
    None is all."""

    window: int
    shares: tuple[float, ...]
    limit: int | None


def make_task(
    dataset: Dataset,
    directory: Path,
    spec: ModelSpec,
    config: Any,
    accepts: Callable[[str], bool],
    stands_for: StandsFor,
    settings: TaskSettings,
) -> Task:
    """The task, with the image processor or tokenizer in ``directory``. ``config`` is the transformers config;
    ``accepts`` says whether the model takes an input of a name. InputError for what the model cannot take."""
    if dataset.kind == "pictures":
        return Pictures(dataset, stands_for, prepare_pictures_with(directory), spec)
    tokenizer = load_tokenizer(directory)
    if dataset.kind == "cloze":
        return ClozeQuestions(dataset, tokenizer, spec)
    if dataset.kind == "stream":
        start = _last_start(settings.window, settings.shares)
        return Stream(dataset, tokenizer, spec, window=settings.window, last_start=start, limit=settings.limit)
    one_at_a_time = spec.is_causal and config.pad_token_id is None  # transformers takes no batch then
    return Texts(dataset, stands_for, tokenizer, spec, accepts, one_at_a_time=one_at_a_time)


def make_examples(
    data: Dataset, directory: Path, spec: ModelSpec, codec: CodecSpec, num_devices: int, window: int
) -> Examples:
    """What to train the model on, to answer through ``codec``; ``window``: tokens of an input, where the data is a
    running text. InputError for what the model cannot be trained on."""
    if data.kind == "cloze":
        raise InputError(
            f"{data.name} has questions; finetune takes labelled inputs, or running text such as wikitext2"
        )
    if data.kind == "stream":
        return Windows(data, directory, spec, codec, num_devices, window)
    return Labelled(data, directory, spec, codec, num_devices)


def _last_start(num_tokens: int, shares: tuple[float, ...]) -> int:
    """Where the last partition begins that has tokens."""
    if num_tokens < 1:
        raise PlanError(f"a window has two tokens or more, not {num_tokens}")
    return max(start for start, stop in token_bounds(num_tokens, shares) if stop > start)
