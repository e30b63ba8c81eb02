"""The frame: how one message between two devices is laid out in bytes, and what is refused.

Why not pickle or a schema compiler: a frame is a fixed header plus raw arrays, so that nothing on the wire can run
code and an array travels without being copied into something else first. ``docs/reference/frame.md`` is the format in
half a page.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeprism.errors import ForeignProtocol, FrameError

Part: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"EPRM"
NO_RANK = 2**16 - 1
"""The sender of a frame that does not know its rank: nobody has introduced it to the receiver."""
PROTOCOL = 2
"""Of the frame, and of the pieces in which it travels over ZeroMQ."""

# magic, protocol, kind, arrays, 0, epoch, request, block, sender, 0, meta bytes
_HEADER = struct.Struct("<4sBBBBIIiHHI")
_MAX_U32 = 2**32 - 1

# Code on the wire, name, and how numpy stores it (numpy has no bfloat16: its bits travel in uint16).
_DTYPES: tuple[tuple[int, str, str], ...] = (
    (1, "float32", "<f4"),
    (2, "float16", "<f2"),
    (3, "bfloat16", "<u2"),
    (4, "int8", "|i1"),
    (5, "uint8", "|u1"),
    (6, "int16", "<i2"),
    (7, "int32", "<i4"),
    (8, "int64", "<i8"),
    (9, "bool", "|b1"),
    (10, "float64", "<f8"),
)
_CODES = {name: code for code, name, _ in _DTYPES}
_NAMES = {code: name for code, name, _ in _DTYPES}
_STORAGE = {name: np.dtype(storage) for _, name, storage in _DTYPES}


class Kind(IntEnum):
    """What a frame is for. DATA is the exchange inside a block; every other kind is called *control*."""

    DATA = 1
    REQUEST = 2
    RESULT = 3
    TOKEN = 4
    FAULT = 5
    EPOCH = 6
    READY = 7
    LOAD = 8
    LOADED = 9
    CLOSE = 10
    FETCH = 11
    CHUNK = 12
    PING = 13
    PONG = 14
    HANDOVER = 15
    CREDIT = 16


ORDERS = frozenset({Kind.REQUEST, Kind.EPOCH, Kind.LOAD, Kind.CLOSE, Kind.CHUNK, Kind.PING})
"""Kinds that only the coordinator, device 0, may send."""

_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one frame may hold; the larger is refused, when sent and when received."""

    max_array_bytes: int = 256 * 2**20
    max_meta_bytes: int = 2**20
    max_arrays: int = 255
    max_dims: int = 8

    @property
    def max_part_bytes(self) -> int:
        """The longest part that can be right."""
        return max(self.max_array_bytes, self.max_header_bytes)

    @property
    def max_header_bytes(self) -> int:
        """The longest first part that can be right: header, descriptors, meta."""
        return _HEADER.size + self.max_arrays * (2 + 4 * self.max_dims) + self.max_meta_bytes


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """One array and the name of its dtype, which numpy alone cannot tell: bfloat16 is kept as uint16 bits.

    Raises FrameError for a dtype that cannot travel, a numpy dtype that does not store it, or an array that is not
    C-contiguous.
    """

    dtype: str
    data: npt.NDArray[Any]

    def __post_init__(self) -> None:
        storage = _STORAGE.get(self.dtype)
        if storage is None:
            raise FrameError(f"dtype {self.dtype!r} cannot travel; these can: {', '.join(_STORAGE)}")
        if self.data.dtype != storage:
            raise FrameError(f"{self.dtype} travels as a numpy array of {storage.name}, not of {self.data.dtype}")
        if not self.data.flags.c_contiguous:
            raise FrameError(f"array of shape {self.data.shape} is not C-contiguous; see numpy.ascontiguousarray")

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Buffer:
        """The buffer of an array whose numpy dtype says it all (any but bfloat16)."""
        return cls(array.dtype.name, array)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One message. ``block`` is -1 where there is none; ``meta`` is a JSON object (UTF-8) in control frames, or
    empty."""

    kind: Kind
    epoch: int
    request: int = 0
    block: int = -1
    sender: int
    meta: bytes = b""
    arrays: tuple[Buffer, ...] = ()

    def __post_init__(self) -> None:
        if not (0 <= self.epoch <= _MAX_U32 and 0 <= self.request <= _MAX_U32):
            raise FrameError(f"epoch {self.epoch} and request {self.request} must fit 32 bits")
        if not (-1 <= self.block < 2**31 and 0 <= self.sender < 2**16):
            raise FrameError(f"block {self.block} must be -1 or more, sender {self.sender} must fit 16 bits")
        if self.kind is Kind.DATA and self.meta:
            raise FrameError("a DATA frame carries no meta")

    @property
    def info(self) -> dict[str, Any]:
        """``meta`` parsed; empty where there is none. Raises FrameError if it is no JSON object."""
        return parse_meta(self.meta)

    @property
    def num_bytes(self) -> int:
        """Bytes of all its parts on the wire."""
        descriptors = sum(2 + 4 * buffer.data.ndim for buffer in self.arrays)
        return _HEADER.size + descriptors + len(self.meta) + sum(buffer.data.nbytes for buffer in self.arrays)


def encode(frame: Frame, limits: Limits = DEFAULT_LIMITS) -> list[Part]:
    """The parts of a frame: header, then the arrays as views on their own memory (nothing is copied).

    Raises FrameError when the frame is larger than ``limits``: the receiver would refuse it.
    """
    if len(frame.arrays) > limits.max_arrays:
        raise FrameError(f"{len(frame.arrays)} arrays; one frame carries at most {limits.max_arrays}")
    if len(frame.meta) > limits.max_meta_bytes:
        raise FrameError(f"{len(frame.meta)} bytes of meta; one frame carries at most {limits.max_meta_bytes}")
    header = [_pack_header(frame)]
    header += [_describe(buffer.dtype, buffer.data, limits) for buffer in frame.arrays]
    header.append(frame.meta)
    return [b"".join(header), *(buffer.data.reshape(-1).view(np.uint8).data for buffer in frame.arrays)]


def decode(parts: Sequence[Part], limits: Limits = DEFAULT_LIMITS) -> Frame:
    """The frame in ``parts``; its arrays are views on the parts, and writable where the parts are.

    Raises FrameError, and nothing else, for whatever is not exactly what ``encode`` makes within ``limits``.
    """
    if not parts or len(parts[0]) < _HEADER.size:
        raise FrameError(f"shorter than the header of {_HEADER.size} bytes")
    head = memoryview(parts[0])
    magic, protocol, code, num_arrays, pad, epoch, request, block, sender, pad2, meta_bytes = _HEADER.unpack_from(head)
    _check_header(magic, protocol, code, pad, pad2)
    if num_arrays > limits.max_arrays or num_arrays != len(parts) - 1:
        raise FrameError(f"{num_arrays} arrays announced, {len(parts) - 1} came; at most {limits.max_arrays} may")
    shapes, offset = _read_descriptors(head, num_arrays, limits)
    if meta_bytes > limits.max_meta_bytes or meta_bytes != len(head) - offset:
        raise FrameError(f"{meta_bytes} bytes of meta announced, {len(head) - offset} came")
    for part in parts[1:]:
        if len(part) > limits.max_array_bytes:
            raise FrameError(f"an array of {len(part)} bytes; at most {limits.max_array_bytes} bytes travel")
    arrays = tuple(_view(name, dims, part) for (name, dims), part in zip(shapes, parts[1:], strict=True))
    meta = bytes(head[offset:])
    parse_meta(meta)
    kind = _KINDS[code]
    return Frame(kind=kind, epoch=epoch, request=request, block=block, sender=sender, meta=meta, arrays=arrays)


def dump_meta(meta: Mapping[str, Any] | None) -> bytes:
    """Meta as it travels. Raises FrameError for what JSON cannot say (NaN included)."""
    if not meta:
        return b""
    try:
        return json.dumps(meta, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise FrameError(f"meta is not JSON: {exc}") from exc


def parse_meta(meta: bytes) -> dict[str, Any]:
    """The JSON object in ``meta``; empty for no bytes. Raises FrameError for everything else."""
    if not meta:
        return {}
    try:
        # as text: json.loads would take UTF-16 bytes, too
        value = json.loads(str(meta, "utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as exc:  # a megabyte of "[" ends in RecursionError
        raise FrameError(f"meta is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise FrameError(f"meta must be a JSON object, not {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is larger than any float")
    return value


def _pack_header(frame: Frame) -> bytes:
    return _HEADER.pack(
        MAGIC, PROTOCOL, frame.kind, len(frame.arrays), 0,
        frame.epoch, frame.request, frame.block, frame.sender, 0, len(frame.meta),
    )  # fmt: skip


def _describe(dtype: str, array: npt.NDArray[Any], limits: Limits) -> bytes:
    if array.ndim > limits.max_dims or array.nbytes > limits.max_array_bytes or max(array.shape, default=0) > _MAX_U32:
        raise FrameError(
            f"array of shape {array.shape}, {array.nbytes} bytes; at most {limits.max_dims} dimensions of 32 bits and "
            f"{limits.max_array_bytes} bytes travel: split the batch"
        )
    return struct.pack(f"<BB{array.ndim}I", _CODES[dtype], array.ndim, *array.shape)


def _check_header(magic: bytes, protocol: int, code: int, pad: int, pad2: int) -> None:
    if magic != MAGIC:
        raise FrameError(f"starts with {magic!r}, not with {MAGIC!r}")
    if protocol != PROTOCOL:
        older = "there" if protocol < PROTOCOL else "here"
        raise ForeignProtocol(
            f"it speaks protocol {protocol}, this device {PROTOCOL}; run {older}: pip install --upgrade edgeprism",
            protocol,
        )
    if code not in _KINDS:
        raise FrameError(f"unknown kind {code}")
    if pad or pad2:
        raise FrameError("reserved bytes are not zero")


def _read_descriptors(head: memoryview, count: int, limits: Limits) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    shapes: list[tuple[str, tuple[int, ...]]] = []
    offset = _HEADER.size
    for _ in range(count):
        if offset + 2 > len(head):
            raise FrameError("an array's descriptor is cut short")
        code, ndim = head[offset], head[offset + 1]
        if code not in _NAMES or ndim > limits.max_dims:
            raise FrameError(f"unknown dtype code {code}, or {ndim} dimensions (at most {limits.max_dims})")
        if offset + 2 + 4 * ndim > len(head):
            raise FrameError("an array's descriptor is cut short")
        shapes.append((_NAMES[code], struct.unpack_from(f"<{ndim}I", head, offset + 2)))
        offset += 2 + 4 * ndim
    return shapes, offset


def _view(name: str, dims: tuple[int, ...], part: Part) -> Buffer:
    storage = _STORAGE[name]
    expected_bytes = math.prod(dims) * storage.itemsize
    if expected_bytes != len(part):
        raise FrameError(f"{name} array of shape {dims} needs {expected_bytes} bytes, {len(part)} came")
    try:
        data = np.frombuffer(part, dtype=storage).reshape(dims) if expected_bytes else np.empty(dims, storage)
    except ValueError as exc:  # an empty array whose other dimensions overflow numpy's
        raise FrameError(f"array of shape {dims} cannot exist: {exc}") from exc
    if name == "bool" and data.size and int(data.view(np.uint8).max()) > 1:
        raise FrameError("a bool array holds bytes other than 0 and 1")
    return Buffer(name, data)
