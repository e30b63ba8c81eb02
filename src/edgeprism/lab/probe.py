"""What the self-check runs on every device: run as a script, it imports nothing of edgeprism.

It takes lines on its standard input and answers each with a line of JSON: ``connect HOST`` to the next device, and
``accept`` the one before; ``send N`` bytes: when that began; ``arrive``: when the next message had arrived whole;
``compute MS COUNT``: the part of its core that it had while it computed COUNT blocks of so many milliseconds.

Argument: the address that it listens on.
"""

from __future__ import annotations

import json
import socket
import statistics
import struct
import sys
import time

PORT = 5554
_LENGTH = struct.Struct("!I")
_PAUSES_S = (0.0031, 0.0044, 0.0057, 0.007)  # so that blocks begin at any time of the emulation's period


def main() -> None:
    """Until its standard input ends."""
    try:
        listening = socket.create_server((sys.argv[1], PORT))
    except OSError as exc:
        sys.exit(f"{sys.argv[1]}, port {PORT}: {exc.strerror}; is another `edgeprism lab check` of this lab running?")
    with listening as server:
        _say("listens")
        outgoing = incoming = None
        for line in sys.stdin:
            verb, *words = line.split()
            if verb == "connect":
                outgoing = socket.create_connection((words[0], PORT))
                outgoing.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _say("connected")
            elif verb == "accept":
                incoming, _ = server.accept()
                _say("accepted")
            elif verb == "send":
                assert outgoing is not None
                message = _LENGTH.pack(int(words[0])) + bytes(int(words[0]) - _LENGTH.size)
                began_s = time.monotonic()
                outgoing.sendall(message)
                _say(began_s)
            elif verb == "arrive":
                assert incoming is not None
                _say(_arrival(incoming))
            elif verb == "compute":
                _say(_speed(float(words[0]), int(words[1])))


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def _arrival(incoming: socket.socket) -> float:
    """When the whole of the next message was there."""
    num_bytes = _LENGTH.unpack(incoming.recv(_LENGTH.size, socket.MSG_WAITALL))[0] - _LENGTH.size
    buffer = bytearray(1 << 20)
    while num_bytes > 0:
        num_bytes -= incoming.recv_into(buffer, min(num_bytes, len(buffer)))
    return time.monotonic()


def _speed(block_ms: float, num_blocks: int) -> float:
    """Processor time over time, the median of blocks that all compute the same."""
    for _ in range(2):
        began_s = time.thread_time()
        _work(100_000)
        count = round(block_ms / 1e3 / (time.thread_time() - began_s) * 100_000)
    parts = []
    for index in range(num_blocks):
        time.sleep(_PAUSES_S[index % len(_PAUSES_S)])
        wall_s, processor_s = time.perf_counter(), time.thread_time()
        _work(count)
        parts.append((time.thread_time() - processor_s) / (time.perf_counter() - wall_s))
    return statistics.median(parts)


def _work(count: int) -> int:
    total = 0
    for number in range(count):
        total += number * number
    return total


if __name__ == "__main__":
    main()
