"""`edgeprism keys new NAME`: the secret of a device, and the public line for the cluster file."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from edgeprism.errors import InputError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "keys",
        help="make the key of a device",
        description="Writes NAME.secret, which stays on the device, and prints its public key for the cluster file.",
    )
    parser.add_argument("action", choices=["new"], help="new: make a key")
    parser.add_argument("name", metavar="NAME", help="name of the device, as in the cluster file")


def execute(args: argparse.Namespace) -> int:
    """Make, write, print. InputError where NAME is no file name, or its file exists."""
    from edgeprism.wire.key_file import write_key_file
    from edgeprism.wire.keys import KeyPair

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
        raise InputError(f"a device's name is made of letters, digits, dots and dashes, not {args.name!r}")
    keys = KeyPair.generate()
    write_key_file(Path(f"{args.name}.secret"), args.name, keys)
    print(f'public_key = "{keys.public}"')
    return 0
