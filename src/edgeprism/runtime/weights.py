"""Weights on their way to a worker that lacks them, or has others: the coordinator's files, and the worker's cache.

The worker asks, a few chunks ahead, and the coordinator answers; so the receiver decides how much is under way, a
transfer that breaks is resumed where it broke, and the link is never idle. What has come counts only when the
fingerprint of the whole is the one that was ordered; it is then renamed into its place in one step.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgeprism.errors import FrameError, InputError, ModelFilesError
from edgeprism.models.manifest import TensorHashes, fingerprint, manifest
from edgeprism.wire.frame import Buffer, Frame

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
WINDOW = 4  # chunks asked for ahead: 4 MB keep a link of 1 Gbit/s busy for 30 ms
DEFAULT_CACHE_BYTES = 20 * 10**9
_FILE_NAME = re.compile(r"config\.json|model[\w.-]*\.safetensors(\.index\.json)?", re.ASCII)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

Ask = Callable[[Mapping[str, Any]], None]
NextChunk = Callable[[], Frame]


class WeightFiles:
    """The coordinator's side: the files of one model directory, in chunks."""

    def __init__(self, directory: Path) -> None:
        names = sorted(path.name for path in directory.iterdir() if _FILE_NAME.fullmatch(path.name))
        self._directory = directory
        self._manifest: bytes | None = None
        self._sizes = {name: (directory / name).stat().st_size for name in names}

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(self._sizes.values())

    def had_before(self, question: Mapping[str, Any]) -> tuple[int, int] | None:
        """How many bytes, and of how many, a device has that asks this: as it says, where it wants some of the weights
        only; else of all files, in their order. None where it asks for what comes before weights."""
        name, offset = question.get("file"), question.get("offset")
        if name not in self._sizes or not isinstance(offset, int):
            return None
        if "num_bytes" in question:
            had, wanted = question.get("had_bytes"), question.get("wanted_bytes")
            if isinstance(had, int) and isinstance(wanted, int) and 0 <= had < wanted <= self.num_bytes:
                return had, wanted
            return None
        names = list(self._sizes)
        return sum(self._sizes[other] for other in names[: names.index(name)]) + offset, self.num_bytes

    def answer(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Buffer, ...]]:
        """What a FETCH frame asks for: the list of files, or a chunk of one; FrameError if there is none."""
        name, offset, num_bytes = question.get("file"), question.get("offset"), question.get("num_bytes", CHUNK_BYTES)
        if question.get("manifest"):
            if self._manifest is None:
                self._manifest = json.dumps(manifest(self._directory, {})).encode()
            return {"manifest": True}, (Buffer("uint8", np.frombuffer(self._manifest, dtype=np.uint8)),)
        if name is None:
            return {"files": self._sizes}, ()
        if (
            not isinstance(name, str)
            or name not in self._sizes
            or not isinstance(offset, int)
            or not 0 <= offset < self._sizes[name]
            or not isinstance(num_bytes, int)
            or num_bytes < 1
        ):
            raise FrameError(f"a worker asks for {name!r} at {offset!r}, which is not there")
        with (self._directory / name).open("rb") as file:
            file.seek(offset)
            chunk = file.read(min(num_bytes, CHUNK_BYTES))
        return {"file": name, "offset": offset}, (Buffer("uint8", np.frombuffer(chunk, dtype=np.uint8)),)


class WeightCache:
    """The worker's side: models by fingerprint under ``root``, the least recently used removed beyond ``max_bytes``."""

    def __init__(self, root: Path, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._root, self._max_bytes = root, max_bytes
        self._verified: set[str] = set()

    def find(self, wanted: str) -> Path | None:
        """The directory of the model with that fingerprint, if it has come whole. It is read once in the life of a
        process: a card may lose what it has kept."""
        directory = self._place(wanted)
        if not directory.is_dir():
            return None
        if wanted not in self._verified:
            if not _is(wanted, directory, {}):
                log.warning("%s is damaged; it is removed, and sent anew", directory)
                shutil.rmtree(directory, ignore_errors=True)
                return None
            self._verified.add(wanted)
        os.utime(directory)  # used now
        return directory

    def fetch(self, wanted: str, ask: Ask, next_chunk: NextChunk) -> Path:
        """Has the model sent, from where an earlier attempt ended. ModelFilesError says what stands in the way."""
        directory = self._place(wanted)
        partial = directory.with_name(f"{wanted}.partial")
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with _locked(partial) as is_ours:
                # another worker of this machine may be at it: then this one takes its own, which nobody resumes
                own = partial if is_ours else directory.with_name(f"{wanted}.{os.getpid()}.partial")
                self._fetch(wanted, directory, own, ask, next_chunk)
        except OSError as exc:
            raise ModelFilesError(f"the weights cannot be kept in {self._root}: {exc.strerror or exc}") from exc
        self._verified.add(wanted)
        return directory

    def _fetch(self, wanted: str, directory: Path, partial: Path, ask: Ask, next_chunk: NextChunk) -> None:
        try:
            partial.mkdir(parents=True, exist_ok=True)
            ask({})
            sizes = check_sizes(next_chunk())
            self.make_room(sum(sizes.values()), partial)
            hashes = {name: TensorHashes(partial / name) for name in sizes if name.endswith(".safetensors")}
            _receive(partial, sizes, hashes, ask, next_chunk)
            if not _is(wanted, partial, hashes):
                shutil.rmtree(partial)
                raise ModelFilesError("what the coordinator sent is not the model that it ordered; it is thrown away")
            for name in sizes:
                _flush(partial / name)  # a name must not outlive its bytes when the power goes
            if directory.is_dir():  # the other worker was faster
                shutil.rmtree(partial)
            else:
                os.replace(partial, directory)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def place_of_pieces(self, wanted: str, pieces: tuple[int, int]) -> Path:
        """Where the pieces [start, stop) of the model with that fingerprint are kept."""
        whole = self._place(wanted)
        return whole.with_name(f"{whole.name}-{pieces[0]}-{pieces[1]}")

    def _place(self, wanted: str) -> Path:
        if not _FINGERPRINT.fullmatch(wanted):
            raise InputError("the coordinator ordered a model without a fingerprint")
        return self._root / wanted

    def make_room(self, num_bytes: int, partial: Path) -> None:
        """Removes what was not used for longest, until so many bytes fit. ModelFilesError where they never will."""
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


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Whether nobody else on this machine is filling that directory; it is ours until the end of the ``with``."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _is(wanted: str, directory: Path, hashes: Mapping[str, TensorHashes]) -> bool:
    try:
        return fingerprint(directory, hashes) == wanted
    except ModelFilesError:
        return False


def check_sizes(frame: Frame) -> dict[str, int]:
    """The files that a CHUNK frame lists. FrameError where it does not do that properly."""
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
        num_bytes = min(CHUNK_BYTES, sizes[name] - offset)
        came = frame.info.get("file"), frame.info.get("offset"), sum(buffer.data.nbytes for buffer in frame.arrays)
        if came != (name, offset, num_bytes) or len(frame.arrays) != 1:
            raise FrameError(f"the coordinator sent another chunk than {num_bytes} bytes of {name} at {offset}")
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
