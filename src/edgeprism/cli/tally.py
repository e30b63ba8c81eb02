"""What a stream has done so far, counted: for the status line, the summary, and the JSON document."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeprism.cli.latencies import Latencies

if TYPE_CHECKING:
    from edgeprism.cli.feed import Feed, Outcome
    from edgeprism.runtime.trace import Trace
    from edgeprism.tasks.frames import Source

RECENT_S = 2.0
MIN_RECENT = 5
"""What the status line tells is of the last 2 s; of the last five pictures where those took longer."""
LIMIT = 0.9
"""A reader that is at work for this part of the time leaves the devices waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recent:
    ended_s: float
    latency_s: float
    devices: tuple[int, ...]


class Tally:
    """``begin`` it when the first picture is asked for, ``end`` it after the last answer."""

    def __init__(self, source: Source, feed: Feed) -> None:
        self._source, self._feed = source, feed
        self.num_done = self.num_dropped = self.num_rejected = 0
        self.num_failed = self.num_unfinished = self.num_unreadable = 0
        self.by_device: Counter[int] = Counter()
        self.left_out: tuple[str, ...] = ()
        """Devices that could not be used when the newest answer was there, and why."""
        self._left_out_s = 0.0
        self._from_taken, self._from_submitted = Latencies(), Latencies()
        self._recent: deque[_Recent] = deque()
        self._began_s = self._ended_s = time.monotonic()

    def begin(self) -> None:
        """Time runs from here."""
        self._began_s = self._ended_s = time.monotonic()

    def end(self) -> None:
        """And to here."""
        self._ended_s = time.monotonic()

    @property
    def num_through(self) -> int:
        """Pictures with an outcome."""
        return self.num_done + self.num_dropped + self.num_rejected + self.num_failed + self.num_unfinished

    def done(self, outcome: Outcome, trace: Trace) -> None:
        """A picture was answered."""
        self.num_done += 1
        devices = devices_of(trace)
        self.by_device.update(devices)
        there_s = outcome.submitted_s + trace.queued_s + trace.total_s  # where order is kept, others are told first
        if there_s >= self._left_out_s:
            self.left_out, self._left_out_s = trace.left_out, there_s
        self._from_taken.add(outcome.ended_s - outcome.taken_s)
        self._from_submitted.add(outcome.ended_s - outcome.submitted_s)
        self._recent.append(
            _Recent(ended_s=outcome.ended_s, latency_s=outcome.ended_s - outcome.taken_s, devices=devices)
        )

    # Reader

    @property
    def shares(self) -> dict[str, float]:
        """Of the reader's time so far, what went into which."""
        feed = self._feed
        seconds = {"reading": feed.reading_s, "preparing": feed.preparing_s, "waiting": feed.waiting_s}
        total_s = sum(seconds.values())
        return {name: round(value / total_s, 4) if total_s else 0.0 for name, value in seconds.items()}

    @property
    def reader_is_limit(self) -> bool:
        """Whether devices wait for pictures: where some were dropped they do not, however busy the reader was."""
        return self.shares["waiting"] <= 1 - LIMIT and not self.num_dropped and not self.num_rejected

    # Telling

    def status(self) -> str:
        """How it goes now."""
        now = time.monotonic()
        recent = self._recent
        while len(recent) > MIN_RECENT and recent[0].ended_s < now - RECENT_S:
            recent.popleft()
        words = [f"{self._fps(now):.1f} fps", f"{self.num_done} done"]
        if lost := self.num_dropped + self.num_rejected + self._source.num_passed_over:
            words.append(f"{lost} dropped")
        if recent:
            latencies = Latencies()
            for one in recent:
                latencies.add(one.latency_s)
            words += [f"p{percent} {1e3 * latencies.percentile_s(percent):.0f} ms" for percent in (50, 95)]
        absent = {who for who, _ in map(split_reason, self.left_out)}
        devices = sorted({d for one in recent for d in one.devices if f"device {d}" not in absent})
        words.append(f"devices {' '.join(map(str, devices)) or '-'}")
        if self.left_out:
            words.append("without " + ", ".join(sorted(absent)))
        reader = 1 - self.shares["waiting"] if self._feed.num_submitted else 0.0
        words.append(f"reading {reader:.0%}" + (": the limit" if self.reader_is_limit else ""))
        return ", ".join(words)

    def _fps(self, now: float) -> float:
        """Of the recent ones; it falls when none come."""
        if not self._recent:
            return 0.0
        since_s = self._recent[0].ended_s if len(self._recent) > 1 else self._began_s
        num_done = max(1, len(self._recent) - 1)
        return num_done / max(1e-6, now - since_s)

    def summary(self) -> str:
        """All of it, in a few lines."""
        num_others = {
            "dropped": self.num_dropped,
            "passed over": self._source.num_passed_over,
            "rejected": self.num_rejected,
            "failed": self.num_failed,
            "unfinished": self.num_unfinished,
            "unreadable": self.num_unreadable,
            "other files": self._source.num_other_files,
        }
        lines = [f"{self._source.name}: {self.num_done} pictures in {self.duration_s:.1f} s, {self.fps:.1f} a second"]
        if told := [f"{name} {count}" for name, count in num_others.items() if count]:
            lines.append(", ".join(told))
        if self.num_done:
            rows = {"read to answer": self._from_taken, "submit to answer": self._from_submitted}
            lines.append(f"{'latency, ms':<16}" + "".join(f"{name:>9}" for name in self._from_taken.to_json()))
            for name, latencies in rows.items():
                lines.append(f"{name:<16}" + "".join(f"{value or 0:9.1f}" for value in latencies.to_json().values()))
            lines.append(", ".join(f"device {device}: {count}" for device, count in sorted(self.by_device.items())))
        lines += [f"left out: {device}" for device in self.left_out]
        lines.append("reader: " + ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items()))
        if self.reader_is_limit and self._feed.num_submitted:
            lines.append("the reader is the limit: devices wait while pictures are read and prepared")
        return "\n".join(lines)

    @property
    def duration_s(self) -> float:
        """Seconds from ``begin`` to ``end``."""
        return self._ended_s - self._began_s

    @property
    def fps(self) -> float:
        """Answered pictures in a second, over all."""
        return self.num_done / self.duration_s if self.duration_s > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "count": self.num_done,
            "duration_s": round(self.duration_s, 3),
            "fps": round(self.fps, 3),
            "dropped": self.num_dropped,
            "passed_over": self._source.num_passed_over,
            "rejected": self.num_rejected,
            "failed": self.num_failed,
            "unfinished": self.num_unfinished,
            "unreadable": self.num_unreadable,
            "other_files": self._source.num_other_files,
            "latency_ms": {
                "read_to_answer": self._from_taken.to_json(),
                "submit_to_answer": self._from_submitted.to_json(),
            },
            "devices": {str(device): count for device, count in sorted(self.by_device.items())},
            "left_out": list(self.left_out),
            "reader": {**self.shares, "is_limit": self.reader_is_limit},
        }


def devices_of(trace: Trace) -> tuple[int, ...]:
    """Those that computed."""
    return tuple(part.device for part in trace.devices if part.work)


def split_reason(left_out: str) -> tuple[str, str]:
    """ "device 1: why" as its two halves."""
    who, _, why = left_out.partition(": ")
    return who, why


def came_back(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Devices that were left out, and are not any more."""
    out = {who for who, _ in map(split_reason, now)}
    return [who for who, _ in map(split_reason, before) if who not in out]
