"""The command `edgeprism`: finds the subcommand, runs it, and turns errors into one line and an exit status.

0 done, 1 failed, 2 wrong usage or input, 130 interrupted. A command is a module of this package with
``add_parser(subparsers)`` and ``execute(args) -> int``; importing it must not import torch, for ``edgeprism --help``
answers at once on a small device.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from edgeprism.errors import EdgeprismError, InputError

_COMMANDS = (
    "run",
    "plan",
    "simulate",
    "profile",
    "plots",
    "evaluate",
    "calibrate",
    "finetune",
    "doctor",
    "worker",
    "keys",
    "discover",
    "lab",
)

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; after --help and wrong usage argparse leaves by SystemExit."""
    try:
        parser = _build_parser()
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        status: int = args.execute(args)
        sys.stdout.flush()  # here, where a closed pipe is still caught
        return status
    except InputError as exc:
        return _fail(exc, EXIT_USAGE)
    except EdgeprismError as exc:
        return _fail(exc, EXIT_FAILED)
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it flushes
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("edgeprism: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage, and takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # after --help
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"edgeprism: {_one_line(message)}; try {self.prog} --help\n")


class _ShowVersion(argparse.Action):
    """Looks the version up only when asked: importlib.metadata is slow to import."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"edgeprism {version('edgeprism')}")
        except PackageNotFoundError:
            print("edgeprism (not installed)")
        parser.exit()


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="edgeprism", description="Runs one Transformer on the few small devices you have.")
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        command = import_module(f"edgeprism.cli.{name}")
        command.add_parser(subparsers)
        subparsers.choices[name].set_defaults(execute=command.execute, parser=subparsers.choices[name])
    return parser


def _fail(exc: EdgeprismError, status: int) -> int:
    print(f"edgeprism: {_one_line(str(exc))}", file=sys.stderr)
    return status


def _one_line(message: str) -> str:
    return " ".join(message.split())
