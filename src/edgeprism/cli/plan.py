"""`edgeprism plan`: what a plan would compute and send, counted from config.json alone. No weights, no torch."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprism.cli import auto_options, pipeline_options
from edgeprism.cli.plan_auto import decide, map_for
from edgeprism.cli.source import config_directory, usual_tokens
from edgeprism.cli.text import bytes_text, table
from edgeprism.errors import InputError, PlanError
from edgeprism.policy.explain import as_document, as_text
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.cost import Cost, DeviceCost
from edgeprism.specs.model import ModelSpec, element_bytes_of
from edgeprism.specs.plan import Plan, parse_shares
from edgeprism.strategies.registry import count

_COLUMNS = ("device", "samples", "tokens", "key rows", "GFLOP", "sent")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "plan",
        help="count the work and the bytes of a plan, without running it",
        description="Counts what each device would compute and send for one request, from config.json alone.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory in Hugging Face format, or hub id")
    parser.add_argument("--plan", default="auto", metavar="STRATEGY", help="auto, local, replica, sequence or pipeline")
    parser.add_argument("--devices", type=int, metavar="P", help="number of devices, the coordinator included")
    parser.add_argument("--shares", metavar="S,S,...", help="fractions of the work by device (default: even)")
    parser.add_argument(
        "--codec", default="exact", help="what travels under sequence or pipeline, like means:9.9 (default: exact)"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="samples in the request (default: 1)")
    parser.add_argument("--length", type=int, metavar="N", help="tokens of a sample, for text models")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or float64 (default: as the model is stored)")
    parser.add_argument("--cluster", metavar="FILE", help="cluster file: the devices, for plan auto and pipeline")
    parser.add_argument(
        "--local-workers", type=int, default=1, metavar="N", help="the same on this machine, this process included"
    )
    parser.add_argument("--explain", action="store_true", help="every candidate of plan auto, and why")
    parser.add_argument("--rate", type=float, metavar="MBIT", help="as if every link had this rate, in Mbit/s")
    auto_options.add_arguments(parser)
    pipeline_options.add_arguments(parser)
    parser.add_argument("--memory-mb", metavar="MB,MB,...", help="of plan pipeline: each device's memory")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def execute(args: argparse.Namespace) -> int:
    """Count and print. InputError (one line, exit 2) for whatever cannot be carried out."""
    notes: list[str] = []
    auto_options.check(args, ("objective", "map") if args.plan == "pipeline" else ())
    pipeline_options.check_options(args)
    if args.plan != "auto" and args.explain:
        raise InputError(f"--explain belongs to --plan auto, and the plan is {args.plan}")
    if args.plan not in ("auto", "pipeline") and args.rate is not None:
        raise InputError(f"--rate belongs to --plan auto and pipeline, and the plan is {args.plan}")
    if args.plan == "pipeline":
        return _execute_pipeline(args)
    plan = _make_plan(args, notes)
    directory = config_directory(args.model)
    model = ModelSpec.from_directory(directory)
    plan = replace(plan, codec=model.narrower(plan.codec)) if plan.strategy == "sequence" else plan
    dtype = args.dtype or model.dtype
    num_tokens = _num_tokens(args.length, model, directory, notes)
    decision = decide(args, directory, dtype, num_tokens, notes) if args.plan == "auto" else None
    plan = plan if decision is None else decision.chosen.plan
    request = {"num_tokens": num_tokens, "batch": args.batch, "element_bytes": element_bytes_of(dtype)}
    cost = count(model, plan, **request)
    document = {
        "model": args.model,
        "architecture": model.architecture,
        "plan": plan.to_json(),
        "num_tokens": num_tokens,
        "batch": args.batch,
        "dtype": dtype,
        **_counts(cost, one_device=count(model, Plan.local(), **request).devices[0]),
        "note": "; ".join(notes) or None,
    }
    if decision is not None:
        document["decision"] = as_document(decision)
    for note in notes:
        print(f"edgeprism: note: {note}", file=sys.stderr)
    if decision is not None and args.explain and not args.json:
        print(as_text(decision))
    else:
        print(json.dumps(document, indent=2) if args.json else _as_text(document))
    return 0


def _execute_pipeline(args: argparse.Namespace) -> int:
    """Stages instead of shares."""
    from edgeprism.cli.plan_pipeline import as_document, as_text, plan_pipeline

    notes: list[str] = []
    directory = config_directory(args.model)
    model = ModelSpec.from_directory(directory)
    dtype = args.dtype or model.dtype
    num_tokens = _num_tokens(args.length, model, directory, notes)
    model.check_num_tokens(num_tokens)
    found = map_for(args, directory, dtype, notes)
    plan, pipeline = plan_pipeline(args, model, dtype, num_tokens, found)
    details = as_document(plan, pipeline, model, num_tokens=num_tokens, element_bytes=element_bytes_of(dtype))
    for note in notes:
        print(f"edgeprism: note: {note}", file=sys.stderr)
    document = {
        "model": args.model, "architecture": model.architecture, "plan": plan.to_json(), "num_tokens": num_tokens,
        "dtype": dtype, **details, "note": "; ".join(notes) or None,
    }  # fmt: skip
    several = "" if len(plan.stages) == 1 else "s"
    heading = (
        f"{model.architecture}, {num_tokens} tokens, {dtype}: pipeline of {len(plan.stages)} stage{several}, "
        f"micro-batches of {plan.micro_batch}, {plan.codec}"
    )
    if plan.narrowest is not None:
        heading += f" (and down to {plan.narrowest} where a link is slow, which is not counted)"
    print(json.dumps(document, indent=2) if args.json else "\n".join([heading, "", *as_text(details)]))
    return 0


def _make_plan(args: argparse.Namespace, notes: list[str]) -> Plan:
    """The plan that the options ask for; what they ask for in vain goes into ``notes``."""
    codec, shares = CodecSpec.parse(args.codec), _shares(args)
    strategy = "local" if args.plan == "auto" else args.plan
    if strategy != "sequence" and codec != EXACT:
        notes.append(f"codec {codec} has no effect under {strategy}: only sequence exchanges rows")
    if strategy == "local":
        if args.plan == "local" and shares is not None and Plan(strategy="replica", shares=shares).num_devices > 1:
            notes.append(f"strategy local uses one of the {len(shares)} devices")
        return Plan.local()
    plan = Plan(strategy=strategy, shares=shares or (1.0,), codec=codec)
    if shares is None:
        raise PlanError(f"strategy {strategy} needs --devices or --shares: how many devices split the work")
    return plan


def _shares(args: argparse.Namespace) -> tuple[float, ...] | None:
    """The devices' shares by --shares, or even ones by --devices; None where neither is given."""
    if args.shares is None:
        return None if args.devices is None else Plan.even("replica", args.devices).shares
    shares = parse_shares(args.shares)
    if args.devices not in (None, len(shares)):
        raise PlanError(f"--shares names {len(shares)} devices and --devices {args.devices}; give one of the two")
    return shares


def _num_tokens(length: int | None, model: ModelSpec, directory: Path, notes: list[str]) -> int:
    if length is not None:
        if model.is_vision:
            raise PlanError(f"--length is for texts; {model.architecture} takes pictures, which have their own number")
        return length
    assumed = usual_tokens(directory, model)
    if not model.is_vision:
        notes.append(f"assumed --length {assumed}; {model.architecture} takes up to {model.max_tokens} tokens")
    return assumed


def _counts(cost: Cost, one_device: DeviceCost) -> dict[str, Any]:
    """The counted part of the JSON document."""
    return {
        "devices": [
            {
                "index": index,
                "samples": device.num_samples,
                "tokens": device.num_tokens,
                "key_rows": device.key_rows,
                "gflop": device.gflop,
                "bytes_sent": device.bytes_sent,
            }
            for index, device in enumerate(cost.devices)
        ],
        "exchange": {
            "bytes_per_block": cost.bytes_per_block,
            "saved": cost.saved,
            "num_blocks": cost.num_exchanges,
        },
        "computation": {
            "one_device_gflop": one_device.gflop,
            "saved": 1 - cost.busiest.macs / one_device.macs,
        },
        "input_bytes": cost.input_bytes,
    }


def _as_text(document: dict[str, Any]) -> str:
    plan = document["plan"]
    codec = f", codec {plan['codec']}" if plan["strategy"] == "sequence" else ""
    heading = (
        f"{document['architecture']}, {document['num_tokens']} tokens, batch {document['batch']}, {document['dtype']}: "
        f"{plan['strategy']} over {len(plan['shares'])} device(s){codec}"
    )
    return "\n".join([heading, "", *_table(document["devices"]), "", _sentence(document)])


def _table(devices: list[dict[str, Any]]) -> list[str]:
    rows = [
        (
            str(device["index"]),
            str(device["samples"]),
            str(device["tokens"]),
            str(device["key_rows"]),
            f"{device['gflop']:.2f}",
            bytes_text(device["bytes_sent"]),
        )
        for device in devices
    ]
    return table(_COLUMNS, rows)


def _sentence(document: dict[str, Any]) -> str:
    exchange, computation = document["exchange"], document["computation"]
    busiest = max(device["gflop"] for device in document["devices"])
    work = f"The busiest device computes {busiest:.2f} of one device's {computation['one_device_gflop']:.2f} GFLOP"
    if computation["saved"]:
        work += f" ({100 * computation['saved']:.2f} % saved)"
    if not document["input_bytes"] + exchange["num_blocks"]:
        return f"{work}; nothing is sent."
    if not exchange["num_blocks"]:
        return f"{work}; nothing travels inside a block, {bytes_text(document['input_bytes'])} of inputs before."
    sent = bytes_text(exchange["bytes_per_block"])
    saved = f"{100 * exchange['saved']:.2f} % of the full-tensor exchange saved"
    return f"{work}; in each of {exchange['num_blocks']} blocks a device sends up to {sent} ({saved})."
