"""`edgeprism discover`: who announces a worker on this network, as lines for the cluster file. It only prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from edgeprism.errors import InputError

if TYPE_CHECKING:
    from edgeprism.runtime.discovery import Announcement

MAX_SECONDS = 60.0
PROPOSALS = (
    "Proposals only: anybody on this network can announce any name, address and key.",
    "Trust comes from keys alone: compare each public_key with what the board itself printed, before you use it.",
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "discover",
        help="list the workers that announce themselves on this network",
        description="Lists who announces a worker on this network (edgeprism worker --announce), as tables for the "
        "cluster file. It admits nobody: compare each public_key with what the board itself printed.",
    )
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="how long to listen (default: 3)")
    parser.add_argument("--interface", metavar="ADDRESS", help="listen there only (default: on all interfaces)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def execute(args: argparse.Namespace) -> int:
    """Listen and print. InputError where zeroconf is missing, or nobody can be heard."""
    if not 0 < args.seconds <= MAX_SECONDS:
        raise InputError(f"--seconds must be above 0 and at most {MAX_SECONDS:g}, not {args.seconds:g}")
    from edgeprism.runtime.discovery import find

    found = find(args.seconds, args.interface)
    if args.json:
        devices = [_table(device) for device in found.devices]
        print(json.dumps({"note": " ".join(PROPOSALS), "devices": devices, "refused": found.num_refused}, indent=2))
    elif found.devices:
        print(to_toml(found.devices), end="")
    if found.num_refused:
        print(f"{found.num_refused} more were malformed or too many, and are left out", file=sys.stderr)
    if not found.devices:
        print(f"nobody announced a worker in {args.seconds:g} s; start them with --announce", file=sys.stderr)
    return 0


def to_toml(devices: tuple[Announcement, ...]) -> str:
    """``[[device]]`` tables. Nothing needs escaping: no field of an Announcement can hold what ends a string."""
    keys = Counter(device.public_key for device in devices)
    lines = [f"# {line}" for line in PROPOSALS]
    for device in devices:
        table = _table(device)
        lines += ["", "[[device]]", *(f'{field} = "{table[field]}"' for field in _FIELDS if table[field])]
        if table["others"]:
            lines.append(f"# it says that it is also at {', '.join(table['others'])}")
        if table["trouble"]:
            lines.append(f"# {table['trouble']}")
        if keys[device.public_key] > 1:
            lines.append("# several announce this key; one device has it")
    return "\n".join(lines) + "\n"


_FIELDS = ("name", "address", "public_key")


def _table(device: Announcement) -> dict[str, Any]:
    """The fields of a ``[[device]]``, and what else is worth saying."""
    from edgeprism.wire.frame import PROTOCOL
    from edgeprism.wire.keys import OPEN_KEYS

    same = device.protocol == PROTOCOL
    return {
        "name": device.name,
        "address": f"{device.addresses[0]}:{device.port}",
        "public_key": "" if device.public_key == OPEN_KEYS.public else device.public_key,
        "protocol": device.protocol,
        "others": list(device.addresses[1:]),
        "trouble": None
        if same
        else f"speaks protocol {device.protocol}, and this device {PROTOCOL}: update one of them",
    }
