"""Pickles that hold arrays of bytes, lists, texts and numbers in a dictionary, read without running anything in them.

A pickle is a program: it names functions to call. Here the few names that a plain array of uint8 needs lead to
classes of this module, which only keep what they are given, and every other name is refused. numpy's own unpickling
is not used.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from edgeprism.evaluate.dataset import wrong


class _Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        pass  # byte order, and fields of structured types: uint8 has neither


class _Array:
    """Stands for numpy.ndarray."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _array(*_: object) -> _Array:
    """Stands for numpy's _reconstruct, which makes an empty array to be filled."""
    return _Array()


def _latin1(text: object, encoding: object = "latin1") -> bytes:
    """Stands for _codecs.encode: bytes in pickles that Python 3 wrote for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("bytes in an unknown coding")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("_codecs", "encode"): _latin1,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data needs")
        return _ADMITTED[module, name]


def read_pickle(path: Path) -> Any:
    """What a pickle holds: dictionaries, lists, texts, numbers and arrays of uint8. InputError names a file that is
    something else, or asks for more."""
    try:
        with path.open("rb") as file:
            return _finished(_Reader(file, encoding="bytes").load())
    except Exception as exc:  # a damaged pickle may raise anything
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise wrong(path, f"no pickle of plain data ({reason})") from exc


def _finished(value: Any) -> Any:
    """Arrays as numpy's; a dictionary's values too."""
    if isinstance(value, dict):
        return {key: _finished(item) for key, item in value.items()}
    if not isinstance(value, _Array):
        return value
    match value.state:
        case (_, tuple() as shape, _Dtype(name="u1"), False | 0, bytes() as data):
            return np.frombuffer(data, dtype=np.uint8).reshape(shape)
    raise ValueError("an array that is not of uint8 in rows")
