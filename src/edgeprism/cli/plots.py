"""`edgeprism plots`: what a performance map says, drawn. No device, no weights, no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeprism.cli.bar import say
from edgeprism.policy.points import points_lost
from edgeprism.profiler.plots import draw
from edgeprism.runtime.cache import cache_root
from edgeprism.specs.accuracy import AccuracyFile
from edgeprism.specs.performance_map import PerformanceMap


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "plots",
        help="draw a performance map",
        description="Draws a performance map: time against batch and rate, where time goes, which plan wins where.",
    )
    parser.add_argument("map", type=Path, metavar="MAP", help="the file that edgeprism profile wrote")
    parser.add_argument("--out", type=Path, default=Path("plots"), metavar="DIR", help="folder (default: plots)")
    parser.add_argument(
        "--max-accuracy-drop", type=float, metavar="POINTS", help="as of edgeprism run (default: exact plans only)"
    )
    parser.add_argument("--accuracy-file", type=Path, metavar="FILE", help="default: accuracy.json in the cache")


def execute(args: argparse.Namespace) -> int:
    """Draw. InputError (one line, exit 2) for a file that is no map."""
    found = PerformanceMap.read(args.map)
    accuracy = AccuracyFile.read(args.accuracy_file or cache_root() / "accuracy.json")
    for path in draw(
        found, args.out, points_lost=points_lost(accuracy, found), max_accuracy_drop=args.max_accuracy_drop
    ):  # fmt: skip
        say(f"written to {path}")
    return 0
