"""What is done to right frames: bits flipped, parts cut, added and exchanged, header fields set to extremes, shapes
that lie, and JSON that is hostile, or right in form and wrong in what it says.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from benchmarks.fuzzing.corpus import HEADER_BYTES, META_BYTES_AT, Message

# (offset, format) of the fields: magic, protocol, kind, arrays, 0, epoch, request, block, sender, 0, meta bytes
_FIELDS = tuple(zip((0, 4, 5, 6, 7, 8, 12, 16, 20, 22, META_BYTES_AT), "IBBBBIIIHHI", strict=True))
_TOPS = {"B": 2**8, "H": 2**16, "I": 2**32}
_SIDES = (0, 1, 2, 3, 2**8, 2**16, 2**31 - 1, 2**31, 2**32 - 1)

# Texts that json.dumps would not write; they are put in for a marker.
_RAW = {
    '"@huge"': "1e999",
    '"@tiny"': "-1e999",
    '"@nan"': "NaN",
    '"@deep"': "[" * 400 + "]" * 400,
    '"@long"': "9" * 4000,
}
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 255, 2**16, 2**31, 2**32, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, 1e-320,
    "", "0", "-1", "nan", "inf", "1e999", "\0", "\ud800", "é" * 40, "..", "../../x", "/", "x" * 5000, "A" * 40,
    "exact", "int8", "int4", "kv:exact", "means:2", "means:L=1", "means:L=1000000000", "means:1e9", "kv:means:2+int4",
    "float32", "float16", "bfloat16", "sequence", "replica", "input_ids", "pixel_values", "attention_mask", "mask",
    "tcp://127.0.0.1:1", "tcp://127.0.0.1:99999", "tcp://127.0.0.1", "tcp://", "tcp://127.0.0.1:x",
    [], {}, [[]], [None], {"": None}, [0] * 3000, [[0, 1]] * 300, {"rank": 1}, *(marker.strip('"') for marker in _RAW),
)  # fmt: skip
_WHOLE = (
    b"[]", b"0", b"null", b'"x"', b"{", b"}", b"\xff\xff", b'{"a":Infinity}', b'{"a":1e999}', b'{"a":1,"a":2}',
    b'\xef\xbb\xbf{"a":1}', '{"a":1}'.encode("utf-16"), b'{"a":"\\ud800"}', b'{"a":"\xed\xa0\x80"}',
    b'{"a":NaN}', b'{"a":' + b"9" * 5000 + b"}", b"[" * 3000, b'{"a":' * 3000, b'{"a":' * 500 + b"1" + b"}" * 500,
)  # fmt: skip
HUGE = (
    b"[" * 2**20,
    b'{"a":' * (2**20 // 5),
    b'{"a":"' + b"x" * (2**20 - 8) + b'"}',
    b'{"a":[' + b"0," * (2**19 - 8) + b"0]}",
    b'{"a":1}' + b" " * (2**20 - 7),
    b'{"a":1}' + b" " * 2**20,  # larger than a frame may carry
)
"""Meta of a megabyte: dear to parse, so they are rare."""


class Mutator:
    """Makes messages from ``corpus``, the same ones for the same ``rng``."""

    def __init__(self, corpus: Sequence[Message], rng: random.Random, *, noise: float, huge: float) -> None:
        """``noise`` and ``huge`` are the shares of pure noise, and of messages with a megabyte of meta."""
        self._corpus, self._rng = corpus, rng
        self._noise, self._huge = noise, huge
        self._damages = (
            self._flip, self._flip, self._flip, self._set_field, self._set_field, self._lie, self._cut, self._grow,
            self._drop, self._copy, self._exchange, self._insert,
        )  # fmt: skip

    def next(self, epoch: int | None = None) -> list[bytearray]:
        """One message; its epoch was ``epoch`` before it was damaged."""
        rng = self._rng
        dice = rng.random()
        if dice < self._noise:
            return self._only_noise()
        index = rng.randrange(len(self._corpus))
        message = self._corpus[index]
        if dice > 1 - self._huge:
            return message.parts(epoch, rng.choice(HUGE))
        meta = None
        if rng.random() < 0.35 and (message.meta or rng.random() < 0.1):
            meta = rng.choice(_WHOLE) if rng.random() < 0.2 else self._changed(index)
        parts = message.parts(epoch, meta)
        for _ in range(rng.choice((0, 1, 2)) if meta is not None else rng.choice((0, 1, 1, 1, 2, 3))):
            rng.choice(self._damages)(parts)
        return parts

    def _only_noise(self) -> list[bytearray]:
        rng = self._rng
        return [bytearray(rng.randbytes(rng.choice((0, 1, 27, 28, 29, 60, 300)))) for _ in range(rng.randrange(5))]

    # JSON that is well formed

    def _changed(self, index: int) -> bytes:
        document = json.loads(self._corpus[index].meta or b"{}")
        for _ in range(self._rng.choice((1, 1, 2))):
            self._change(document)
        text = json.dumps(document, separators=(",", ":"))
        for marker, raw in _RAW.items():
            text = text.replace(marker, raw)
        return text.encode()

    def _change(self, document: Any) -> None:
        """One place of the document: another value, gone, doubled, or next to what it was."""
        rng = self._rng
        places: list[tuple[Any, Any]] = []
        _collect(document, places)
        if not places:
            document["introduction"] = deepcopy(rng.choice(_VALUES))
            return
        container, key = rng.choice(places)
        match rng.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container, list):
                container[key:key] = [deepcopy(container[key])] * rng.choice((1, 2, 40))
            case 2 if type(container[key]) in (int, float):
                container[key] += rng.choice((-1, 1, 2, 100))
            case 3:
                other, name = rng.choice(places)
                container[key] = deepcopy(other[name])
            case _:
                container[key] = deepcopy(rng.choice(_VALUES))

    # Bytes that are damaged

    def _flip(self, parts: list[bytearray]) -> None:
        part = self._pick(parts)
        for _ in range(self._rng.choice((1, 1, 2, 8)) if part else 0):
            part[self._rng.randrange(len(part))] ^= 1 << self._rng.randrange(8)

    def _set_field(self, parts: list[bytearray]) -> None:
        offset, form = self._rng.choice(_FIELDS)
        if parts and len(parts[0]) >= HEADER_BYTES:
            struct.pack_into(f"<{form}", parts[0], offset, self._rng.choice(_SIDES) % _TOPS[form])

    def _lie(self, parts: list[bytearray]) -> None:
        """A dimension, or the dtype and the number of dimensions, in a descriptor."""
        if not parts or len(parts[0]) < HEADER_BYTES + 6:
            return
        head, rng = parts[0], self._rng
        offset = HEADER_BYTES + rng.choice((0, 1, 2, 2, 2, 6, 10))
        if offset < HEADER_BYTES + 2:
            head[offset] = rng.randrange(12)
        elif offset + 4 <= len(head):
            struct.pack_into("<I", head, offset, rng.choice(_SIDES))

    def _cut(self, parts: list[bytearray]) -> None:
        part = self._pick(parts)
        del part[self._rng.randrange(len(part) + 1) :]

    def _grow(self, parts: list[bytearray]) -> None:
        self._pick(parts).extend(self._rng.randbytes(self._rng.choice((1, 4, 50))))

    def _drop(self, parts: list[bytearray]) -> None:
        if parts:
            del parts[self._rng.randrange(len(parts))]

    def _copy(self, parts: list[bytearray]) -> None:
        if parts:
            parts += [bytearray(self._pick(parts))] * self._rng.choice((1, 1, 2, 31, 40))

    def _exchange(self, parts: list[bytearray]) -> None:
        self._rng.shuffle(parts)

    def _insert(self, parts: list[bytearray]) -> None:
        parts.insert(self._rng.randrange(len(parts) + 1), bytearray(self._rng.randbytes(self._rng.choice((0, 3, 28)))))

    def _pick(self, parts: list[bytearray]) -> bytearray:
        return self._rng.choice(parts) if parts else bytearray()


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    """Every place in a document, as a container and the key there."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        places.append((value, key))
        _collect(value[key], places)
