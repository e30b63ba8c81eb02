"""A trained model as an ordinary Hugging Face directory: all of it, or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from edgeprism.errors import InputError
from edgeprism.models.load import no_progress_bar

COPIED = (
    *("preprocessor_config.json", "processor_config.json", "tokenizer*.json", "tokenizer.model", "spiece.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "chat_template.*"),
)
"""What a directory needs besides the model, to read pictures and texts."""
ACCOUNT = "finetune.json"


def check_output(output: Path) -> None:
    """InputError where a model cannot be written to ``output``, before hours are spent on it."""
    _check_free(output)
    if not output.parent.is_dir():
        raise InputError(f"{output.parent} is no directory; make it, or name another --output")
    partial = _partial(output)
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    with _told(output):  # root may write everywhere, but not to a file system that is read-only
        partial.mkdir(exist_ok=True)
        partial.rmdir()


def check_space(output: Path, model: PreTrainedModel) -> None:
    """InputError where the disk has no room for ``model``, before hours are spent on it."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise InputError(
            f"{output.parent} has {free / 1e6:.0f} MB free, and the model takes {needed / 1e6:.0f}; make room, or name "
            "another --output"
        )


def write_model(model: PreTrainedModel, source: Path, output: Path, account: dict[str, Any]) -> None:
    """Writes ``model``, with the processor or tokenizer of ``source`` and the ``account`` of its training. InputError,
    and nothing written, where that fails."""
    partial = _partial(output)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _told(output):
            with no_progress_bar():
                model.save_pretrained(partial)
            for pattern in COPIED:
                for file in source.glob(pattern):
                    shutil.copyfile(file, partial / file.name)
            (partial / ACCOUNT).write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
            for file in partial.iterdir():
                file.chmod(0o666 & ~_umask())  # safetensors' own are for their owner alone, whatever the umask
        _check_free(output)
        with _told(output):
            os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(output: Path) -> None:
    if os.path.lexists(output):
        raise InputError(f"{output} exists; name another --output, or delete it")


def _partial(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


@contextmanager
def _told(output: Path) -> Iterator[None]:
    """Failures to write, in one line."""
    try:
        yield
    except (OSError, SafetensorError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise InputError(f"{output} cannot be written: {why}") from exc


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
