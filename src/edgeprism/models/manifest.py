"""What a model is: the hash of its configuration and of each of its tensors, whatever its directory is called."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from edgeprism.errors import ModelFilesError

_INCIDENTAL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # they change no output by themselves
_MAX_HEADER_BYTES = 100 * 2**20
_CHUNK_BYTES = 2**20


class TensorHashes:
    """dtype, shape and sha256 of each tensor in a safetensors file, which may still be growing.

    The file is 8 bytes of header size, a JSON header, then the tensors' bytes. Each ``advance`` reads only what is new.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors: dict[str, dict[str, Any]] = {}
        self._rest: deque[_Tensor] | None = None  # None until the header is there
        self._problem = ""

    def advance(self) -> None:
        """Hash what the file holds by now. OSError where it cannot be read."""
        if self._problem or self._rest == deque():
            return
        with self._path.open("rb") as file:
            try:
                if self._rest is None:
                    self._rest = _header(file)
                self._hash(file, self._rest or deque())
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                self._problem = f"{self._path.name} is no safetensors file: {exc}"

    def tensors(self) -> dict[str, dict[str, Any]]:
        """By name, once the whole file has been hashed; ValueError where it is none, or cut short."""
        if self._problem:
            raise ValueError(self._problem)
        if self._rest is None or self._rest:
            raise ValueError(f"{self._path.name} is cut short")
        return self._tensors

    def _hash(self, file: BinaryIO, rest: deque[_Tensor]) -> None:
        while rest:
            tensor = rest[0]
            file.seek(tensor.start)
            while tensor.start < tensor.stop:
                chunk = file.read(min(tensor.stop - tensor.start, _CHUNK_BYTES))
                if not chunk:
                    return
                tensor.digest.update(chunk)
                tensor.start += len(chunk)
            self._tensors[tensor.name] = {**tensor.entry, "sha256": tensor.digest.hexdigest()}
            rest.popleft()


def fingerprint(directory: Path, hashed: Mapping[str, TensorHashes] | None = None) -> str:
    """One sha256 over the manifest: equal where two directories hold the same model.

    ``hashed``: by name, files that were hashed when they came. ModelFilesError where something cannot be read.
    """
    return fingerprint_of(manifest(directory, hashed or {}))


def fingerprint_of(found: Mapping[str, Any]) -> str:
    """Of a manifest."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def config_hash(config: Mapping[str, Any]) -> str:
    """Of the contents of a config.json, without what changes no output."""
    kept = {name: value for name, value in config.items() if name not in _INCIDENTAL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def manifest(directory: Path, hashed: Mapping[str, TensorHashes]) -> dict[str, Any]:
    """``config``: sha256 of config.json's contents; ``tensors``: dtype, shape and sha256 by name. ModelFilesError."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        config_digest = config_hash(config)
        tensors: dict[str, Any] = {}
        for path in weight_files(directory):
            hashes = hashed.get(path.name) or TensorHashes(path)
            hashes.advance()
            tensors |= hashes.tensors()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelFilesError(f"the model in {directory} cannot be read: {exc}") from exc
    return {"config": config_digest, "tensors": tensors}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model. OSError, ValueError or KeyError where its index cannot be used."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return [directory / "model.safetensors"]
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index} names files outside its directory")
    return [directory / name for name in sorted(names)]


@dataclass(slots=True, kw_only=True)
class _Tensor:
    """What is left of one tensor: its bytes from ``start`` to ``stop`` in the file."""

    name: str
    entry: dict[str, Any]
    start: int
    stop: int
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)


def _header(file: BinaryIO) -> deque[_Tensor] | None:
    """The tensors in the order of their bytes; None while the header is not there as a whole."""
    prefix = file.read(8)
    if len(prefix) < 8:
        return None
    size = int.from_bytes(prefix, "little")
    if not 0 < size <= _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {size} bytes")
    text = file.read(size)
    if len(text) < size:
        return None
    tensors = []
    for name, entry in json.loads(text).items():
        if name != "__metadata__":
            start, stop = (8 + size + int(offset) for offset in entry["data_offsets"])
            kept = {"dtype": entry["dtype"], "shape": entry["shape"]}
            tensors.append(_Tensor(name=name, entry=kept, start=start, stop=stop))
    return deque(sorted(tensors, key=lambda tensor: tensor.start))
