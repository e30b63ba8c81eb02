"""How long does one exchange between two devices take: over ZeroMQ, and over torch.distributed's gloo in both forms?

Both processes send the same number of bytes and wait for the other's; nothing is computed meanwhile. `gloo send_recv`
and `gloo all_gather` are the transport's, without overlap; `bare` is torch.distributed by itself, one tensor of known
size, as the published systems use it: it shows what the transport's frames and threads add. Of the gloo rows the
faster one counts as the baseline. All take turns, some exchanges each, of which the first is not counted. Where other
programs use the cores, run it as `chrt -f 10 python -m ...` (root): otherwise their time slices are what is measured.

Over loopback by default. Between two devices, or two namespaces, start it on both with the same --store HOST:PORT, an
address of the first: --rank 0 on that one, which writes the results, and --rank 1 on the other.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.report import arguments, record, summary
from edgeprism.runtime.cores import available_cores, on_cores
from edgeprism.wire.frame import Buffer
from edgeprism.wire.gloo import GlooMode, GlooTransport
from edgeprism.wire.gloo_meet import Place, join_all, route_to
from edgeprism.wire.gloo_store import RemoteStore
from edgeprism.wire.keys import KeyPair, Peer
from edgeprism.wire.transport import Transport
from edgeprism.wire.zmq import ZmqTransport

SIZES = {"4 kB": 4_000, "32 kB": 32_000, "302 kB": 302_000, "2.4 MB": 2_400_000}
GLOO_ROWS = ("gloo send_recv", "gloo all_gather", "bare send_recv", "bare all_gather")
ROUNDS, WARMUP, TURN = 40, 4, 6
DEADLINE_S = 60.0


@dataclass
class End:
    """One of the two processes: what it exchanges with, by name."""

    exchanges: dict[str, Callable[[int, int], None]]
    """Given a running number and a number of bytes."""


def main() -> None:
    """Measures and writes benchmarks/results/gloo_exchange.json."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--store", metavar="HOST:PORT", help="an address of the first device, both ends (default: loopback)"
    )
    parser.add_argument("--rank", type=int, choices=(0, 1), default=0, help="0 measures, 1 is the other end")
    parser.add_argument("--insecure", action="store_true", help="off loopback")
    parser.add_argument("--link", default="loopback", help="what the link is, for the record")
    parser.add_argument("--name", default="gloo_exchange", help="of the file of results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cores = available_cores()
    with on_cores((cores[args.rank % len(cores)],)), ExitStack() as stack:
        gloo = stack.enter_context(_gloo(args))
        if args.store is None:
            stack.enter_context(_other_end(gloo.store, args.smoke))
        gloo.wait_connected(time.monotonic() + DEADLINE_S)
        zmq = stack.enter_context(_zmq(args.rank, gloo.store))
        seconds = measure(_end(args, gloo, zmq), *((2, 1) if args.smoke else (ROUNDS, WARMUP)))
    if args.rank == 0:
        figures = {size: {name: _ms(rows) for name, rows in by_name.items()} for size, by_name in seconds.items()}
        baseline = {size: min((rows[name]["median"], name) for name in GLOO_ROWS) for size, rows in figures.items()}
        settings = {
            "rounds": ROUNDS,
            "warmup": WARMUP,
            "exchanges_a_turn": TURN,
            "threads_per_process": 1,
            "unit": "ms",
        }
        is_real_time = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
        settings |= {"link": args.link, "priority": "real time" if is_real_time else "as others"}
        record(args.name, {"exchange": figures, "baseline": baseline}, settings, args.smoke)


def measure(end: End, rounds: int, warmup: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each exchange, by size and kind. The other process does the same in the same order."""
    seconds: dict[str, dict[str, list[float]]] = {size: {name: [] for name in end.exchanges} for size in SIZES}
    numbers = itertools.count()
    for size, num_bytes in SIZES.items():
        for round_ in range(warmup + rounds):
            for name, exchange in end.exchanges.items():
                for turn in range(TURN):
                    began = time.perf_counter()
                    exchange(next(numbers), num_bytes)
                    if round_ >= warmup and turn:
                        seconds[size][name].append(time.perf_counter() - began)
        medians = ", ".join(f"{name} {_ms(values)['median']:.3f} ms" for name, values in seconds[size].items())
        print(f"{size}: {medians}", file=sys.stderr)
    return seconds


def _end(args: Namespace, gloo: GlooTransport, zmq: ZmqTransport) -> End:
    place = Place(gloo.store, insecure=args.insecure)
    group = join_all(place, "bare", (0, 1), args.rank, DEADLINE_S, lambda: False)
    other = 1 - args.rank
    data = {num_bytes: np.full(num_bytes, args.rank, np.uint8) for num_bytes in SIZES.values()}
    room = {num_bytes: [torch.empty(num_bytes, dtype=torch.uint8) for _ in range(2)] for num_bytes in SIZES.values()}

    def over(transport: Transport, how: GlooMode | None) -> Callable[[int, int], None]:
        def exchange(number: int, num_bytes: int) -> None:
            if how is not None:
                gloo.how = how
            started = transport.start(
                [Buffer.of(data[num_bytes])], send_to=[other], receive_from=[other], epoch=0, request=0, block=number
            )
            rows = started.wait(time.monotonic() + DEADLINE_S)[other].arrays[0].data
            assert rows[-1] == other and len(rows) == num_bytes

        return exchange

    def bare_send_recv(_: int, num_bytes: int) -> None:
        works = [
            group.recv([room[num_bytes][0]], other, 0),
            group.send([torch.from_numpy(data[num_bytes])], other, 0),
        ]
        for work in works:
            work.wait()
        assert room[num_bytes][0][-1] == other

    def bare_all_gather(_: int, num_bytes: int) -> None:
        group.allgather([room[num_bytes]], [torch.from_numpy(data[num_bytes])]).wait()
        assert room[num_bytes][other][-1] == other

    exchanges = {"zmq": over(zmq, None)}
    for mode in ("send_recv", "all_gather"):
        exchanges[f"gloo {mode}"] = over(gloo, GlooMode.parse(f"gloo:{mode},blocking"))
    return End({**exchanges, "bare send_recv": bare_send_recv, "bare all_gather": bare_all_gather})


def _gloo(args: Namespace) -> GlooTransport:
    return GlooTransport(args.rank, 2, args.store or "127.0.0.1:0", insecure=args.insecure, timeout_s=DEADLINE_S)


@contextmanager
def _zmq(rank: int, store: str) -> Iterator[ZmqTransport]:
    """Connected; address and key go by the store."""
    host, _, port = store.rpartition(":")
    keys = KeyPair.generate()
    with (
        ZmqTransport(rank, keys, bind=f"tcp://{route_to(host)}:*") as transport,
        closing(RemoteStore(host, int(port))) as remote,
    ):
        own = Peer(rank=rank, address=transport.address, public_key=keys.public)
        remote.set(f"zmq/{rank}", json.dumps(own.to_json()))
        while not remote.check([f"zmq/{1 - rank}"]):
            time.sleep(0.05)
        transport.connect([Peer.from_json(json.loads(remote.get(f"zmq/{1 - rank}")))])
        transport.wait_connected(time.monotonic() + DEADLINE_S)
        yield transport


@contextmanager
def _other_end(store: str, smoke: bool) -> Iterator[None]:
    """A process on this machine; on the way out it has ended well."""
    words = ["--store", store, "--rank", "1", *(["--smoke"] if smoke else [])]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.gloo_exchange", *words], stderr=subprocess.DEVNULL)
    try:
        yield
        process.wait(DEADLINE_S)
    finally:
        process.kill()
    if process.returncode:
        sys.exit(f"gloo_exchange: the other end failed with status {process.returncode}")


def _ms(seconds: list[float]) -> dict[str, float]:
    scaled = summary([1000 * value for value in seconds])
    return {name: value if name == "n" else round(value, 4) for name, value in scaled.items()}


if __name__ == "__main__":
    main()
