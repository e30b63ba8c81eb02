"""Options of plan `pipeline`: where the model is cut, on which devices, and how many samples go in at once."""

from __future__ import annotations

import argparse

from edgeprism.errors import InputError, PlanError
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan, parse_codecs, parse_shares, parse_stages
from edgeprism.strategies.pipeline.partition import check, even, num_pieces


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--stages", metavar="D:A-B,...",
        help="of plan pipeline: device and pieces of each stage, 4 pieces a block (default: even by work, or --shares)",
    )  # fmt: skip
    parser.add_argument(
        "--micro-batch", type=int, metavar="N",
        help="of plan pipeline: samples that go in together (default: 1; `plan` with a map finds the best)",
    )  # fmt: skip


def check_options(args: argparse.Namespace) -> None:
    """InputError where they are for another plan."""
    given = [name for name, value in (("--stages", args.stages), ("--micro-batch", args.micro_batch)) if value]
    if given and args.plan != "pipeline":
        raise InputError(f"{given[0]} belongs to --plan pipeline, and the plan is {args.plan}")
    if args.micro_batch is not None and args.micro_batch < 1:
        raise InputError(f"--micro-batch must be at least 1, not {args.micro_batch}")
    if args.stages and args.shares:
        raise InputError("--stages and --shares are two ways to cut a model; give one of the two")


def plan_of(args: argparse.Namespace, spec: ModelSpec, num_devices: int, num_tokens: int) -> Plan:
    """The stages that were asked for, or cut where the work is even. PlanError for what cannot be."""
    (codec, narrowest), micro_batch = parse_codecs(args.codec), args.micro_batch or 1
    if args.stages:
        plan = Plan.pipeline(
            parse_stages(args.stages), num_devices, codec, micro_batch=micro_batch, narrowest=narrowest
        )
        check(spec, plan)
        return plan
    shares = parse_shares(args.shares) if args.shares else (1.0,) * num_devices
    if len(shares) != num_devices:
        raise InputError(f"--shares names {len(shares)} devices, and there are {num_devices}")
    Plan(strategy="replica", shares=shares if args.shares else (1.0,))  # PlanError unless they add up to 1
    devices = [device for device, share in enumerate(shares) if share > 0]
    if len(devices) > num_pieces(spec):
        raise PlanError(f"{len(devices)} devices, and {spec.architecture} has {num_pieces(spec)} pieces")
    stages = even(spec, num_tokens, devices, [shares[device] for device in devices])
    return Plan.pipeline(stages, num_devices, codec, micro_batch=micro_batch, narrowest=narrowest)
