"""`edgeprism worker`: serves a coordinator on another device."""

from __future__ import annotations

import argparse
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.cli.log_budget import LogBudget
from edgeprism.errors import InputError
from edgeprism.need_torch import need_torch

if TYPE_CHECKING:
    from edgeprism.runtime.service import GlooService, Service


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "worker",
        help="serve a coordinator on another device",
        description="Serves the coordinator of a cluster until SIGTERM or Ctrl-C; a request in flight is finished.",
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="address of this device, as others see it")
    parser.add_argument("--key", type=Path, metavar="FILE", help="this device's secret (edgeprism keys new)")
    parser.add_argument("--coordinator", metavar="KEY", help="public key of the coordinator, who alone is served")
    parser.add_argument(
        "--models", type=Path, action="append", default=[], metavar="DIR", help="where its model directories are"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where models that are sent are kept (default: the user's)"
    )
    parser.add_argument(
        "--cache-gb", type=float, default=20.0, metavar="GB", help="how large it may grow (default: 20)"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if a kernel runs there, else cpu)")
    parser.add_argument("--cores", metavar="N,N,...", help="the only cores that it uses (default: all)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: as torch chooses)")
    parser.add_argument(
        "--announce",
        nargs="?",
        const="",
        metavar="NAME",
        help="let edgeprism discover find it (default of NAME: that of the key file, else the host's)",
    )
    gloo = parser.add_argument_group("without keys, over torch.distributed's gloo, instead of --listen")
    gloo.add_argument("--transport", choices=("zmq", "gloo"), default="zmq", help="(default: zmq, which has keys)")
    gloo.add_argument("--store", metavar="HOST:PORT", help="where the coordinator keeps the store")
    gloo.add_argument("--rank", type=int, metavar="R", help="which device this is; the coordinator is 0")
    gloo.add_argument("--devices", type=int, metavar="P", help="how many devices there are, with the coordinator")
    gloo.add_argument("--interface", metavar="NAME", help="network to use (default: that of the route to the store)")
    gloo.add_argument("--insecure", action="store_true", help="also off loopback, where everybody can read and write")
    parser.add_argument("--verbose", action="store_true", help="say also what goes well")


def execute(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads must be at least 1, not {args.threads}")
    if not args.cache_gb > 0:
        raise InputError(f"--cache-gb must be above 0, not {args.cache_gb:g}")
    cores = None if args.cores is None else _cores(args.cores)
    if args.announce is not None:
        from edgeprism.runtime.discovery import check_name, require_zeroconf

        args.announce = args.announce or (args.key.stem if args.key else socket.gethostname())
        check_name(args.announce)
        require_zeroconf()
    service = _service(args)
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s edgeprism worker: %(message)s", datefmt="%H:%M:%S")
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogBudget())
    need_torch()
    from edgeprism.runtime.cache import cache_root
    from edgeprism.runtime.heap import keep_freed
    from edgeprism.runtime.remote import serve
    from edgeprism.runtime.weights import WeightCache

    keep_freed()
    cache = WeightCache(args.cache or cache_root() / "weights", int(args.cache_gb * 1e9))

    serve(
        service,
        cache=cache,
        device=args.device,
        cores=cores,
        num_threads=args.threads,
        announce=args.announce,
    )
    return 0


def _service(args: argparse.Namespace) -> Service | GlooService:
    from edgeprism.runtime.service import GlooService, Service

    gloo = {name: getattr(args, name) for name in ("store", "rank", "devices", "interface")}
    zmq = {name: getattr(args, name) for name in ("listen", "key", "coordinator", "announce")}
    others = [f"--{name}" for name, value in (gloo if args.transport == "zmq" else zmq).items() if value is not None]
    if others:
        raise InputError(f"{', '.join(others)} cannot be used with --transport {args.transport}")
    if args.transport == "zmq":
        if args.listen is None:
            raise InputError("a worker needs --listen HOST:PORT, the address of this device as others see it")
        return Service.of(args.listen, key=args.key, coordinator=args.coordinator, roots=args.models)
    return GlooService.of(
        args.store, args.rank, args.devices, interface=args.interface, insecure=args.insecure, roots=args.models
    )


def _cores(text: str) -> tuple[int, ...]:
    from edgeprism.runtime.cores import available_cores

    try:
        cores = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise InputError(f"--cores {text!r} must be numbers with commas between them, as in 0,1") from None
    if not set(cores) <= set(available_cores()):
        raise InputError(f"--cores {text}: this process may use {', '.join(map(str, available_cores()))}")
    return cores
