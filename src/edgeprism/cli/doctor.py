"""`edgeprism doctor`: does this device and this network work, before anything else; one line for each check."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprism.runtime.check import Check

EXIT_OK, EXIT_PEER, EXIT_HERE = 0, 1, 2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "doctor",
        help="look whether this device and this network work",
        description="Looks whether this device works and, with a cluster file, keys, network and the other devices. "
        "Each line says what was found, and what to do where it is not right.",
    )
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="cluster file: look at its devices, too")
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="this device's secret (default: NAME.secret beside the cluster file)"
    )
    parser.add_argument("--device", help="cpu or cuda: what it has to work on (default: all that torch finds)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def execute(args: argparse.Namespace) -> int:
    """Look and print. 2 where this device, a file or a key fails, else 1 where another device does, else 0."""
    done: list[Check] = []
    about = ""
    for check in _checks(args):
        done.append(check)
        if args.json:
            continue
        if check.about != about:
            about = check.about
            print(f"{'' if len(done) == 1 else chr(10)}{about}")
        print(_line(check), flush=True)
    if args.json:
        print(json.dumps({"checks": [check.to_json() for check in done]}, indent=2))
    else:
        print(f"\n{_summary(done)}")
    failed = [check for check in done if check.status == "FAIL"]
    if not failed:
        return EXIT_OK
    return EXIT_PEER if all(check.is_of_peer for check in failed) else EXIT_HERE


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    from edgeprism.runtime.doctor import device_checks
    from edgeprism.runtime.doctor_cluster import cluster_checks, key_check

    yield from device_checks(args.device)
    if args.cluster is not None:
        yield from cluster_checks(args.cluster, args.key)
    elif args.key is not None:
        yield key_check(args.key)


def _line(check: Check) -> str:
    advice = f"; {check.advice}" if check.advice else ""
    return f"  {check.status:4}  {check.name:12} {check.value}{advice}"


def _summary(done: list[Check]) -> str:
    failed = list(dict.fromkeys(check.about for check in done if check.status == "FAIL"))
    num_warnings = sum(check.status == "warn" for check in done)
    text = f"failed: {', '.join(failed)}" if failed else "everything works"
    if num_warnings:
        text += f"; {num_warnings} warning{'' if num_warnings == 1 else 's'}"
    return text
