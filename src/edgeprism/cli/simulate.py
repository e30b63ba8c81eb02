"""`edgeprism simulate`: a pipeline over devices that need not be here. No weights, no torch."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprism.cli.text import bytes_text, table
from edgeprism.errors import InputError
from edgeprism.planner.baselines import BASELINES
from edgeprism.planner.pipeline import NOTHING, Pipeline
from edgeprism.simulate.leaving import Interrupted, Leaves, simulate_leaving
from edgeprism.simulate.pipeline import RateChange, simulate
from edgeprism.simulate.published import PREFIX, published
from edgeprism.simulate.system import System
from edgeprism.specs.plan import Stage, parse_stages

_PARTITIONS = {name.lower(): make for name, make in BASELINES.items()}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "simulate",
        help="a pipeline over devices that need not be here",
        description="Plans a pipeline over the devices of a file, and runs it as discrete events.",
    )
    parser.add_argument(
        "system",
        metavar="SYSTEM",
        help=f"a file, or {PREFIX}MODEL:DEVICE=COUNT,... as {PREFIX}vit-large:minnowboard=8,rcc-ve=8",
    )
    parser.add_argument(
        "--partition", default="fastest", metavar="P",
        help=f"fastest (default), quickest (for one request), {', '.join(_PARTITIONS)}, or 0:0-24,1:24-48",
    )  # fmt: skip
    parser.add_argument("--micro-batches", type=int, default=64, metavar="N", help="that wait at home (default: 64)")
    parser.add_argument("--one-medium", action="store_true", help="all devices send over one medium, as on WiFi")
    parser.add_argument("--rate", type=float, metavar="MBIT", help="of every link (default: as in SYSTEM)")
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="S:FACTOR",
        help="after S seconds links have so much of their rate",
    )
    parser.add_argument(
        "--leave", action="append", default=[], metavar="DEVICE:S[:AWAY]",
        help="a device, by its number, is gone after S seconds; others go on AWAY seconds later",
    )  # fmt: skip
    parser.add_argument("--gantt", type=Path, metavar="FILE", help="draw what happens, as PNG or SVG")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def execute(args: argparse.Namespace) -> int:
    """Plan, simulate, print. InputError (one line, exit 2) for whatever cannot be."""
    if args.micro_batches < 1:
        raise InputError(f"--micro-batches must be at least 1, not {args.micro_batches}")
    if args.gantt is not None and args.gantt.suffix not in (".png", ".svg"):
        raise InputError(f"--gantt draws FILE.png or FILE.svg, not {args.gantt}")
    system = published(args.system) if args.system.startswith(PREFIX) else System.read(Path(args.system))
    pipeline = _pipeline(system, args.rate)
    if args.one_medium:
        pipeline = replace(pipeline, has_one_medium=True)
    stages = _stages(args.partition, pipeline)
    changes = [_change(text) for text in args.change]
    if len(args.leave) > 1:
        raise InputError(f"one device may leave, and --leave was given {len(args.leave)} times")
    if args.leave:
        leaves = _leaves(args.leave[0])
        again = "fastest" if ":" in args.partition else args.partition  # stages that were named are for all devices
        found = simulate_leaving(
            pipeline, stages, args.micro_batches, leaves, lambda rest: _stages(again, rest),
            changes=changes,
        )  # fmt: skip
    else:
        run = simulate(pipeline, stages, args.micro_batches, changes=changes)
        found = Interrupted(before=run, after=None, stages_after=tuple(stages), num_again=0)
    if args.gantt is not None:
        from edgeprism.simulate.gantt import draw

        runs = [(stages, found.before.spans)] + (
            [] if found.after is None else [(found.stages_after, found.after.spans)]
        )
        draw(runs, system.names, args.gantt)
    document = _document(system, pipeline, stages, found, args)
    for note in _in_vain(changes, _leaves(args.leave[0]) if args.leave else None, stages, document["total_s"]):
        print(f"edgeprism: note: {note}", file=sys.stderr)
    print(json.dumps(document, indent=2) if args.json else _as_text(document))
    return 0


def _pipeline(system: System, rate_mbit: float | None) -> Pipeline:
    if rate_mbit is None:
        return system.pipeline()
    if not 0 < rate_mbit < math.inf:
        raise InputError(f"--rate must be more than 0 Mbit/s, not {rate_mbit:g}")
    everywhere = [rate_mbit * 1e6 / 8] * sum(kind.count for kind in system.devices)
    return replace(system.pipeline(), bytes_per_s=tuple(tuple(everywhere) for _ in everywhere))


def _stages(partition: str, pipeline: Pipeline) -> tuple[Stage, ...]:
    if partition in ("fastest", "quickest"):
        from edgeprism.planner.quickest import quickest  # numpy takes its time
        from edgeprism.planner.throughput import fastest

        return pipeline.runnable((fastest if partition == "fastest" else quickest)(pipeline))
    there = [device for device in range(pipeline.num_devices) if pipeline.memory_bytes[device] != NOTHING]
    if partition in _PARTITIONS:
        stages = _PARTITIONS[partition](pipeline, there)
    elif ":" in partition:
        stages = parse_stages(partition)
    else:
        raise InputError(f"unknown partition {partition!r}; use fastest, quickest, {', '.join(_PARTITIONS)}, or stages")
    pipeline.check(stages)
    return stages


def _change(text: str) -> RateChange:
    try:
        at_s, factor = map(float, text.split(":"))
    except ValueError:
        raise InputError(f"--change {text} is not SECONDS:FACTOR, such as 30:0.1") from None
    if not (math.isfinite(at_s) and math.isfinite(factor)):
        raise InputError(f"--change {text} is not SECONDS:FACTOR, such as 30:0.1")
    return RateChange(at_s=at_s, factor=factor)


def _leaves(text: str) -> Leaves:
    parts = text.split(":")
    try:
        device, at_s, away_s = int(parts[0]), float(parts[1]), float(parts[2]) if len(parts) > 2 else 0.0
        if not (math.isfinite(at_s) and math.isfinite(away_s)):
            raise ValueError
        return Leaves(device=device, at_s=at_s, away_s=away_s)
    except (ValueError, IndexError):
        raise InputError(f"--leave {text} is not DEVICE:SECONDS or DEVICE:SECONDS:AWAY, such as 3:30:5") from None


def _in_vain(
    changes: Sequence[RateChange], leaves: Leaves | None, stages: Sequence[Stage], total_s: float
) -> list[str]:
    """What was asked for and did not come about."""
    over = f"all micro-batches were home after {total_s:.2f} s; take more of them (--micro-batches), or less time"
    notes = [f"no rate changed at {change.at_s:g} s: {over}" for change in changes if change.at_s >= total_s]
    if leaves is not None and leaves.device not in {stage.device for stage in stages}:
        notes.append(f"device {leaves.device} has no stage, so nothing happens when it leaves")
    elif leaves is not None and leaves.at_s >= total_s:
        notes.append(f"device {leaves.device} did not leave at {leaves.at_s:g} s: {over}")
    return notes


def _document(
    system: System, pipeline: Pipeline, stages: Sequence[Stage], found: Interrupted, args: argparse.Namespace
) -> dict[str, Any]:
    names, total_s = system.names, found.done_s[-1]
    busy = [0.0] * len(stages)
    for span in found.before.spans:
        if span.kind == "compute":
            busy[span.stage] += span.stop_s - span.start_s
    transfers = pipeline.transfers(stages)
    lasted_s = max((span.stop_s for span in found.before.spans), default=0.0) if found.after is not None else total_s
    period_s = found.before.period_s if len(found.before.done_s) > 1 else pipeline.period_s(stages)
    return {
        "model": system.model,
        "source": system.source,
        "partition": args.partition,
        "micro_batch": system.micro_batch,
        "stages": [
            {
                "device": stage.device, "name": names[stage.device], "pieces": [stage.start, stage.stop],
                "compute_s": pipeline.compute_s(stage), "transfer_s": transfers[index],
                "memory_bytes": pipeline.stage_bytes(stage), "busy": busy[index] / lasted_s if lasted_s else 0.0,
            }
            for index, stage in enumerate(stages)
        ],
        "micro_batches": len(found.done_s),
        "total_s": total_s,
        "period_s": period_s,
        "samples_per_s": system.micro_batch / period_s,
        "samples_per_s_after": None if found.after is None else system.micro_batch / found.after.period_s,
        "planned_period_s": pipeline.period_s(stages),
        "first_s": found.done_s[0],
        "one_device_s": min(sum(row) for row in pipeline.piece_s),
        "begun_again": found.num_again,
        "stages_after": [str(stage) for stage in found.stages_after] if found.after is not None else None,
    }  # fmt: skip


def _as_text(document: dict[str, Any]) -> str:
    rows = [
        (
            str(index), f"{row['device']} ({row['name']})", f"{row['pieces'][0]}-{row['pieces'][1]}",
            f"{row['compute_s']:.3f} s", f"{row['transfer_s']:.3f} s", bytes_text(row["memory_bytes"]),
            f"{100 * row['busy']:.0f} %",
        )
        for index, row in enumerate(document["stages"])
    ]  # fmt: skip
    faster = document["one_device_s"] / document["period_s"]
    lines = [
        f"{document['model']}, micro-batches of {document['micro_batch']}, partition {document['partition']}",
        "",
        *table(("stage", "device", "pieces", "computes", "receives", "memory", "busy"), rows),
        "",
        f"{document['micro_batches']} micro-batches in {document['total_s']:.2f} s; "
        f"{'until the device left' if document['stages_after'] is not None else 'when full'} one every "
        f"{document['period_s']:.3f} s: {document['samples_per_s']:.3f} samples/s,",
        f"{faster:.2f} times the fastest device alone. The first is home after {document['first_s']:.2f} s.",
    ]
    if document["stages_after"] is not None:
        stages = ", ".join(document["stages_after"])
        lines.append(
            f"{document['begun_again']} micro-batches were begun again, on stages {stages}: "
            f"{document['samples_per_s_after']:.3f} samples/s from then on."
        )
    return "\n".join([*lines, f"Source: {document['source']}"] if document["source"] else lines)
