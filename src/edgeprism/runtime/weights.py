"""Weights on their way to a worker that lacks them, or has others: the coordinator's files, and the worker's cache.

The worker asks, a few chunks ahead, and the coordinator answers; so the receiver decides how much is under way, a
transfer that breaks is resumed where it broke, and the link is never idle. What has come counts only when the
fingerprint of the whole is the one that was ordered; it is then renamed into its place in one step.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeprism.errors import FrameError, InputError, ModelFilesError
from edgeprism.models.manifest import TensorHashes, fingerprint
from edgeprism.wire.frame import Buffer, Frame

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
WINDOW = 4  # chunks asked for ahead: 4 MB keep a link of 1 Gbit/s busy for 30 ms
DEFAULT_CACHE_BYTES = 20 * 10**9
_FILE_NAME = re.compile(r"config\.json|model[\w.-]*\.safetensors(\.index\.json)?", re.ASCII)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

Ask = Callable[[Mapping[str, Any]], None]
NextChunk = Callable[[], Frame]


def cache_root() -> Path:
    """edgeprism's cache: EDGEPRISM_CACHE, else XDG_CACHE_HOME/edgeprism, else ~/.cache/edgeprism."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EDGEPRISM_CACHE") or user_cache / "edgeprism")


class WeightFiles:
    """The coordinator's side: the files of one model directory, in chunks."""

    def __init__(self, directory: Path) -> None:
        names = sorted(path.name for path in directory.iterdir() if _FILE_NAME.fullmatch(path.name))
        self._directory = directory
        self._sizes = {name: (directory / name).stat().st_size for name in names}

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(self._sizes.values())

    def percent_before(self, question: Mapping[str, Any]) -> int:
        """How much of all files a device has that asks this, in steps of ten; it asks in their order."""
        name, offset = question.get("file"), question.get("offset")
        if name not in self._sizes or not isinstance(offset, int):
            return 0
        names = list(self._sizes)
        before = sum(self._sizes[other] for other in names[: names.index(name)]) + offset
        return 10 * (10 * before // max(1, self.num_bytes))

    def answer(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Buffer, ...]]:
        """What a FETCH frame asks for: the list of files, or a chunk of one; FrameError if there is none."""
        name, offset = question.get("file"), question.get("offset")
        if name is None:
            return {"files": self._sizes}, ()
        if (
            not isinstance(name, str)
            or name not in self._sizes
            or not isinstance(offset, int)
            or not 0 <= offset < self._sizes[name]
        ):
            raise FrameError(f"a worker asks for {name!r} at {offset!r}, which is not there")
        with (self._directory / name).open("rb") as file:
            file.seek(offset)
            chunk = file.read(CHUNK_BYTES)
        return {"file": name, "offset": offset}, (Buffer("uint8", np.frombuffer(chunk, dtype=np.uint8)),)


class WeightCache:
    """The worker's side: models by fingerprint under ``root``, the least recently used removed beyond ``max_bytes``."""

    def __init__(self, root: Path, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._root, self._max_bytes = root, max_bytes

    def find(self, wanted: str) -> Path | None:
        """The directory of the model with that fingerprint, if it has come whole."""
        directory = self._place(wanted)
        if not directory.is_dir():
            return None
        os.utime(directory)  # used now
        return directory

    def fetch(self, wanted: str, ask: Ask, next_chunk: NextChunk) -> Path:
        """Has the model sent, from where an earlier attempt ended. ModelFilesError says what stands in the way."""
        directory = self._place(wanted)
        partial = directory.with_name(f"{wanted}.partial")
        try:
            partial.mkdir(parents=True, exist_ok=True)
            ask({})
            sizes = _sizes(next_chunk())
            self._make_room(sum(sizes.values()), partial)
            hashes = {name: TensorHashes(partial / name) for name in sizes if name.endswith(".safetensors")}
            _receive(partial, sizes, hashes, ask, next_chunk)
            if not _is(wanted, partial, hashes):
                shutil.rmtree(partial)
                raise ModelFilesError("what the coordinator sent is not the model that it ordered; it is thrown away")
            os.replace(partial, directory)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                shutil.rmtree(partial, ignore_errors=True)
            raise ModelFilesError(f"the weights cannot be kept in {self._root}: {exc.strerror or exc}") from exc
        return directory

    def _place(self, wanted: str) -> Path:
        if not _FINGERPRINT.fullmatch(wanted):
            raise InputError("the coordinator ordered a model without a fingerprint")
        return self._root / wanted

    def _make_room(self, num_bytes: int, partial: Path) -> None:
        if num_bytes > self._max_bytes:
            raise ModelFilesError(
                f"the model has {num_bytes / 1e9:.2f} GB, and the cache {self._root} may have "
                f"{self._max_bytes / 1e9:.2f} GB; give it more with --cache-gb"
            )
        others = sorted(
            (path for path in self._root.iterdir() if path != partial), key=lambda path: path.stat().st_mtime
        )
        used = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others if path.is_dir()}
        while used and sum(used.values()) + num_bytes > self._max_bytes:
            oldest = next(iter(used))
            log.info("removes %s from the cache, to make room", oldest.name[:12])
            shutil.rmtree(oldest)
            del used[oldest]


def _is(wanted: str, directory: Path, hashes: Mapping[str, TensorHashes]) -> bool:
    try:
        return fingerprint(directory, hashes) == wanted
    except ModelFilesError:
        return False


def _sizes(frame: Frame) -> dict[str, int]:
    files = frame.info.get("files")
    if not isinstance(files, dict) or not all(
        _FILE_NAME.fullmatch(name) and isinstance(size, int) and size >= 0 for name, size in files.items()
    ):
        raise FrameError("the coordinator's list of files cannot be used")
    return files


def _receive(
    partial: Path, sizes: Mapping[str, int], hashes: Mapping[str, TensorHashes], ask: Ask, next_chunk: NextChunk
) -> None:
    """Fills the directory with what it lacks, a window of chunks ahead; hashes while the next ones travel."""
    wanted = _missing(partial, sizes)
    under_way: deque[tuple[str, int]] = deque()
    total, shown = max(1, sum(sizes.values())), -1
    while True:
        while len(under_way) < WINDOW and (chunk := next(wanted, None)) is not None:
            ask({"file": chunk[0], "offset": chunk[1]})
            under_way.append(chunk)
        if not under_way:
            return
        name, offset = under_way.popleft()
        frame = next_chunk()
        if (frame.info.get("file"), frame.info.get("offset")) != (name, offset) or len(frame.arrays) != 1:
            raise FrameError(f"the coordinator sent another chunk than {name} at {offset}")
        with (partial / name).open("ab") as file:
            file.write(frame.arrays[0].data.tobytes())
        if name in hashes:
            hashes[name].advance()
        percent = 10 * int(
            10 * sum((partial / name).stat().st_size for name in sizes if (partial / name).exists()) / total
        )
        if percent != shown:
            shown = percent
            log.info("has %d %% of %.1f MB of weights", percent, total / 1e6)


def _missing(partial: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """File and offset of every chunk that is not there yet."""
    for name, size in sizes.items():
        path = partial / name
        have = path.stat().st_size if path.exists() else 0
        if have > size:
            path.unlink()
            have = 0
        if size == 0:
            path.touch()
        for offset in range(have, size, CHUNK_BYTES):
            yield name, offset
