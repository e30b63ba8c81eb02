"""The thread of a stream that reads, prepares and submits one picture after the other, and knows what it waited for.

What becomes of each picture goes to ``events``, from whichever thread finds out; the thread that takes them from there
prints. So a picture that takes long to read delays no answer, and nothing delays Ctrl-C.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, cast

from edgeprism.errors import EdgeprismError, QueueFull
from edgeprism.tasks.frames import Picture, Source, Unreadable, shown

if TYPE_CHECKING:
    from edgeprism.runtime.answers import Answer
    from edgeprism.runtime.engine import Engine
    from edgeprism.tasks.inputs import PreparePictures

MAX_UNSEEN = 64
"""Pictures beyond those that wait for a device that may wait to be printed, or for their turn: memory has an end."""
LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One picture is through. ``answer`` is None where the queue refused it."""

    name: str
    answer: Answer | None
    taken_s: float
    submitted_s: float
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """No more pictures come. ``why``: end (of the source), frames, what ``stop`` was told, or words of the error."""

    why: str
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody wants it to end; put among the events by whoever learns of that."""


class Feed:
    """``start`` it, take from ``events``, and say ``seen`` for each Outcome; ``stop`` ends it early."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        prepare: PreparePictures,
        *,
        max_pending: int,
        max_pictures: int | None,
    ) -> None:
        self._engine, self._source, self._prepare = engine, source, prepare
        self._max_pictures = max_pictures
        self.events: SimpleQueue[Outcome | Unreadable | Ended | Stop] = SimpleQueue()
        self._unseen = threading.Semaphore(max_pending + MAX_UNSEEN)
        self._under_way: set[Answer] = set()
        self._stopped = threading.Event()
        self._why, self._takes_back = "end", False
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self.num_submitted = 0
        """Pictures of which there is, or will be, an Outcome."""
        self.reading_s = self.preparing_s = self.waiting_s = 0.0
        """What the thread has spent its time on; it waits for devices, or for a camera."""

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def seen(self) -> None:
        """An Outcome was dealt with."""
        self._unseen.release()

    def stop(self, why: str, *, take_back: bool) -> None:
        """Reads no more. ``take_back``: nor is anything begun that no device has begun yet."""
        self._why, self._takes_back = why, take_back
        self._stopped.set()
        self._source.close()
        if take_back:
            for answer in list(self._under_way):
                answer.cancel()

    def _run(self) -> None:
        try:
            ended = Ended(why=self._feed())
        except EdgeprismError as exc:
            ended = Ended(why=str(exc), error=exc)
        except BaseException as exc:  # our own mistake: it is raised where it is seen
            ended = Ended(why=repr(exc), error=exc)
        self.events.put(ended)

    def _feed(self) -> str:
        """Why it ended."""
        with closing(self._pictures()) as pictures:
            for picture in pictures:
                self._offer(picture)
                if self.num_submitted == self._max_pictures:
                    return "frames"
        return self._why

    def _pictures(self) -> Generator[Picture, None, None]:
        """The source's, and how long they took to read; what cannot be read is told."""
        with closing(self._source.pictures()) as pictures:
            while not self._stopped.is_set():
                began_s = time.monotonic()
                picture = next(pictures, None)
                took_s = time.monotonic() - began_s
                if self._source.kind == "live":
                    self.waiting_s += took_s
                else:
                    self.reading_s += took_s
                if picture is None:
                    return
                if isinstance(picture, Unreadable):
                    self.events.put(picture)
                else:
                    yield picture

    def _offer(self, picture: Picture) -> None:
        began_s = time.monotonic()
        try:
            inputs = self._prepare([picture.image])
        except (OSError, ValueError) as exc:  # as image processors say that they cannot
            self.events.put(Unreadable(name=picture.name, why=shown(f"{picture.name} cannot be prepared: {exc}")))
            return
        name, taken_s = picture.name, picture.taken_s
        submitted_s = time.monotonic()
        self.preparing_s += submitted_s - began_s
        while not self._unseen.acquire(timeout=LOOK_S):
            if self._stopped.is_set():
                return

        def tell(answer: Answer | None) -> None:
            if answer is not None:
                self._under_way.discard(answer)
            now = time.monotonic()
            self.events.put(Outcome(name=name, answer=answer, taken_s=taken_s, submitted_s=submitted_s, ended_s=now))

        try:
            answer = self._engine.submit(**inputs)
        except QueueFull:
            tell(None)
        else:
            self._under_way.add(answer)
            # What it is called with, not the one above: an answer that its own callback holds is freed late, if at all.
            answer.add_done_callback(lambda done: tell(cast("Answer", done)))
            if self._takes_back:
                answer.cancel()
        self.num_submitted += 1
        self.waiting_s += time.monotonic() - submitted_s
