"""The gate: which CURVE keys get in. libzmq asks over ZAP (https://rfc.zeromq.org/spec/27/); no thread is needed to
answer.

A connection that waits for the answer waits until the owner polls next; nothing is admitted by default, for the gate
is bound before the first port is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import zmq
from zmq.utils import z85

from edgeprism.wire.keys import key_name

log = logging.getLogger(__name__)

DOMAIN = "edgeprism"
_ADDRESS = "inproc://zeromq.zap.01"
_REQUEST_PARTS = 7  # version, request, domain, address, identity, mechanism, client key


class Gate:
    """Answers libzmq's question for every CURVE handshake of one context; the key becomes the connection's User-Id."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(_ADDRESS)
        self.num_refused = 0
        self._admitted: frozenset[str] = frozenset()

    def admit(self, keys: Iterable[str]) -> None:
        """From now on these keys get in, and no others."""
        self._admitted = frozenset(keys)

    def answer(self) -> None:
        """Answer every question that waits."""
        while True:
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(self._decide(request))

    def _decide(self, request: list[bytes]) -> list[bytes]:
        version, request_id = [*request, b"1.0", b""][:2]
        key = _client_key(request)
        if key in self._admitted:
            return [version, request_id, b"200", b"OK", key.encode(), b""]
        self.num_refused += 1
        if self.num_refused & (self.num_refused - 1) == 0:  # 1, 2, 4, 8...: a flood must not flood the log
            log.warning("%s is not among this cluster's keys; refused (%d so far)", key_name(key), self.num_refused)
        return [version, request_id, b"400", b"key not listed", b"", b""]


def _client_key(request: list[bytes]) -> str:
    """The client's public key, or a text that is no key."""
    is_ours = len(request) == _REQUEST_PARTS and request[2] == DOMAIN.encode()
    if not is_ours or request[5] != b"CURVE" or len(request[6]) != 32:
        return "(no CURVE key)"
    return z85.encode(request[6]).decode()
