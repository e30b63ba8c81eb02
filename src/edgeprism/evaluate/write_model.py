"""A trained model as an ordinary Hugging Face directory: all of it, or nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

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
    if os.path.lexists(output):
        raise InputError(f"{output} exists; name another --output, or delete it")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent} is no directory; make it, or name another --output")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{output.parent} cannot be written to; name another --output")


def write_model(model: PreTrainedModel, source: Path, output: Path, account: dict[str, Any]) -> None:
    """Writes ``model``, with the processor or tokenizer of ``source`` and the ``account`` of its training."""
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with no_progress_bar():
        model.save_pretrained(partial)
    for pattern in COPIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, partial / file.name)
    (partial / ACCOUNT).write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
    check_output(output)
    os.replace(partial, output)
