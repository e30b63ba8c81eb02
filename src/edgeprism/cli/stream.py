"""`edgeprism run --stream`: picture after picture through the model, with frames per second and latencies.

The feed reads on a thread of its own; this one prints, and is there for Ctrl-C. A camera has no end, so SIGINT and
SIGTERM are how it is meant to end: exit status 0. They break off a folder or a video, and that is 130. All of them
print the summary of what was done; a second Ctrl-C does not wait even for that.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any

from edgeprism.cli.feed import Ended, Feed, Outcome, Stop
from edgeprism.cli.screen import Screen
from edgeprism.cli.tally import Tally, came_back, devices_of
from edgeprism.errors import EdgeprismError, InputError, QueueFull
from edgeprism.tasks.frames import Source, Unreadable, shown

if TYPE_CHECKING:
    from edgeprism.runtime.engine import Engine
    from edgeprism.tasks.inputs import PreparePictures

EXIT_INTERRUPTED = 130
GRACE_S = 5.0
"""How long an interrupted stream waits for what devices have in hand."""
MAX_NAMED = 5
"""So many pictures that failed are named: when one fails, all may."""

LineOf = Callable[[dict[str, Any]], str]


def run_stream(engine: Engine, source: Source, args: argparse.Namespace, screen: Screen, line_of: LineOf) -> int:
    """Runs until the source, or something else, ends it; prints, and gives the exit status.

    SourceEnded when a camera fails; InputError when not one picture could be read.
    """
    stream = _Stream(engine, source, args, screen, line_of)
    ended = stream.run()
    if ended.error is not None and not isinstance(ended.error, EdgeprismError):
        raise ended.error
    if ended.why == "end" and not stream.feed.num_submitted:
        raise InputError(f"not one picture of {source.name} could be read")
    print(json.dumps(stream.document(ended), indent=2) if args.json else f"\n{screen.named(stream.tally.summary())}")
    if ended.error is not None:
        raise ended.error
    if stream.first_failure and not stream.tally.num_done:
        raise EdgeprismError(f"no picture was answered; {stream.first_failure}")
    return EXIT_INTERRUPTED if ended.why == "interrupted" and source.kind != "live" else 0


class _Stream:
    def __init__(
        self, engine: Engine, source: Source, args: argparse.Namespace, screen: Screen, line_of: LineOf
    ) -> None:
        from edgeprism.models.load import directory_of
        from edgeprism.tasks.answers import task_of
        from edgeprism.tasks.inputs import prepare_pictures_with

        self._engine, self._source, self._args, self._line_of = engine, source, args, line_of
        self._task = task_of(engine.spec)
        self._prepare = prepare_pictures_with(directory_of(args.model))
        self._screen = screen
        self._results: list[dict[str, Any]] = []
        self.feed = Feed(engine, source, self._prepare, max_pending=args.max_pending or 0, max_pictures=args.frames)
        self.tally = Tally(source, self.feed)
        self.first_failure = ""

    def run(self) -> Ended:
        self._screen.say("warming up")
        _warm_up(self._engine, self._prepare)
        self._screen.say(f"{self._task} {self._source.name}")
        self.tally.begin()
        self.feed.start()
        try:
            with _signals(self.feed):
                ended = self._take_all()
        finally:
            self.feed.stop("failed", take_back=True)
            self._screen.end()
        self.tally.end()
        if self._source.note:
            self._screen.say(self._source.note)
        return ended

    def document(self, ended: Ended) -> dict[str, Any]:
        """For --json."""
        document = {
            "model": self._args.model,
            "architecture": self._engine.spec.architecture,
            "task": self._task,
            "source": self._source.name,
            "kind": self._source.kind,
            "ended": ended.why,
            **self.tally.to_json(),
        }
        return {**document, "results": self._results} if self._args.results else document

    def _take_all(self) -> Ended:
        """Deals with what happens until everything has; after a signal for some seconds at most."""
        feed, tally = self.feed, self.tally
        began_s = time.monotonic()
        status_at_s = began_s + self._screen.period_s
        stop_at_s = began_s + (self._args.seconds or math.inf)
        leave_at_s = math.inf
        ended: Ended | None = None
        while ended is None or tally.num_through < feed.num_submitted:
            now = time.monotonic()
            if now >= leave_at_s:
                tally.num_unfinished += max(0, feed.num_submitted - tally.num_through)
                return Ended(why="interrupted")
            if now >= stop_at_s:
                stop_at_s = math.inf
                feed.stop("seconds", take_back=False)
            if now >= status_at_s:
                status_at_s = now + self._screen.period_s
                self._screen.status(tally.status())
            try:
                event = feed.events.get(timeout=min(status_at_s, stop_at_s, leave_at_s) - now)
            except Empty:
                continue
            if isinstance(event, Outcome):
                self._take(event)
                feed.seen()
            elif isinstance(event, Unreadable):
                tally.num_unreadable += 1
                self._screen.say(f"skipped: {event.why}")
            elif isinstance(event, Stop):
                leave_at_s = min(leave_at_s, time.monotonic() + GRACE_S)
                feed.stop("interrupted", take_back=True)
            else:
                ended = event
                if ended.error is not None and not isinstance(ended.error, EdgeprismError):
                    break
        return ended if leave_at_s == math.inf or ended.error else Ended(why="interrupted")

    def _take(self, outcome: Outcome) -> None:
        """Counts a picture that is through, and shows its answer."""
        answer, tally = outcome.answer, self.tally
        if answer is None:
            tally.num_rejected += 1
        elif answer.cancelled():
            tally.num_unfinished += 1
        elif (error := answer.exception()) is None:
            assert answer.trace is not None
            before = tally.left_out
            tally.done(outcome, answer.trace)
            for device in came_back(before, tally.left_out):
                self._screen.say(f"{device} is used from now on")
            self._show(outcome, devices_of(answer.trace))
        elif isinstance(error, QueueFull):
            tally.num_dropped += 1
        else:
            tally.num_failed += 1
            why = f"{outcome.name} failed: {shown(str(error) or type(error).__name__)}"
            self.first_failure = self.first_failure or why
            if tally.num_failed <= MAX_NAMED:
                self._screen.say(why if tally.num_failed < MAX_NAMED else f"{why}; further ones are only counted")

    def _show(self, outcome: Outcome, devices: tuple[int, ...]) -> None:
        if self._args.json and not self._args.results:
            return
        assert outcome.answer is not None
        from edgeprism.tasks import answers

        output = outcome.answer.result()
        if self._task == "classify":
            (answer,) = answers.classify(output["logits"], self._engine.config, self._args.top)
        else:
            (answer,) = answers.embed(output, None)
        result = {"input": outcome.name, **answer}
        if self._args.results:
            latency_ms = round(1e3 * (outcome.ended_s - outcome.taken_s), 3)
            self._results.append({**result, "devices": list(devices), "latency_ms": latency_ms})
        else:
            self._screen.result(self._line_of(result))


def _warm_up(engine: Engine, prepare: PreparePictures) -> None:
    """Connects, loads and runs on a grey picture, as the image processor makes it."""
    from PIL import Image

    size = engine.config.image_size  # that of the model: not every processor changes a picture's size
    height_px, width_px = (size, size) if isinstance(size, int) else size
    engine.warmup(**prepare([Image.new("RGB", (width_px, height_px), "grey")]))


@contextmanager
def _signals(feed: Feed) -> Iterator[None]:
    """The first SIGINT or SIGTERM is an event of the feed; the next one does what it did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        restore()
        feed.events.put(Stop())  # nothing else is safe here: this thread may hold any lock

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()
