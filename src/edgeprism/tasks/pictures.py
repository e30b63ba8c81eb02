"""Files of pictures: read, or refused by name. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from edgeprism.errors import InputError


def check_image(path: str) -> None:
    """InputError for a file that does not begin as a picture does; its pixels are not read yet."""
    with _named(path), Image.open(path):
        pass


def read_image(path: str) -> Image.Image:
    """A picture in RGB; InputError names the file that is none."""
    with _named(path), Image.open(path) as image:
        return image.convert("RGB")


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turns what Pillow raises into an InputError that names the file."""
    if not path or not Path(path).exists():
        raise InputError(f"no such picture: {path or 'an empty name'}; this model takes pictures, so give their paths")
    if Path(path).is_dir():
        raise InputError(f"{path} is a directory; give the paths of pictures")
    try:
        yield
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture in a format that Pillow reads") from None
    except (OSError, ValueError, Image.DecompressionBombError) as exc:  # no permission, a file cut off
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise InputError(f"{path} cannot be read as a picture: {reason}") from exc
