"""From a hub id or a directory to a model: safetensors only, and the architecture that ``config.json`` names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging

from edgeprism.errors import ModelFilesError
from edgeprism.models.registry import ADAPTORS
from edgeprism.specs.config_json import unsupported

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin", "pytorch_model.pt", "pytorch_model.pth")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def directory_of(source: str) -> Path:
    """``source`` itself, or the hub's copy of the id in the local cache, fetched if need be."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelFilesError(f"{source} is a file; give the directory that holds config.json and model.safetensors")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelFilesError(f"no directory {source}")
    return _from_hub(source)


def load_pretrained(source: str, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The transformers model of ``source`` in ``dtype`` (the checkpoint's by default), in evaluation mode.

    ModelFilesError for missing, broken or pickled weights; UnsupportedModel for other architectures.
    """
    directory = directory_of(source)
    architecture = architecture_of(directory)
    try:
        with no_progress_bar():
            model, info = getattr(transformers, architecture).from_pretrained(
                directory,
                dtype=dtype or "auto",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
    except Exception as exc:  # transformers, safetensors and json each raise their own; all mean that the files are bad
        raise ModelFilesError(f"{directory} cannot be loaded as {architecture}: {_first_line(exc)}") from exc
    _check_complete(model, info, directory)
    return model.eval()  # type: ignore[no-any-return]


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Without the bars that transformers draws while it reads and writes weights, which last a second."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def architecture_of(directory: Path) -> str:
    """The class that config.json names, for a directory with weights that can be read. ModelFilesError where there are
    none; UnsupportedModel for other architectures."""
    name = named_architecture(directory)
    _check_weights(directory, name)
    return name


def named_architecture(directory: Path) -> str:
    """The same where the weights may be elsewhere."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        names = config.get("architectures") or []
    except FileNotFoundError:
        raise ModelFilesError(f"{directory} has no config.json; it is not a Hugging Face model directory") from None
    except (ValueError, AttributeError) as exc:
        raise ModelFilesError(f"{path} is not a JSON object: {exc}") from exc
    name = names[0] if names else "no architecture"
    if name not in ADAPTORS:
        raise unsupported(name)
    return str(name)


def _check_weights(directory: Path, architecture: str) -> None:
    if any((directory / name).is_file() for name in _WEIGHTS):
        return
    if pickled := [name for name in _PICKLES if (directory / name).is_file()]:
        raise ModelFilesError(
            f"{directory} holds pickled weights ({pickled[0]}), which can run code and are refused; convert them with: "
            f'python -c "import transformers as t; t.{architecture}.from_pretrained({str(directory)!r}, '
            f'use_safetensors=False).save_pretrained({str(directory) + "-safetensors"!r})"'
        )
    raise ModelFilesError(f"{directory} has no weights: model.safetensors or model.safetensors.index.json is needed")


def _check_complete(model: Any, info: dict[str, Any], directory: Path) -> None:
    """Refuses a checkpoint that leaves weights at random values. A pooler that was never saved is left out instead."""
    missing = set(info["missing_keys"])
    if mismatched := info.get("mismatched_keys"):
        raise ModelFilesError(
            f"{directory}: tensors of another shape than config.json asks for: {sorted(mismatched)[:3]}"
        )
    if missing and all(name.startswith("pooler.") for name in missing):
        model.pooler = None
    elif missing:
        shown = ", ".join(sorted(missing)[:3])
        raise ModelFilesError(f"{directory} lacks {len(missing)} tensors of {type(model).__name__}: {shown}, ...")


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted))
    except Exception as exc:  # offline, unknown id, no access: the hub's client has a class for each
        raise ModelFilesError(
            f"{source} is no directory here, and the hub gave no model of that name ({_first_line(exc)})"
        ) from exc


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
