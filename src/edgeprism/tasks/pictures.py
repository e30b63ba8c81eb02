"""Files of pictures: read, or refused by name. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from edgeprism.errors import InputError

# Pillow tells them by how they begin, and reads no pixels of them.
_NO_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG"}


def check_image(path: str) -> None:
    """InputError for a file that does not begin as a picture does; its pixels are not read yet."""
    with _named(path), Image.open(path):
        pass


def is_picture(path: Path) -> bool:
    """Whether a file is meant as a picture: by its suffix, damaged or not, else by how it begins."""
    if path.suffix.lower() in _suffixes():
        return True
    try:
        with Image.open(path) as image:
            return image.format not in _NO_PICTURES
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def read_image(path: str) -> Image.Image:
    """A picture in RGB; InputError names the file that is none."""
    with _named(path), Image.open(path) as image:
        return image.convert("RGB")


@cache
def _suffixes() -> frozenset[str]:
    formats = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in formats if name in Image.OPEN and name not in _NO_PICTURES)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turns what Pillow raises into an InputError that names the file."""
    if not os.path.exists(path):  # which, unlike Path.exists, takes a text of any length
        raise InputError(f"no such picture: {path or 'an empty name'}; this model takes pictures, so give their paths")
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory; give the paths of pictures, or the directory with --stream")
    try:
        yield
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture in a format that Pillow reads") from None
    except (OSError, ValueError, Image.DecompressionBombError) as exc:  # no permission, a file cut off
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise InputError(f"{path} cannot be read as a picture: {reason}") from exc
