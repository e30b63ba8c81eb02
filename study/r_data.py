"""Reads the data of an R package without R: a lazy-load database, which is Rdata.rdx (an index) and Rdata.rdb (values).

The index is a value too, compressed by gzip; it says at which byte of Rdata.rdb each variable begins and how many it
has: four with the length of what follows, which is compressed by zlib. Values are in R's serialisation, version 2 or 3,
big-endian ("XDR"; R Internals, section 1.8). Read are strings, whole numbers, and lists of them; of attributes, names.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

NIL_VALUE, REFERENCE, SYMBOL, PAIRS, CHARACTERS, LOGICALS, INTEGERS, STRINGS, LIST = 254, 255, 1, 2, 9, 10, 13, 16, 19
HAS_ATTRIBUTES, HAS_TAG = 0x200, 0x400
ZLIB = 1


class Unreadable(ValueError):
    """Not such a database, or one with values of other types. The message is one line."""


def read_database(folder: Path) -> dict[str, Any]:
    """The variables of the database in ``folder``, by name."""
    try:
        index = read_value(gzip.decompress((folder / "Rdata.rdx").read_bytes()))
        if index["compressed"] != [ZLIB]:
            raise Unreadable(f"{folder / 'Rdata.rdb'} is compressed in way {index['compressed']}, read is {[ZLIB]}")
        values = (folder / "Rdata.rdb").read_bytes()
        places = index["variables"].items()
        return {name: read_value(zlib.decompress(values[at + 4 : at + size])) for name, (at, size) in places}
    except (OSError, EOFError, KeyError, TypeError, UnicodeDecodeError, struct.error, zlib.error) as exc:
        raise Unreadable(f"{folder} holds no database of R: {type(exc).__name__} {exc}") from exc


def read_value(serialised: bytes) -> Any:
    """One value: None, str, list, or dict where a list has names."""
    if serialised[:2] != b"X\n":
        raise Unreadable(f"R's values begin with 'X' and a line feed, not {serialised[:2]!r}")
    reader = _Reader(serialised[2:])
    version, _, _ = (reader.number() for _ in range(3))
    if version not in (2, 3):
        raise Unreadable(f"R's serialisation has version {version}, read are 2 and 3")
    if version == 3:
        reader.take(reader.number())  # the name of the encoding that the writer worked in
    return reader.value()


class _Reader:
    """Takes values from the front of what is left."""

    def __init__(self, serialised: bytes) -> None:
        self._bytes, self._at = serialised, 0
        self._symbols: list[Any] = []

    def take(self, size: int) -> bytes:
        self._at += size
        if size < 0 or self._at > len(self._bytes):
            raise EOFError("a value ends early")
        return self._bytes[self._at - size : self._at]

    def number(self) -> int:
        (number,) = struct.unpack(">i", self.take(4))
        return int(number)

    def value(self) -> Any:
        flags = self.number()
        kind = flags & 0xFF
        if kind == NIL_VALUE:
            return None
        if kind == REFERENCE:
            return self._symbols[(flags >> 8) - 1]
        if kind == SYMBOL:
            self._symbols.append(self.value())
            return self._symbols[-1]
        if kind == CHARACTERS:
            size = self.number()
            return None if size == -1 else self.take(size).decode()
        if kind == PAIRS:
            if flags & HAS_ATTRIBUTES:
                self.value()
            name = self.value() if flags & HAS_TAG else None
            return {name: self.value(), **(self.value() or {})}
        if kind not in (LOGICALS, INTEGERS, STRINGS, LIST):
            raise Unreadable(f"a value of R's type {kind} is not read")
        one = self.value if kind in (STRINGS, LIST) else self.number
        values = [one() for _ in range(self.number())]
        names = (self.value() or {}).get("names") if flags & HAS_ATTRIBUTES else None
        return values if names is None else dict(zip(names, values, strict=True))
