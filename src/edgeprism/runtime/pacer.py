"""The process behind `--link-rate`: run as a script, it imports nothing of edgeprism.

Each pair of devices has a port here; who dials it is connected with the device behind it. What comes in goes out as if
it had passed two cables: it leaves the sender's at its rate, is under way for the delay, and arrives by the receiver's
at that one's rate. A device's cable is shared by all its connections, one for each direction.

A line of JSON on standard input: rate_bytes_s, delay_s, pairs [[dialler, target, port of the target], ...]. It answers
with the ports, in that order, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import gc
import json
import select
import socket
import sys
import time
from collections import deque

CHUNK_BYTES = 16 * 1024
QUEUE_BYTES = 256 * 1024  # of one connection and direction, besides what is under way; the rest waits in the sender
FRAME_BYTES, SEGMENT_BYTES = 1514, 1448  # Ethernet's frame, and what of a message it carries
LATE_S = 1e-4  # how late a chunk may leave


class Cable:
    """One direction of a device's link."""

    def __init__(self) -> None:
        self.free_s = 0.0


class Flow:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket, out: Cable, into: Cable, max_held: float) -> None:
        self.source, self.target, self._out, self._into, self._max_held = source, target, out, into, max_held
        self._held: deque[tuple[float, memoryview]] = deque()
        self._num_held = 0
        self.has_ended = self.is_blocked = False

    @property
    def may_read(self) -> bool:
        return not self.has_ended and self._num_held < self._max_held

    @property
    def is_empty(self) -> bool:
        return not self._held

    @property
    def due_s(self) -> float:
        """When there is something to hand on to a receiver that takes it."""
        return self._held[0][0] if self._held and not self.is_blocked else float("inf")

    def read(self, now_s: float, byte_s: float, delay_s: float) -> None:
        """Takes in what has come; when each byte arrives is known from then on."""
        try:
            data = self.source.recv(CHUNK_BYTES)
        except OSError:
            data = b""
        if not data:
            self.has_ended = True
            return
        takes_s = byte_s * len(data) * FRAME_BYTES / SEGMENT_BYTES
        left_s = self._out.free_s = max(now_s, self._out.free_s) + takes_s
        arrived_s = self._into.free_s = max(left_s, self._into.free_s + takes_s)
        self._held.append((arrived_s + delay_s, memoryview(data)))
        self._num_held += len(data)

    def write(self, now_s: float) -> None:
        """Hands on what has arrived. OSError when the receiver is gone."""
        self.is_blocked = False
        while self._held and self._held[0][0] <= now_s:
            due_s, data = self._held.popleft()
            try:
                sent = self.target.send(data)
            except BlockingIOError:
                sent = 0
            self._num_held -= sent
            if sent < len(data):
                self._held.appendleft((due_s, data[sent:]))
                self.is_blocked = True
                return


class Pacer:
    """All pairs of one cluster."""

    def __init__(self, rate_bytes_s: float, delay_s: float, pairs: list[list[int]]) -> None:
        self._byte_s, self._delay_s = 1.0 / rate_bytes_s, delay_s
        self._max_held = QUEUE_BYTES + rate_bytes_s * delay_s
        ranks = {rank for dialler, target, _ in pairs for rank in (dialler, target)}
        self._cables = {rank: (Cable(), Cable()) for rank in ranks}  # out of it, and into it
        self._pairs: dict[socket.socket, list[int]] = {}
        self._flows: list[tuple[Flow, Flow]] = []
        for pair in pairs:
            server = socket.create_server(("127.0.0.1", 0), backlog=8)
            server.setblocking(False)
            self._pairs[server] = pair

    @property
    def ports(self) -> list[int]:
        """In the order of the pairs."""
        return [server.getsockname()[1] for server in self._pairs]

    def run(self) -> None:
        """Until standard input ends."""
        while True:
            now_s = time.monotonic()
            flows = [flow for both in self._flows for flow in both]
            due_s = min((flow.due_s for flow in flows), default=float("inf"))
            sources = {flow.source: flow for flow in flows if flow.may_read}
            wait_s = None if due_s == float("inf") else max(0.0, due_s - now_s)
            watched = {sys.stdin.fileno(): None, **{one.fileno(): one for one in (*self._pairs, *sources)}}
            blocked = [flow.target for flow in flows if flow.is_blocked]
            ready, _, _ = select.select(list(watched), blocked, [], wait_s)
            now_s = time.monotonic()
            for one in (watched[fd] for fd in ready):
                if one is None:
                    return
                if one in self._pairs:
                    self._accept(one)
                else:
                    sources[one].read(now_s, self._byte_s, self._delay_s)
            self._hand_on(now_s + LATE_S)

    def _accept(self, server: socket.socket) -> None:
        dialler, target, port = self._pairs[server]
        try:
            near, _ = server.accept()
        except OSError:  # who dialled has given up
            return
        try:
            far = socket.create_connection(("127.0.0.1", port), timeout=1.0)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        (there_out, there_in), (here_out, here_in) = self._cables[dialler], self._cables[target]
        there = Flow(near, far, there_out, here_in, self._max_held)
        self._flows.append((there, Flow(far, near, here_out, there_in, self._max_held)))

    def _hand_on(self, now_s: float) -> None:
        for both in list(self._flows):
            try:
                for flow in both:
                    flow.write(now_s)
                is_over = any(flow.has_ended and flow.is_empty for flow in both)
            except OSError:
                is_over = True
            if is_over:
                self._flows.remove(both)
                for flow in both:
                    with contextlib.suppress(OSError):
                        flow.source.close()


def main() -> None:
    """See the module."""
    given = json.loads(sys.stdin.readline())
    pacer = Pacer(given["rate_bytes_s"], given["delay_s"], given["pairs"])
    gc.disable()
    print(json.dumps(pacer.ports), flush=True)
    pacer.run()


if __name__ == "__main__":
    main()
