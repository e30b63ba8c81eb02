"""The options that pace the links of `--local-workers`, which `run` and `profile` share. No torch."""

from __future__ import annotations

import argparse
from typing import Any

from edgeprism.errors import InputError
from edgeprism.runtime.paced import LinkPace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--link-rate", type=float, metavar="MBIT", help="as if each of --local-workers had a link of so many Mbit/s"
    )
    parser.add_argument("--link-delay", type=float, metavar="MS", help="of each message over such a link, one way")


def check(args: argparse.Namespace) -> None:
    """InputError for values that cannot be, and where there is nothing to pace."""
    if args.link_rate is None and args.link_delay is not None:
        raise InputError("--link-delay needs --link-rate as well")
    if args.link_rate is None:
        return
    LinkPace(rate_mbit=args.link_rate, delay_ms=args.link_delay or 0.0)
    if args.local_workers == 1:
        raise InputError("--link-rate paces the links of --local-workers; boards have their own")


def given(args: argparse.Namespace) -> dict[str, Any]:
    """For ``Cluster.spawn``."""
    return {"link_rate_mbit": args.link_rate, "link_delay_ms": args.link_delay or 0.0}
