"""`edgeprism worker`: serves a coordinator on another device."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from edgeprism.errors import InputError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "worker",
        help="serve a coordinator on another device",
        description="Serves the coordinator of a cluster until SIGTERM or Ctrl-C; a request in flight is finished.",
    )
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="address of this device, as others see it")
    parser.add_argument("--key", type=Path, metavar="FILE", help="this device's secret (edgeprism keys new)")
    parser.add_argument("--coordinator", metavar="KEY", help="public key of the coordinator, who alone is served")
    parser.add_argument(
        "--models", type=Path, action="append", default=[], metavar="DIR", help="where its model directories are"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: as torch chooses)")
    parser.add_argument("--verbose", action="store_true", help="say also what goes well")


def execute(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads must be at least 1, not {args.threads}")
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s edgeprism worker: %(message)s", datefmt="%H:%M:%S")
    from edgeprism.runtime.remote import serve

    serve(args.listen, key=args.key, coordinator=args.coordinator, roots=args.models, num_threads=args.threads)
    return 0
