"""Right frames, which the fuzzer starts from: of every kind, with every dtype, and those of a real session."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeprism.wire.frame import Buffer, Frame, Kind, dump_meta, encode

HEADER_BYTES = 28
EPOCH_AT, META_BYTES_AT = 8, 24  # offsets in the header

_STORAGES = ("<f4", "<f2", "<u2", "|i1", "|u1", "<i2", "<i4", "<i8", "|b1", "<f8")
_METAS: tuple[dict[str, Any], ...] = (
    {},
    {"message": "out of memory", "blamed": [2], "cause": "timeout"},
    {"links": [0, 2], "holds": 7},
    {"file": "model.safetensors", "offset": 1048576},
    {"files": {"config.json": 700, "model.safetensors": 346000000}},
    {"macs_per_s": 12345678901.5},
    {"introduction": {"rank": 1, "peers": [{"rank": 0, "address": "", "public_key": "E" * 40}]}},
    {"model": "vit", "dtype": "float32", "device": "cpu", "fingerprint": "0" * 64},
)


@dataclass(frozen=True, slots=True)
class Message:
    """A right message in the pieces that may be changed one by one."""

    header: bytes
    descriptors: bytes
    meta: bytes
    arrays: tuple[bytes, ...]

    @classmethod
    def of(cls, frame: Frame) -> Message:
        """The pieces of a frame."""
        head, *arrays = (bytes(part) for part in encode(frame))
        end = len(head) - len(frame.meta)
        return cls(head[:HEADER_BYTES], head[HEADER_BYTES:end], frame.meta, tuple(arrays))

    def parts(self, epoch: int | None, meta: bytes | None = None) -> list[bytearray]:
        """What travels, in memory of its own; with another ``epoch`` or ``meta`` where one is given."""
        head = bytearray(self.header)
        if epoch is not None:
            struct.pack_into("<I", head, EPOCH_AT, epoch)
        if meta is not None:
            struct.pack_into("<I", head, META_BYTES_AT, len(meta))
        head += self.descriptors
        head += self.meta if meta is None else meta
        return [head, *map(bytearray, self.arrays)]


def every_kind(rng: random.Random) -> list[Message]:
    """Frames of every kind, with and without arrays and meta."""
    frames: list[Frame] = []
    for kind in Kind:
        for meta in _METAS if kind is not Kind.DATA else ({},):
            arrays = tuple(_array(rng) for _ in range(rng.choice((0, 1, 1, 2, 4))))
            frames.append(_frame(rng, kind, meta, arrays))
    frames += [_frame(rng, Kind.DATA, {}, (_array(rng),)) for _ in range(20)]
    return [Message.of(frame) for frame in frames]


def messages(sender: int, frames: Iterable[tuple[Kind, Mapping[str, Any], Sequence[Buffer]]]) -> list[Message]:
    """Messages of one device; their epoch is set when they are sent."""
    return [
        Message.of(Frame(kind=kind, epoch=0, request=1, sender=sender, meta=dump_meta(meta), arrays=tuple(arrays)))
        for kind, meta, arrays in frames
    ]


def _frame(rng: random.Random, kind: Kind, meta: Mapping[str, Any], arrays: tuple[Buffer, ...]) -> Frame:
    return Frame(
        kind=kind,
        epoch=rng.randrange(2**20),
        request=rng.randrange(2**20),
        block=rng.choice((-1, 0, 11)),
        sender=rng.randrange(8),
        meta=dump_meta(meta),
        arrays=arrays,
    )


def _array(rng: random.Random) -> Buffer:
    """A small array of any dtype, up to five dimensions, sometimes empty."""
    storage = rng.choice(_STORAGES)
    shape = [
        rng.choice((0, 1, 2, 3, 5)) if rng.random() < 0.3 else rng.choice((1, 2, 3)) for _ in range(rng.randrange(6))
    ]
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(storage).itemsize
    raw = rng.randbytes(size) if storage != "|b1" else bytes(rng.randrange(2) for _ in range(size))
    array = np.frombuffer(raw, dtype=storage).reshape(shape)
    return Buffer("bfloat16" if storage == "<u2" else array.dtype.name, array)
