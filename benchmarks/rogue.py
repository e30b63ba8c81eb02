"""A device that has gone wrong: its key is listed, so it gets in, and what it sends is garbage. A process of its own.

It takes part as far as it must to be introduced to the others. SIGUSR1: it sends everybody frames that no edgeprism
makes (what is no frame, frames that lie about their length, sender or kind, and well-formed answers that nobody asked
for or whose contents have other types than they should). SIGUSR2: it sends everybody an array that is larger than any
that may travel, as one ZeroMQ frame. Started with the words of `edgeprism worker`.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from edgeprism.errors import PeerError
from edgeprism.runtime.messages import Introduction
from edgeprism.runtime.remote import NO_RANK
from edgeprism.wire.frame import Buffer, Frame, Kind, Limits, encode
from edgeprism.wire.key_file import read_key_file
from edgeprism.wire.keys import Peer
from edgeprism.wire.zmq import ZmqTransport

OVERSIZED_BYTES = 300 * 2**20
ROOMY = Limits(max_array_bytes=2 * OVERSIZED_BYTES)


class Rogue:
    """Answers EPOCH, refuses LOAD, and sends garbage when it is told to."""

    def __init__(self, transport: ZmqTransport) -> None:
        self._transport, self._drawn = transport, random.Random(0)
        self._order: Frame | None = None
        self._wishes: list[int] = []
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda number, _: self._wishes.append(number))

    def serve(self) -> None:
        """For ever."""
        while True:
            frame = self._transport.receive(0.05)
            try:
                if frame is not None and frame.kind is Kind.EPOCH:
                    self._enter(frame)
                elif frame is not None and frame.kind is Kind.LOAD:
                    self._order = frame
                    meta = {"message": "it plays the rogue", "blamed": [], "cause": ""}
                    self._transport.send(0, Kind.FAULT, epoch=frame.epoch, request=frame.request, meta=meta)
            except PeerError as exc:
                print(exc, flush=True)
            while self._wishes:
                self._misbehave(self._wishes.pop(0))

    def _enter(self, frame: Frame) -> None:
        known = Introduction.from_json(frame.info["introduction"])
        self._transport.introduce(known.rank, known.peers)
        self._transport.epoch = max(self._transport.epoch, frame.epoch)
        meta: dict[str, Any] = {"links": sorted(self._transport.connected()), "holds": None}
        self._transport.send(0, Kind.READY, epoch=frame.epoch, meta=meta)

    def _misbehave(self, how: int) -> None:
        for peer in sorted(self._transport.connected()):
            is_garbage = how == signal.SIGUSR1
            messages = self._garbage() if is_garbage else [self._oversized()]
            num_sent = 0
            for parts in messages:
                try:
                    if is_garbage:
                        self._transport._post(peer, parts)
                    else:
                        self._send_whole(peer, parts)
                    num_sent += 1
                except (PeerError, zmq.ZMQError) as exc:
                    print(exc, flush=True)
                    break
            print(f"sent device {peer} {num_sent} of {len(messages)}", flush=True)
        print(f"done with {signal.Signals(how).name}", flush=True)

    def _send_whole(self, peer: int, parts: list[bytes]) -> None:
        """Each part as one ZeroMQ frame, however long; every edgeprism sends pieces."""
        link = self._transport._links[peer]
        assert link.socket is not None
        link.socket.send_multipart([*link.prefix, *parts], zmq.NOBLOCK)

    def _garbage(self) -> list[list[bytes]]:
        """No frames, false frames, and true frames of false contents."""
        drawn, epoch, me = self._drawn, self._transport.epoch, self._transport.rank
        order = 0 if self._order is None else self._order.request
        good = self._frame(Kind.DATA, epoch, block=0, arrays=(Buffer.of(np.zeros((2, 3), np.float32)),))
        header, array = good
        messages = [[drawn.randbytes(drawn.randrange(1, 200)) for _ in range(drawn.randrange(1, 40))] for _ in range(8)]
        messages += [[header], [header, array, array], [header, array[:-1]], [header[:-3], array], [b"", header]]
        for _ in range(8):
            at = drawn.randrange(len(header))
            messages.append([header[:at] + bytes([header[at] ^ (1 << drawn.randrange(8))]) + header[at + 1 :], array])
        for sender in {0, 1, 2, 3, 77} - {me}:
            messages.append(self._frame(Kind.RESULT, epoch, sender=sender, meta={"trace": {}, "names": []}))
        for kind in Kind:
            for meta in _FALSE_CONTENTS:
                messages.append(self._frame(kind, epoch, request=order, meta={} if kind is Kind.DATA else meta))
        return messages

    def _oversized(self) -> list[bytes]:
        """Well-formed, and larger than a receiver takes."""
        array = Buffer.of(np.zeros(OVERSIZED_BYTES, np.uint8))
        return self._frame(Kind.DATA, self._transport.epoch, block=0, arrays=(array,))

    def _frame(
        self,
        kind: Kind,
        epoch: int,
        *,
        request: int = 0,
        block: int = -1,
        sender: int | None = None,
        meta: dict[str, Any] | None = None,
        arrays: Sequence[Buffer] = (),
    ) -> list[bytes]:
        text = json.dumps(meta).encode() if meta else b""
        sender = self._transport.rank if sender is None else sender
        frame = Frame(
            kind=kind, epoch=epoch, request=request, block=block, sender=sender, meta=text, arrays=tuple(arrays)
        )
        return [bytes(part) for part in encode(frame, ROOMY)]


_FALSE_CONTENTS: tuple[dict[str, Any], ...] = (
    {},
    {"macs_per_s": "fast", "links": "all", "holds": "yes", "message": 7, "blamed": "you", "cause": ["lost"]},
    {"macs_per_s": None, "links": [None, "x", -1, 10**30], "holds": [], "blamed": [0, 1, 2, 3, {}], "cause": "input"},
    {"macs_per_s": 1e308, "links": [0, 1, 2, 3], "holds": 1.5, "trace": [], "names": {}, "file": 3, "offset": "x"},
    {
        "macs_per_s": [1],
        "links": {"0": 1},
        "holds": True,
        "trace": {"device": "x"},
        "names": [1],
        "file": "/etc/passwd",
    },
    {"file": "config.json", "offset": 0},
    {"file": "../../etc/passwd", "offset": -1},
    {"file": [1], "offset": True},
)


def main() -> None:
    """Listens like a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["worker"])
    parser.add_argument("--listen", required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--coordinator", required=True)
    args = parser.parse_args()
    keys = read_key_file(args.key)
    with ZmqTransport(NO_RANK, keys, bind=f"tcp://{args.listen}", limits=ROOMY) as transport:
        transport.connect([Peer(rank=0, public_key=args.coordinator)])
        print(f"listens on {transport.address}", flush=True)
        Rogue(transport).serve()


if __name__ == "__main__":
    main()
