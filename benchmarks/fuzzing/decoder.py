"""Frames fuzzed into the decoder, on every core. A frame that breaks the rule is shown whole and can be run again."""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from benchmarks.fuzzing.corpus import every_kind
from benchmarks.fuzzing.mutate import Mutator
from edgeprism.errors import FrameError
from edgeprism.wire.frame import decode, encode

CHUNK_FRAMES = 20_000
NOISE, HUGE = 0.05, 0.0005


class BrokenRule(Exception):
    """The decoder did what it must not do; the message holds the frame."""


@dataclass(slots=True)
class Chunk:
    """What some frames did. ``grown_bytes``: how much the largest memory of the process grew after the first chunk."""

    refused: Counter[str] = field(default_factory=Counter)
    decoded: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    peak_bytes: int = 0

    def add(self, other: Chunk) -> None:
        """Takes another one in."""
        self.refused += other.refused
        self.decoded += other.decoded
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


def fuzz_decoder(num_frames: int, seed: int) -> Chunk:
    """That many frames; BrokenRule at the first one that breaks the rule."""
    total, done = Chunk(), 0
    sizes = [CHUNK_FRAMES] * (num_frames // CHUNK_FRAMES) + [num_frames % CHUNK_FRAMES]
    with ProcessPoolExecutor(max_workers=min(len(sizes), os.cpu_count() or 1)) as pool:
        for size, chunk in zip(sizes, pool.map(_run, sizes, range(seed << 20, (seed << 20) + len(sizes))), strict=True):
            total.add(chunk)
            done += size
            print(f"\rfuzz: decoder {done:,} of {num_frames:,} frames", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return total


def _run(num_frames: int, seed: int) -> Chunk:
    rng = random.Random(seed)
    mutator = Mutator(every_kind(rng), rng, noise=NOISE, huge=HUGE)
    chunk = Chunk()
    for _ in range(num_frames):
        parts = mutator.next()
        began_s = time.perf_counter()
        word, is_decoded = _judge(parts)
        chunk.slowest_s = max(chunk.slowest_s, time.perf_counter() - began_s)
        (chunk.decoded if is_decoded else chunk.refused)[word] += 1
    chunk.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return chunk


def _judge(parts: list[bytearray]) -> tuple[str, bool]:
    """The kind of the frame that came out, or the first words of the refusal; BrokenRule for anything else."""
    try:
        frame = decode(parts)
    except FrameError as exc:
        return " ".join(word for word in str(exc).split() if word.isalpha())[:40], False
    except BaseException as exc:
        raise BrokenRule(f"decode raised {exc!r} for {_shown(parts)}") from exc
    try:
        again = encode(frame)
    except BaseException as exc:
        raise BrokenRule(f"what was decoded cannot be encoded ({exc!r}): {_shown(parts)}") from exc
    if [bytes(part) for part in again] != [bytes(part) for part in parts]:
        raise BrokenRule(f"decoded and encoded again it is another frame: {_shown(parts)}")
    return frame.kind.name, True


def _shown(parts: list[bytearray]) -> str:
    return repr([bytes(part[:400]) for part in parts])
