"""Writes the demo model as an ordinary Hugging Face directory: `python -m demo.build`.

The backbone comes from a pinned package, the adaptors and the head from this folder; merged, they are a plain
`Dinov2ForImageClassification` that transformers loads without any code of this project. The directory is made under
another name and renamed when it is whole, so that a killed build leaves nothing half-written at the place where a user
looks. Its `build.json` records what it was made from; as long as that is still the case it is reused, and the package
is not needed any more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Dinov2ForImageClassification

from demo.adaptors import merge
from demo.backbone import ONNX_SHA256, BackboneUnavailable, load_backbone
from demo.model import model_config, processor_config
from edgeprism.models.load import no_progress_bar
from edgeprism.runtime.cache import cache_root

NAME = "vit-s14-cifar10"
ADAPTORS_PATH = Path(__file__).resolve().parent / "cifar10_adaptors.safetensors"
RECORD_NAME = "build.json"
LAYOUT_VERSION = 1
"""Raised when the same inputs are to give another directory."""


class NotOurs(RuntimeError):
    """The target exists and was not written by this module, so it is left alone. The message is one line."""


def build(directory: Path | None = None) -> Path:
    """The directory of the demo model, written first if it is not there or was made from other inputs."""
    directory = directory if directory is not None else default_directory()
    if is_current(directory):
        return directory
    if directory.exists() and not (directory / RECORD_NAME).is_file():
        raise NotOurs(f"{directory} exists and was not written by demo.build; move it away or name another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write(partial)
        _put_in_place(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def default_directory() -> Path:
    """In the user's cache."""
    return cache_root() / "models" / NAME


def is_current(directory: Path) -> bool:
    """Whether `directory` is whole and was made from today's inputs."""
    try:
        record = json.loads((directory / RECORD_NAME).read_text())
        sizes = {name: (directory / name).stat().st_size for name in record["file_bytes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return record.get("inputs_sha256") == inputs_sha256() and sizes == record["file_bytes"]


def inputs_sha256() -> str:
    """One hash over everything that decides the directory: backbone, adaptors, configuration, layout."""
    config = model_config().to_diff_dict()
    config.pop("transformers_version", None)
    parts = [
        LAYOUT_VERSION,
        ONNX_SHA256,
        hashlib.sha256(ADAPTORS_PATH.read_bytes()).hexdigest(),
        config,
        processor_config(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def merged_model() -> Dinov2ForImageClassification:
    """The demo model in float32, its adaptors merged."""
    backbone = {f"dinov2.{name}": tensor for name, tensor in load_backbone().items()}
    with torch.device("meta"):  # every weight is replaced, so none is drawn
        model = Dinov2ForImageClassification(model_config())
    model.load_state_dict(merge(backbone, load_file(ADAPTORS_PATH)), assign=True)
    return model.eval()


def _write(directory: Path) -> None:
    with no_progress_bar():
        merged_model().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(processor_config(), indent=2) + "\n")
    record = {
        "inputs_sha256": inputs_sha256(),
        "file_bytes": {path.name: path.stat().st_size for path in sorted(directory.iterdir())},
    }
    (directory / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")


def _put_in_place(partial: Path, directory: Path) -> None:
    """Renames `partial` to `directory`; an outdated one is renamed away first, for a rename replaces no full folder."""
    if is_current(directory):
        return  # another process was faster
    outdated = partial.with_name(f"{partial.name}.outdated")
    if directory.exists():
        os.replace(directory, outdated)
    os.replace(partial, directory)
    shutil.rmtree(outdated, ignore_errors=True)


def main() -> None:
    """Builds and prints where; what is missing or in the way is one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, nargs="?", help="default: the user's cache")
    arguments = parser.parse_args()
    try:
        print(build(arguments.directory))
    except (BackboneUnavailable, NotOurs) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
