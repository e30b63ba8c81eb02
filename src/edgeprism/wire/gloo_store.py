"""The store in which gloo devices leave their addresses for each other: device 0 serves it, over plain ZeroMQ.

torch's own TCPStore is not used: it asks for the name of every address that connects, at both ends, so that a device
whose name server does not answer stands still for 5 s at each connection; and it listens on all networks of the device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta

import zmq
from torch.distributed import Store

from edgeprism.errors import InputError

_MAX_KEYS = 2**16  # the oldest give way
_MAX_BYTES = 2**16  # of a value
_TIMEOUT_S = 2.0
_LOOK_AGAIN_S = 0.005


class StoreServer:
    """Serves from a thread of its own until ``close``. InputError if it cannot listen on that host and port."""

    def __init__(self, host: str, port: int) -> None:
        self._values: dict[bytes, bytes] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._stop, self._stopper = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._stop.bind("inproc://stop")
        self._stopper.connect("inproc://stop")
        for name, value in ((zmq.LINGER, 0), (zmq.IPV6, int(":" in host)), (zmq.MAXMSGSIZE, _MAX_BYTES)):
            self._socket.setsockopt(name, value)
        where = f"[{host}]" if ":" in host else host
        try:
            self._socket.bind(f"tcp://{where}:{port or '*'}")
        except zmq.ZMQError as exc:
            self._context.destroy(linger=0)
            raise InputError(f"the store cannot listen on {where}:{port}: {exc.strerror}") from exc
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://")
        self._thread = threading.Thread(target=self._serve, name="edgeprism-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stopper.send(b"")
        self._thread.join()
        self._context.destroy(linger=0)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._stop, zmq.POLLIN)
        while all(source is not self._stop for source, _ in poller.poll()):
            self._socket.send_multipart(self._answer(self._socket.recv_multipart()))

    def _answer(self, question: list[bytes]) -> list[bytes]:
        match question:
            case [b"get", key]:
                return [b"1", self._values[key]] if key in self._values else [b"0"]
            case [b"set", key, value]:
                self._set(key, value)
                return [b"1"]
            case [b"add", key, amount] if amount.isdigit() and len(amount) < 9:
                old = self._values.get(key, b"")
                self._set(key, b"%d" % (int(old) + int(amount) if old.isdigit() and len(old) < 9 else int(amount)))
                return [b"1", self._values[key]]
        return [b"0"]

    def _set(self, key: bytes, value: bytes) -> None:
        self._values.pop(key, None)
        self._values[key] = value
        if len(self._values) > _MAX_KEYS:
            del self._values[next(iter(self._values))]


class RemoteStore(Store):
    """A connection with the store, for one thread, as torch.distributed wants it. RuntimeError when it is gone."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        for name, value in ((zmq.LINGER, 0), (zmq.IPV6, int(":" in host)), (zmq.MAXMSGSIZE, _MAX_BYTES)):
            self._socket.setsockopt(name, value)
        self._socket.setsockopt(zmq.RCVTIMEO, int(_TIMEOUT_S * 1000))
        self._socket.connect(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")

    def close(self) -> None:
        """Hang up."""
        self._context.destroy(linger=0)

    def set(self, key: str, value: str | bytes) -> None:
        self._ask(b"set", key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        """Waits for it, as all stores of torch do."""
        self.wait([key])
        return self._ask(b"get", key)[1]

    def add(self, key: str, amount: int) -> int:
        return int(self._ask(b"add", key, b"%d" % amount)[1])

    def check(self, keys: Sequence[str]) -> bool:
        return all(self._ask(b"get", key)[0] == b"1" for key in keys)

    def wait(self, keys: Sequence[str], timeout: timedelta = timedelta(seconds=_TIMEOUT_S)) -> None:
        deadline = time.monotonic() + timeout.total_seconds()
        while not self.check(keys):
            if time.monotonic() > deadline:
                raise RuntimeError(f"timeout: nobody has set {', '.join(keys)}")
            time.sleep(_LOOK_AGAIN_S)

    def _ask(self, verb: bytes, key: str, *values: bytes) -> list[bytes]:
        try:
            self._socket.send_multipart([verb, key.encode(), *values])
            answer = self._socket.recv_multipart()
        except zmq.ZMQError as exc:
            raise RuntimeError(f"the store does not answer: {exc.strerror}") from exc
        if verb != b"get" and answer[0] != b"1":
            raise RuntimeError("the store refuses what it is asked; do all devices run the same edgeprism?")
        return answer
