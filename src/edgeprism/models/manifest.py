"""What a model is: the hash of its configuration and of each of its tensors, whatever its directory is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from edgeprism.errors import ModelFilesError

_INCIDENTAL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # they change no output by themselves
_MAX_HEADER_BYTES = 100 * 2**20
_CHUNK_BYTES = 2**20


def fingerprint(directory: Path) -> str:
    """One sha256 over the manifest: equal where two directories hold the same model."""
    return hashlib.sha256(json.dumps(manifest(directory), sort_keys=True).encode()).hexdigest()


def manifest(directory: Path) -> dict[str, Any]:
    """``config``: sha256 of config.json's contents; ``tensors``: dtype, shape and sha256 by name. ModelFilesError."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kept = {name: value for name, value in config.items() if name not in _INCIDENTAL}
        tensors = {name: entry for path in _weight_files(directory) for name, entry in _tensors(path)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelFilesError(f"the model in {directory} cannot be read: {exc}") from exc
    return {"config": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest(), "tensors": tensors}


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return [directory / "model.safetensors"]
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index} names files outside its directory")
    return [directory / name for name in sorted(names)]


def _tensors(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each tensor of a safetensors file: 8 bytes of header size, a JSON header, then the bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= _MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is no safetensors file")
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            yield (
                name,
                {
                    "dtype": entry["dtype"],
                    "shape": entry["shape"],
                    "sha256": _hash(file, 8 + size + start, stop - start),
                },
            )


def _hash(file: BinaryIO, offset: int, num_bytes: int) -> str:
    file.seek(offset)
    digest = hashlib.sha256()
    while num_bytes > 0:
        chunk = file.read(min(num_bytes, _CHUNK_BYTES))
        if not chunk:
            raise ValueError(f"{file.name} is cut short")
        digest.update(chunk)
        num_bytes -= len(chunk)
    return digest.hexdigest()
