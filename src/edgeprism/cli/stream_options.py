"""The options of `edgeprism run --stream`: declared, checked, and what follows from them. No torch."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from edgeprism.errors import InputError
from edgeprism.specs.model import ModelSpec
from edgeprism.tasks.frames import TAKES, Source, open_source

if TYPE_CHECKING:
    from edgeprism.runtime.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that belong to --stream."""
    group = parser.add_argument_group("streams", f"SOURCE: {TAKES}. Its pictures go through the model one by one.")
    group.add_argument("--stream", metavar="SOURCE", help="instead of INPUT; on several devices take --plan replica")
    group.add_argument(
        "--max-pending", type=int, metavar="N", help="pictures that may wait (default: 2 a device; 1 of a camera)"
    )
    group.add_argument(
        "--when-full",
        choices=("block", "drop_oldest", "reject"),
        help="what happens when more come (default: drop_oldest from a camera, else block)",
    )
    group.add_argument(
        "--keep-order",
        action=argparse.BooleanOptionalAction,
        help="answers in the order of the pictures (default), or as they are done",
    )
    group.add_argument("--frames", type=int, metavar="N", help="stop after N pictures")
    group.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds")
    group.add_argument("--results", action="store_true", default=None, help="with --json: the answer to each picture")


def check_options(args: argparse.Namespace) -> None:
    """InputError for options that contradict each other."""
    if args.stream is None:
        for name in ("max_pending", "when_full", "keep_order", "frames", "seconds", "results"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} belongs to --stream SOURCE")
        if not args.inputs:
            raise InputError("give an INPUT (the path of a picture, or a text), or --stream SOURCE")
        return
    if args.inputs:
        raise InputError("INPUT and --stream are two ways to name pictures; give one of the two")
    for option, number in (("--max-pending", args.max_pending), ("--frames", args.frames)):
        if number is not None and number < 1:
            raise InputError(f"{option} must be at least 1, not {number}")
    if args.seconds is not None and not 0 < args.seconds < math.inf:
        raise InputError(f"--seconds must be above 0, not {args.seconds:g}")
    if args.results and not args.json:
        raise InputError("--results belongs to --json; without it each picture's answer is printed anyway")


@contextmanager
def open_stream(args: argparse.Namespace, spec: ModelSpec) -> Iterator[Source | None]:
    """The source, None without --stream; InputError where it cannot be used, or the model takes no pictures."""
    if args.stream is None:
        yield None
        return
    if not spec.is_vision:
        raise InputError(f"--stream is for models that take pictures; {spec.architecture} takes texts")
    with closing(open_source(args.stream)) as source:
        yield source


def queue_settings(args: argparse.Namespace, source: Source | None, cluster: Cluster) -> dict[str, Any]:
    """What the engine is told about requests that wait. Of a camera the newest picture counts: one waits, and gives way
    to the next."""
    if source is None:
        return {}
    is_live = source.kind == "live"
    return {
        "max_pending": args.max_pending or (1 if is_live else 2 * cluster.num_devices),
        "when_full": args.when_full or ("drop_oldest" if is_live else "block"),
        "keep_order": args.keep_order is not False,
    }
