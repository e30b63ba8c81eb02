"""`edgeprism plan --plan pipeline`: stages, what they hold and send, and what they take where that was measured."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprism.cli import pipeline_options
from edgeprism.cli.source import names_of
from edgeprism.cli.text import bytes_text, table
from edgeprism.errors import InputError, PlanError
from edgeprism.planner.baselines import BASELINES
from edgeprism.planner.micro_batch import best_pipeline, sizes_up_to
from edgeprism.planner.one_medium import EXACT_UP_TO, fastest_on_one_medium
from edgeprism.planner.pipeline import NOTHING, Pipeline
from edgeprism.planner.throughput import fastest
from edgeprism.policy.network import Network
from edgeprism.policy.pipeline import pipeline_of, unmeasured
from edgeprism.specs.model import ModelSpec, element_bytes_of
from edgeprism.specs.performance_map import PerformanceMap
from edgeprism.specs.plan import PIECES_A_BLOCK, Plan, Stage, parse_codecs, parse_shares, parse_stages
from edgeprism.strategies.pipeline.partition import cut_bytes, piece_values, piece_work


def plan_pipeline(
    args: argparse.Namespace, model: ModelSpec, dtype: str, num_tokens: int, found: PerformanceMap | None
) -> tuple[Plan, Pipeline | None]:
    """The stages that were asked for, or the best ones by the performance map (``--objective``: throughput by default),
    or cut where the work is even where there is none. PlanError for what cannot be."""
    if found is None:
        return _unmeasured_plan(args, model, dtype, num_tokens), None
    network = Network.measured(found.costs)
    if args.rate is not None:
        network = network.at(args.rate * 1e6 / 8)
    if args.objective == "energy":
        raise InputError("stages are planned for throughput or latency; --objective energy is for the other strategies")
    codec, narrowest = parse_codecs(args.codec)
    memory_bytes = _memory_bytes(args.memory_mb, len(found.devices))

    def make(micro_batch: int) -> Pipeline:
        return pipeline_of(
            found.costs, model, network, num_tokens=num_tokens, micro_batch=micro_batch,
            element_bytes=element_bytes_of(dtype), codec=codec, memory_bytes=memory_bytes,
        )  # fmt: skip

    if args.stages or args.shares:
        pipeline = make(args.micro_batch or 1)
        plan = pipeline_options.plan_of(args, model, pipeline.num_devices, num_tokens)
        pipeline.check(plan.stages)
        return plan, pipeline
    sizes = [args.micro_batch] if args.micro_batch else sizes_up_to(args.batch)
    best = best_pipeline(make, sizes, args.batch, args.objective or "throughput")
    plan = Plan.pipeline(
        best.stages, best.pipeline.num_devices, codec, micro_batch=best.micro_batch, narrowest=narrowest
    )  # fmt: skip
    return plan, best.pipeline


def _unmeasured_plan(args: argparse.Namespace, model: ModelSpec, dtype: str, num_tokens: int) -> Plan:
    """Without a performance map: as asked for, or cut where the work is even, as far as ``--memory-mb`` allows that."""
    if args.objective:
        is_named = args.cluster is not None or args.local_workers > 1
        raise InputError(
            "--objective needs a performance map: " + (
                f"run edgeprism profile {args.model} with the same devices" if is_named
                else "name the devices with --cluster or --local-workers"
            )
        )  # fmt: skip
    num_devices = _num_devices(args)
    plan = pipeline_options.plan_of(args, model, num_devices, num_tokens)
    limits = _memory_bytes(args.memory_mb, num_devices)
    if not limits:
        return plan
    shares = parse_shares(args.shares) if args.shares else (1.0,) * num_devices
    pipeline = unmeasured(
        model, speeds=[share or 1.0 for share in shares],
        memory_bytes=[limits[device] if share else NOTHING for device, share in enumerate(shares)],
        num_tokens=num_tokens, micro_batch=plan.micro_batch, element_bytes=element_bytes_of(dtype), codec=plan.codec,
    )  # fmt: skip
    if args.stages or pipeline.fits(plan.stages):
        pipeline.check(plan.stages)
        return plan
    return Plan.pipeline(
        pipeline.runnable(fastest(pipeline)), num_devices, plan.codec, micro_batch=plan.micro_batch,
        narrowest=plan.narrowest,
    )  # fmt: skip


def _num_devices(args: argparse.Namespace) -> int:
    """Those that are named, else as many as options speak of."""
    named = len(names_of(Path(args.cluster))) if args.cluster is not None else args.local_workers
    if named > 1:
        if args.devices not in (None, named):
            raise PlanError(f"--devices says {args.devices}, and {named} devices are named; leave --devices out")
        return named
    found = args.devices or (args.shares.count(",") + 1 if args.shares else 0)
    if args.stages and not args.devices:
        found = max(stage.device + 1 for stage in parse_stages(args.stages))
    if not found:
        raise PlanError("strategy pipeline needs to know the devices: --cluster, --devices, --shares or --stages")
    return int(found)


def as_document(
    plan: Plan, pipeline: Pipeline | None, model: ModelSpec, *, num_tokens: int, element_bytes: int
) -> dict[str, Any]:
    """Plain JSON values: a row for each stage, and what the whole takes where that is known."""
    macs, values = piece_work(model, num_tokens), piece_values(model)
    cuts = cut_bytes(
        model, plan.codec, num_tokens=num_tokens, batch=plan.micro_batch, element_bytes=element_bytes
    )  # fmt: skip
    measures = pipeline or unmeasured(
        model, speeds=(1.0,) * plan.num_devices, memory_bytes=(math.inf,) * plan.num_devices, num_tokens=num_tokens,
        micro_batch=plan.micro_batch, element_bytes=element_bytes, codec=plan.codec,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for stage in plan.stages:
        row: dict[str, Any] = {
            "device": stage.device,
            "pieces": [stage.start, stage.stop],
            "gflop": 2 * plan.micro_batch * sum(macs[stage.start : stage.stop]) / 1e9,
            "weight_bytes": element_bytes * sum(values[stage.start : stage.stop]),
            "bytes_in": cuts[stage.start],
            "memory_bytes": measures.stage_bytes(stage),
        }
        if pipeline is not None:
            row["compute_s"] = pipeline.compute_s(stage)
        rows.append(row)
    document: dict[str, Any] = {"stages": rows, "micro_batch": plan.micro_batch, "bytes_out": cuts[-1]}
    if pipeline is not None:
        transfers = pipeline.transfers(plan.stages)
        for row, transfer_s in zip(rows, transfers, strict=False):
            row["transfer_s"] = transfer_s
        document |= {
            "out_s": transfers[-1],
            "period_s": pipeline.period_s(plan.stages),
            "request_s": pipeline.request_s(plan.stages),
            "samples_per_s": plan.micro_batch / pipeline.period_s(plan.stages),
            "has_one_medium": pipeline.has_one_medium,
            "bottleneck": _bottleneck(pipeline, plan.stages),
            "baselines": {
                name: _period_s(pipeline, make(pipeline, _known(pipeline))) for name, make in BASELINES.items()
            },
        }
        if pipeline.has_one_medium and len(_known(pipeline)) > EXACT_UP_TO:
            least_s = fastest_on_one_medium(pipeline).lower_bound_s
            document["at_most_faster"] = pipeline.period_s(plan.stages) / least_s - 1
    return document


def as_text(document: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    has_times = "period_s" in document
    heading = ["stage", "device", "blocks", "GFLOP", "weights", "memory", "receives"]
    heading += ["takes", "computes"] if has_times else []
    rows = []
    stages = ",".join(f"{row['device']}:{row['pieces'][0]}-{row['pieces'][1]}" for row in document["stages"])
    runs = f"To run it: --plan pipeline --stages {stages}"
    runs += f" --micro-batch {document['micro_batch']}" if document["micro_batch"] > 1 else ""
    for index, row in enumerate(document["stages"]):
        cells = [
            str(index), str(row["device"]), _blocks(*row["pieces"]), f"{row['gflop']:.2f}",
            bytes_text(row["weight_bytes"]), bytes_text(row["memory_bytes"]), bytes_text(row["bytes_in"]),
        ]  # fmt: skip
        if has_times:
            cells += [_ms(row["transfer_s"]), _ms(row["compute_s"])]
        rows.append(cells)
    lines = table(heading, rows)
    if not has_times:
        return [*lines, "", "What that takes, `edgeprism profile` measures; then the best stages are found.", runs]
    period_s, request_s = document["period_s"], document["request_s"]
    lines += ["", f"A micro-batch of {document['micro_batch']} alone takes {_ms(request_s)}; one is done every "]
    lines[-1] += f"{_ms(period_s)} ({document['samples_per_s']:.2f} samples/s). The slowest: {document['bottleneck']}."
    compared = [
        f"{name} {value / period_s:.2f}" if value is not None else f"{name} does not fit"
        for name, value in document["baselines"].items()
    ]
    lines.append(f"Other partitions, times that: {', '.join(compared)}.")
    if document["has_one_medium"]:
        lines.append("All devices send over one medium, as the profile found: their transfers add up.")
    if "at_most_faster" in document:
        percent = 100 * document["at_most_faster"]
        lines.append(f"For so many devices that is not exact: no partition is more than {percent:.0f} % faster.")
    return [*lines, runs]


def _blocks(start: int, stop: int) -> str:
    """Pieces as blocks: 0-6.5."""
    return f"{start / PIECES_A_BLOCK:g}-{stop / PIECES_A_BLOCK:g}" if stop > start else "relay"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _known(pipeline: Pipeline) -> list[int]:
    return [device for device, limit in enumerate(pipeline.memory_bytes) if limit != NOTHING]


def _period_s(pipeline: Pipeline, stages: Sequence[Stage]) -> float | None:
    try:
        pipeline.check(stages)
    except PlanError:
        return None
    return pipeline.period_s(stages)


def _bottleneck(pipeline: Pipeline, stages: Sequence[Stage]) -> str:
    """What takes the longest."""
    if pipeline.has_one_medium and math.fsum(pipeline.transfers(stages)) >= pipeline.period_s(stages):
        return "all transfers together, on one medium"
    computes = [
        (pipeline.compute_s(stage), f"device {stage.device} computes stage {i}") for i, stage in enumerate(stages)
    ]
    path = [pipeline.home, *(stage.device for stage in stages), pipeline.home]
    sends = [
        (seconds, f"device {sender} sends to device {receiver}")
        for seconds, sender, receiver in zip(pipeline.transfers(stages), path, path[1:], strict=False)
    ]
    return max(computes + sends)[1]


def _memory_bytes(text: str | None, num_devices: int) -> dict[int, float]:
    """By device, from ``--memory-mb``: one number for each."""
    if text is None:
        return {}
    try:
        limits = [float(part) * 1e6 for part in text.split(",")]
    except ValueError:
        limits = []
    if len(limits) != num_devices or not all(limit > 0 for limit in limits):
        raise InputError(f"--memory-mb takes {num_devices} numbers with commas between them, not {text}")
    return dict(enumerate(limits))
