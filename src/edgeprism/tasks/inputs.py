"""Pictures and sentences as the tensors that a model takes, with the processor or tokenizer in its directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from edgeprism.errors import InputError, ModelFilesError
from edgeprism.specs.model import ModelSpec
from edgeprism.tasks.pictures import read_image

Batch = dict[str, Tensor]
Prepare = Callable[[Sequence[str]], Batch]
PreparePictures = Callable[[Sequence[Image.Image]], Batch]


def prepare_with(directory: Path, spec: ModelSpec) -> Prepare:
    """What turns inputs into tensors: paths of pictures for a vision model, texts for the others."""
    if not spec.is_vision:
        return _text_preparer(directory, spec)
    prepare = prepare_pictures_with(directory)
    return lambda paths: prepare([read_image(path) for path in paths])


def prepare_pictures_with(directory: Path) -> PreparePictures:
    """What turns pictures in RGB into tensors, with the image processor of a model directory; ModelFilesError where
    there is none."""
    from transformers import AutoImageProcessor

    try:
        # The PIL backend gives the same pixels on every machine, with torchvision or without.
        processor = AutoImageProcessor.from_pretrained(directory, local_files_only=True, backend="pil")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelFilesError(
            f"{directory} has no image processor that can be loaded: preprocessor_config.json is needed "
            f"({_first_line(exc)})"
        ) from exc

    def prepare(images: Sequence[Image.Image]) -> Batch:
        return {"pixel_values": processor(images=list(images), return_tensors="pt")["pixel_values"]}

    return prepare


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model directory; ModelFilesError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as exc:  # how transformers says that files are missing or wrong
        raise ModelFilesError(
            f"{directory} has no tokenizer that can be loaded: texts need tokenizer.json, or vocab.txt and its like "
            f"({_first_line(exc)})"
        ) from exc


def _text_preparer(directory: Path, spec: ModelSpec) -> Prepare:
    tokenizer = load_tokenizer(directory)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # A text that is to be continued goes on at its right end. Elsewhere padding must not move a text's positions.
    tokenizer.padding_side = "left" if spec.generates else "right"
    names = ("input_ids", "attention_mask", "token_type_ids")

    def prepare(texts: Sequence[str]) -> Batch:
        for text in texts:
            if not text.strip():
                raise InputError("an input text is empty")
        tokens = tokenizer(list(texts), return_tensors="pt", padding=len(texts) > 1)
        if not tokens["input_ids"].shape[1]:  # transformers makes one without words where its files are missing
            raise ModelFilesError(f"the tokenizer of {directory} makes no tokens of a text: it has no tokenizer.json?")
        return {name: tokens[name] for name in names if name in tokens}

    return prepare


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
