"""Video files and cameras, by OpenCV. It is an extra: where it is missing, importing this module is an InputError.

OpenCV gives blue, green, red; what leaves here is RGB.

A camera does not wait. What its driver, or the network, holds back for a slow reader gets older and older, so a thread
takes every picture as it comes and keeps the newest alone.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

from PIL import Image

from edgeprism.errors import InputError, SourceEnded
from edgeprism.tasks.frames import Picture, Source

# What is wrong is said once, by us. FFmpeg's -8 is AV_LOG_QUIET.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
try:
    import cv2
except ImportError as exc:
    reason = "" if exc.name == "cv2" else f" ({exc})"  # another library, which OpenCV needs
    raise InputError(f"videos and cameras need OpenCV; run: pip install 'edgeprism[video]'{reason}") from None

OPEN_TIMEOUT_S = 10.0
SILENT_S = 10.0
"""A camera that gives nothing for so long has ended."""
COMPLETE = 0.95
"""A file with less than this part of the pictures that it promises was cut off; the promise is an estimate in some."""
CLOSE_TIMEOUT_S = 1.0


class VideoFile(Source):
    """The frames of a file. InputError for what OpenCV cannot open."""

    kind = "video"

    def __init__(self, capture: cv2.VideoCapture, name: str) -> None:
        super().__init__(name)
        self._capture = capture
        self._is_closed = False

    def pictures(self) -> Generator[Picture, None, None]:
        promised, count = num_frames(self._capture), 0
        try:
            while not self._is_closed:
                taken_s = time.monotonic()
                is_there, frame = self._capture.read()
                if not is_there:
                    break
                count += 1
                yield Picture(name=f"{self.name}#{count}", image=to_picture(frame), taken_s=taken_s)
            if not self._is_closed and count < COMPLETE * promised:
                self.note = f"{self.name} ended after {count} of {promised} pictures: it is damaged or cut off"
        finally:
            self._capture.release()  # here, where nobody reads from it any more

    def close(self) -> None:
        self._is_closed = True


class LiveVideo(Source):
    """A camera, here or on the network. InputError where no first picture comes."""

    kind = "live"

    def __init__(self, capture: cv2.VideoCapture, name: str) -> None:
        super().__init__(name)
        self._capture = capture
        self._changed = threading.Condition()
        self._newest: tuple[Any, float] | None = None
        self._has_ended = self._is_closed = False
        self._thread = threading.Thread(target=self._take_all, name="camera", daemon=True)
        self._thread.start()
        if not self._wait():
            self.close()
            raise InputError(f"{self.name} was opened, but gives no picture; does another program use it?")

    def pictures(self) -> Generator[Picture, None, None]:
        self.num_passed_over = 0
        for index in itertools.count(1):
            if not self._wait():
                if self._is_closed:
                    return
                why = "has ended" if self._has_ended else f"has given no picture for {SILENT_S:g} s"
                raise SourceEnded(f"{self.name} {why}, after {index - 1} pictures; start again when it is back")
            with self._changed:
                assert self._newest is not None
                (frame, taken_s), self._newest = self._newest, None
            yield Picture(name=f"{self.name}#{index}", image=to_picture(frame), taken_s=taken_s)

    def close(self) -> None:
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_TIMEOUT_S)  # a process should not end while one of its threads is inside of OpenCV

    def _wait(self) -> bool:
        """Until there is a picture; False when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._has_ended or self._is_closed, SILENT_S)
            return self._newest is not None and not self._is_closed

    def _take_all(self) -> None:
        is_there = True
        while is_there and not self._is_closed:
            is_there, frame = self._capture.read()
            with self._changed:
                if is_there:
                    self.num_passed_over += self._newest is not None
                    self._newest = frame, time.monotonic()
                else:
                    self._has_ended = True
                self._changed.notify_all()
        self._capture.release()


def open_file(path: str, name: str) -> Source:
    """A video file."""
    # FFmpeg takes "a:b.mp4" for a protocol, but no absolute path.
    capture = _opened(os.path.abspath(path))
    if capture is None:
        raise InputError(f"{name} is no video that OpenCV can open, or it is cut off")
    return VideoFile(capture, name)


def open_camera(number: int) -> Source:
    """A camera of this device."""
    capture = _on_a_thread(lambda: _opened(number))
    if capture is None:
        raise InputError(f"camera:{number} cannot be opened: is it plugged in, and may you use /dev/video{number}?")
    return LiveVideo(capture, f"camera:{number}")


def open_address(address: str, name: str) -> Source:
    """What a server gives: a camera, or a video if it knows how many pictures that has."""
    timeout_ms = int(1e3 * OPEN_TIMEOUT_S)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
    capture = _on_a_thread(lambda: _opened(address, limits))
    if capture is None:
        raise InputError(f"{name} cannot be opened: nobody answers there, or not with a video that OpenCV takes")
    return VideoFile(capture, name) if num_frames(capture) else LiveVideo(capture, name)


def num_frames(capture: cv2.VideoCapture) -> int:
    """What the source says; 0 where it does not know."""
    return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))


def to_picture(frame: Any) -> Image.Image:
    """A frame of OpenCV (height, width, and one, three or four channels) as a picture in RGB."""
    if frame.ndim == 2 or frame.shape[2] == 1:
        return Image.fromarray(frame.reshape(frame.shape[:2])).convert("RGB")
    return Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB if frame.shape[2] == 3 else cv2.COLOR_BGRA2RGB))


def _opened(where: str | int, limits: list[int] | None = None) -> cv2.VideoCapture | None:
    """None where it cannot be opened. ``limits`` are settings that only FFmpeg knows."""
    try:
        if isinstance(where, int):
            capture = cv2.VideoCapture(where)
        elif cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends():
            capture = cv2.VideoCapture(where, cv2.CAP_FFMPEG, limits or [])
        else:  # a board whose vendor builds OpenCV with GStreamer alone
            capture = cv2.VideoCapture(where)
    except (cv2.error, TypeError, UnicodeError):  # names that are no UTF-8
        return None
    return capture if capture.isOpened() else None


def _on_a_thread(function: Callable[[], cv2.VideoCapture | None]) -> cv2.VideoCapture | None:
    """What it gives, or None when it takes too long. What waits inside of OpenCV, Ctrl-C would not end."""
    future: Future[cv2.VideoCapture | None] = Future()
    threading.Thread(target=lambda: future.set_result(function()), name="opens-video", daemon=True).start()
    try:
        return future.result(OPEN_TIMEOUT_S + 1)
    except TimeoutError:
        return None
