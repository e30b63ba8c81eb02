"""Weights of some pieces of a model on their way to a worker that holds no more than those.

The coordinator's manifest says what each tensor is; its hash is the fingerprint that was ordered. So the worker fetches
config.json and the headers of the files, then the bytes of just the tensors that its pieces need, and checks each by
itself. What has come is one safetensors file, which only then is renamed into its place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.errors import FrameError, ModelFilesError
from edgeprism.models.manifest import config_hash, fingerprint_of
from edgeprism.models.partial import needed_tensors
from edgeprism.runtime.weights import CHUNK_BYTES, WINDOW, Ask, NextChunk, WeightCache, check_sizes

log = logging.getLogger(__name__)

MANIFEST, CONFIG, WEIGHTS = "manifest.json", "config.json", "model.safetensors"
MAX_HEADER_BYTES = 100 * 2**20
MAX_MANIFEST_BYTES = 64 * 2**20
Take = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """Where a tensor lies: bytes [start, stop) of a file; ``entry`` as the header has it."""

    file: str
    start: int
    stop: int
    entry: Mapping[str, Any]


class PieceWeights:
    """The worker's side; for one order."""

    def __init__(
        self,
        cache: WeightCache,
        wanted: str,
        pieces: tuple[int, int],
        ask: Ask,
        next_chunk: NextChunk,
        check: Callable[[Path], object],
    ) -> None:
        """``check`` is given a directory with the model's config.json before weights travel, and may refuse them."""
        self._cache, self._wanted, self._pieces = cache, wanted, pieces
        self._ask, self._next, self._check = ask, next_chunk, check

    def directory(self) -> Path:
        """Of the pieces: as they were kept from an earlier order, or sent now. ModelFilesError says what stands in the
        way."""
        place = self._cache.place_of_pieces(self._wanted, self._pieces)
        if place.is_dir() and self._is_whole(place):
            os.utime(place)
            return place
        partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
        try:
            shutil.rmtree(place, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self._fetch(partial)
            os.replace(partial, place)
        except OSError as exc:
            raise ModelFilesError(f"the weights cannot be kept in {place.parent}: {exc.strerror or exc}") from exc
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return place

    def _fetch(self, partial: Path) -> None:
        self._ask({"manifest": True})
        frame = self._next()
        manifest = _json(b"".join(buffer.data.tobytes() for buffer in frame.arrays), MAX_MANIFEST_BYTES)
        if fingerprint_of(manifest) != self._wanted:
            raise ModelFilesError("what the coordinator says of the model is not what it ordered; it is thrown away")
        self._ask({})
        sizes = check_sizes(self._next())
        config = b"".join(self._ranges(CONFIG, 0, sizes.get(CONFIG, 0)))
        if config_hash(_json(config, MAX_MANIFEST_BYTES)) != manifest["config"]:
            raise ModelFilesError("the coordinator's config.json is not that of the model that it ordered")
        (partial / CONFIG).write_bytes(config)
        self._check(partial)
        (partial / MANIFEST).write_text(json.dumps(manifest))
        needed = needed_tensors(partial, manifest["tensors"], *self._pieces)
        tensors = {name: found for name, found in self._headers(sizes) if name in needed}
        if missing := sorted(needed - tensors.keys()):
            raise ModelFilesError(f"the coordinator's files lack {len(missing)} tensors: {', '.join(missing[:3])}, ...")
        total = sum(one.stop - one.start for one in tensors.values())
        self._cache.make_room(total, partial)
        log.info("asks for %.1f MB of %.1f MB: pieces %d to %d", total / 1e6, sum(sizes.values()) / 1e6, *self._pieces)
        self._write(partial / WEIGHTS, tensors, manifest["tensors"])

    def _headers(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, _Tensor]]:
        """Every tensor of every file."""
        for file, size in sizes.items():
            if not file.endswith(".safetensors"):
                continue
            length = int.from_bytes(b"".join(self._ranges(file, 0, 8)), "little")
            if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
                raise ModelFilesError(f"{file} of the coordinator is no safetensors file")
            header = _json(b"".join(self._ranges(file, 8, 8 + length)), MAX_HEADER_BYTES)
            for name, entry in header.items():
                if name != "__metadata__":
                    start, stop = (8 + length + int(offset) for offset in entry["data_offsets"])
                    if not 8 + length <= start <= stop <= size:
                        raise ModelFilesError(f"{name} lies outside of {file}")
                    yield name, _Tensor(file=file, start=start, stop=stop, entry=entry)

    def _write(self, path: Path, tensors: Mapping[str, _Tensor], known: Mapping[str, Any]) -> None:
        """One file with these tensors, each as the manifest says."""
        header, at, had_bytes = dict[str, Any](), 0, 0
        for name, one in tensors.items():
            size = one.stop - one.start
            header[name] = {"dtype": one.entry["dtype"], "shape": one.entry["shape"], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        wanted_bytes = at
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, one in tensors.items():
                digest = hashlib.sha256()
                for chunk in self._ranges(one.file, one.start, one.stop, (had_bytes, wanted_bytes)):
                    digest.update(chunk)
                    file.write(chunk)
                said = {"dtype": one.entry["dtype"], "shape": one.entry["shape"], "sha256": digest.hexdigest()}
                if said != known[name]:
                    raise ModelFilesError(f"{name} came damaged, or is not that of the model that was ordered")
                had_bytes += one.stop - one.start
            file.flush()
            os.fsync(file.fileno())

    def _ranges(self, file: str, start: int, stop: int, progress: tuple[int, int] | None = None) -> Iterator[bytes]:
        """The bytes [start, stop) of a file, some chunks asked for ahead. ``progress``: how many bytes of weights came
        before, and of how many, for the coordinator to show."""
        wanted: Iterable[int] = range(start, stop, CHUNK_BYTES)
        under_way, rest = deque[int](), iter(wanted)
        while True:
            while len(under_way) < WINDOW and (at := next(rest, None)) is not None:
                question: dict[str, Any] = {"file": file, "offset": at, "num_bytes": min(CHUNK_BYTES, stop - at)}
                if progress is not None:
                    question |= {"had_bytes": progress[0] + at - start, "wanted_bytes": progress[1]}
                self._ask(question)
                under_way.append(at)
            if not under_way:
                return
            at, frame = under_way.popleft(), self._next()
            chunk = b"".join(buffer.data.tobytes() for buffer in frame.arrays)
            if (frame.info.get("file"), frame.info.get("offset"), len(chunk)) != (
                file,
                at,
                min(CHUNK_BYTES, stop - at),
            ):
                raise FrameError(f"the coordinator sent another chunk than that of {file} at {at}")
            yield chunk

    def _is_whole(self, place: Path) -> bool:
        """Whether what was kept is still what came: a card may lose what it has kept."""
        try:
            manifest = json.loads((place / MANIFEST).read_text())
            if fingerprint_of(manifest) != self._wanted:
                return False
            with (place / WEIGHTS).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
                for name, entry in header.items():
                    start, stop = entry["data_offsets"]
                    file.seek(8 + length + start)
                    if hashlib.sha256(file.read(stop - start)).hexdigest() != manifest["tensors"][name]["sha256"]:
                        return False
            return True
        except Exception:  # whatever is wrong with it, it is sent anew
            log.warning("%s is damaged; it is removed, and sent anew", place)
            return False


def _json(text: bytes, max_bytes: int) -> dict[str, Any]:
    try:
        if len(text) > max_bytes:
            raise ValueError(f"{len(text)} bytes")
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ModelFilesError(f"what the coordinator sent is no JSON: {exc}") from None
    if not isinstance(document, dict):
        raise ModelFilesError("what the coordinator sent is no JSON object")
    return document
