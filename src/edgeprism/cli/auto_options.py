"""The options of plan `auto`, which `run` and `plan` share. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.policy.choose import OBJECTIVES
from edgeprism.policy.table import POLICIES

NAMES = ("objective", "max_accuracy_drop", "map", "accuracy_file", "policy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group("plan auto", "How it chooses, by what edgeprism profile measured.")
    group.add_argument("--objective", choices=OBJECTIVES, help="what is made best (default: latency)")
    group.add_argument(
        "--max-accuracy-drop",
        type=float,
        metavar="POINTS",
        help="points that a lossy codec may cost, as edgeprism evaluate measured (default: exact plans only)",
    )
    group.add_argument("--map", type=Path, metavar="FILE", help="performance map (default: that of the cache)")
    group.add_argument("--accuracy-file", type=Path, metavar="FILE", help="default: accuracy.json in the cache")
    group.add_argument(
        "--policy", choices=tuple(POLICIES), help="table: the published look-up of one device or means, to compare with"
    )


def check(args: argparse.Namespace, also: Collection[str] = ()) -> None:
    """InputError for values that cannot be, and for options that would have no effect. ``also``: those that the plan
    takes, whatever it is."""
    drop = args.max_accuracy_drop
    if drop is not None and not 0 <= drop <= 100:
        raise InputError(f"--max-accuracy-drop must lie between 0 and 100 points, not {drop:g}")
    if args.plan == "auto":
        return
    for name in NAMES:
        if getattr(args, name) is not None and name not in also:
            raise InputError(f"--{name.replace('_', '-')} belongs to --plan auto, and the plan is {args.plan}")
