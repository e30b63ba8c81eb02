"""Where a stream's pictures come from: one after the other out of a folder, a video file or a camera. No torch.

A source is opened, which says at once what cannot be used; then ``pictures`` is gone through once, on any one thread;
``close``, from any thread, makes it end early. One damaged picture is an Unreadable among the others, not the end.
"""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from PIL import Image

from edgeprism.errors import InputError
from edgeprism.tasks.pictures import is_picture, read_image

TAKES = "a stream is a folder of pictures, a video file, camera:0, or an rtsp or http address"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture, in RGB. ``taken_s`` on the monotonic clock: its reading began, or the camera gave it."""

    name: str
    image: Image.Image
    taken_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """What should have been a picture, and why it is none."""

    name: str
    why: str


class Source(ABC):
    """See the module."""

    kind: Literal["folder", "video", "live"]
    """A live one has no end of its own, and gives its newest picture whenever it is asked."""

    def __init__(self, name: str) -> None:
        self.name = shown(name)
        """For people: no control characters, no password."""
        self.num_other_files = 0
        """Files of a folder that are no pictures."""
        self.num_passed_over = 0
        """Pictures of a live source that came and went while nobody asked."""
        self.note = ""
        """What is to be said at the end; empty if nothing."""

    @abstractmethod
    def pictures(self) -> Generator[Picture | Unreadable, None, None]:
        """All of them, once. SourceEnded where a live source ends."""

    @abstractmethod
    def close(self) -> None:
        """Ends ``pictures`` soon, also where it waits for a camera."""


class Folder(Source):
    """The pictures directly in a folder, ``img2`` before ``img10``. InputError where there are none."""

    kind = "folder"

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        try:
            files = [Path(entry.path) for entry in os.scandir(path) if entry.is_file()]
        except OSError as exc:
            raise InputError(f"{self.name} cannot be read: {exc.strerror}") from exc
        self._files = sorted(files, key=lambda file: (natural(file.name), file.name))
        if not any(map(is_picture, self._files)):
            raise InputError(f"{self.name} has no pictures in it; {TAKES}")
        self._is_closed = False

    def pictures(self) -> Generator[Picture | Unreadable, None, None]:
        for file in self._files:
            if self._is_closed:
                return
            if not is_picture(file):
                self.num_other_files += 1
                continue
            taken_s = time.monotonic()
            name = shown(file.name)
            try:
                yield Picture(name=name, image=read_image(str(file)), taken_s=taken_s)
            except InputError as exc:
                yield Unreadable(name=name, why=shown(str(exc)))

    def close(self) -> None:
        self._is_closed = True


def open_source(given: str) -> Source:
    """The source that a command line names. InputError says what it is instead, and what would do."""
    if given.startswith("camera:"):
        from edgeprism.tasks.video import open_camera

        number = given.removeprefix("camera:")
        if not re.fullmatch(r"[0-9]{1,3}", number):
            raise InputError(f"camera:{shown(number)} is no camera; write camera:0 for the first")
        return open_camera(int(number))
    if "://" in given:
        from edgeprism.tasks.video import open_address

        return open_address(given, without_password(given))
    if os.path.isdir(given):
        return Folder(Path(given))
    if not os.path.exists(given):
        raise InputError(f"no such folder or file: {shown(given) or 'an empty name'}; {TAKES}")
    if not os.path.isfile(given):
        raise InputError(f"{shown(given)} is neither a folder nor a file; for a camera write camera:0")
    if is_one_picture(given):
        raise InputError(f"{shown(given)} is one picture: give it without --stream; {TAKES}")
    from edgeprism.tasks.video import open_file

    return open_file(given, Path(given).name)


def natural(name: str) -> list[str | int]:
    """By this key names sort as people count.

    >>> sorted(["img10.png", "img9.png", "Img1.png"], key=natural)
    ['Img1.png', 'img9.png', 'img10.png']
    """
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def is_one_picture(path: str) -> bool:
    """Whether Pillow reads it, and it does not move. OpenCV might take it for the first of many."""
    try:
        with Image.open(path) as image:
            return image.format != "MPEG" and getattr(image, "n_frames", 1) == 1
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def without_password(address: str) -> str:
    """An address as it may be shown: cameras have names and passwords in theirs.

    >>> without_password("rtsp://me:secret@10.0.0.7:554/stream?token=1")
    'rtsp://10.0.0.7:554/stream'
    """
    try:
        parts = urlsplit(address)
    except ValueError as exc:
        raise InputError(f"the address of the stream is malformed: {exc}") from None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def shown(name: str) -> str:
    """A name that any terminal can print: file names may hold line ends, escape codes, and what is no UTF-8."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)
