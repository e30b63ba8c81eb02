"""What can happen to a board of ``boards``: each fault is done here, and written down with what the log says about it.

Processes: killed and started again, stopped and continued, restarted in order (SIGTERM). Links: pulled and plugged in.
Visitors: bytes that are no protocol, a key that nobody listed. And the ``rogue``, a device whose key is listed, which
sends garbage or more than may travel.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from benchmarks.boards import PORT, Board, Boards

ROGUE, STRANGER = "rogue", "stranger"
HOLD_S = (0.3, 6.0)  # heartbeats give a peer up after 3 s
HANDSHAKE_S = 3.0
ROGUE_S = 30.0  # it lays out 300 MB for each device


class Journal(logging.Handler):
    """Keeps what the loggers of edgeprism say, with the time of ``time.monotonic``."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self.lines.append((time.monotonic(), record.getMessage()))

    def since(self, start_s: float, end_s: float, text: str = "") -> list[str]:
        """The lines between two moments that contain ``text``."""
        return [line for at, line in list(self.lines) if start_s <= at <= end_s and text in line]

    def begin(self) -> None:
        """Listen from now on."""
        logger = logging.getLogger("edgeprism")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)


@dataclass(kw_only=True)
class Fault:
    """One fault. ``returned_s`` is when the board was able to serve again; times are those of ``time.monotonic``."""

    kind: str
    board: str
    device: int
    begun_s: float = field(default_factory=time.monotonic)
    returned_s: float = 0.0
    back_in_use_s: float | None = None
    """Seconds from its return until a request used it again; None where none did."""
    note: str = ""


class Faults:
    """Does things to the boards, and knows of all of them."""

    def __init__(self, boards: Boards, drawn: random.Random, hold_s: tuple[float, float] = HOLD_S) -> None:
        self.done: list[Fault] = []
        self._boards, self._drawn, self._range_s = boards, drawn, hold_s
        self._kinds: dict[str, Callable[[Board], str]] = {
            "killed": self._killed,
            "stopped": self._stopped,
            "restarted": self._restarted,
            "link pulled": self._unplugged,
            "garbage bytes": self._garbage_bytes,
            "stranger": self._stranger,
            "malformed frames": lambda _: self._misbehave(signal.SIGUSR1),
            "oversized frames": lambda _: self._misbehave(signal.SIGUSR2),
        }

    def do(self, kind: str, board: Board) -> Fault:
        """Returns when the board is able to serve again, as far as it is concerned."""
        fault = Fault(kind=kind, board=board.name, device=self._boards.all.index(board) + 1)
        self.done.append(fault)
        fault.note = self._kinds[kind](board)
        fault.returned_s = time.monotonic()
        return fault

    def _hold(self) -> str:
        hold_s = self._drawn.uniform(*self._range_s)
        time.sleep(hold_s)
        return f"for {hold_s:.1f} s"

    def _killed(self, board: Board) -> str:
        board.kill()
        self._hold()
        return self._started(board, "SIGKILL")

    def _restarted(self, board: Board) -> str:
        begun_s = time.monotonic()
        status = board.terminate()
        return self._started(board, f"SIGTERM, exit status {status} after {time.monotonic() - begun_s:.1f} s")

    def _started(self, board: Board, how: str) -> str:
        begun_s = time.monotonic()
        board.start()
        board.wait_until_it_listens()
        return f"{how}; started, and listens {time.monotonic() - begun_s:.1f} s later"

    def _stopped(self, board: Board) -> str:
        board.stop()
        try:
            return f"SIGSTOP {self._hold()}, then SIGCONT"
        finally:
            board.go_on()

    def _unplugged(self, board: Board) -> str:
        board.set_link(up=False)
        try:
            return f"{self._hold()}, then plugged in again"
        finally:
            board.set_link(up=True)

    def _garbage_bytes(self, board: Board) -> str:
        """Connections that say what is no ZMTP, half of it, or nothing at all."""
        greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01CURVE" + bytes(15) + b"\x00" + bytes(31)
        texts = [self._drawn.randbytes(100_000), b"GET / HTTP/1.1\r\n\r\n", greeting[:20], greeting + b"\xff" * 500]
        texts += [greeting + b"\x06" + b"\xff" * 8 + bytes(1000), b""]
        num_closed = 0
        for text in texts:
            with self._boards.by_name[STRANGER].on():
                visitor = socket.create_connection((board.address, PORT), timeout=HANDSHAKE_S)
            with visitor:
                try:
                    visitor.sendall(text)
                    visitor.settimeout(0.2)
                    while visitor.recv(65536):
                        pass
                    num_closed += 1
                except TimeoutError:
                    continue  # it waits for the rest of a greeting
                except OSError:
                    num_closed += 1
        return f"{len(texts)} connections, of which it closed {num_closed}; the others were closed by the visitor"

    def _stranger(self, board: Board) -> str:
        """The board's own public key is known to the stranger, and its own is not listed."""
        public, secret = zmq.curve_keypair()
        with self._boards.by_name[STRANGER].on():
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            dealer = context.socket(zmq.DEALER)
            dealer.linger = 0
            dealer.curve_publickey, dealer.curve_secretkey = public, secret
            dealer.curve_serverkey = self._boards.public_key(board.name).encode()
            monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            dealer.connect(f"tcp://{board.address}:{PORT}")
        try:
            if not monitor.poll(HANDSHAKE_S * 1000):
                return f"no answer to its handshake in {HANDSHAKE_S:g} s"
            event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
            return "refused" if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH else "ADMITTED"
        finally:
            dealer.disable_monitor()
            monitor.close(0)
            context.destroy(0)

    def _misbehave(self, how: int) -> str:
        rogue = self._boards.by_name[ROGUE]
        known, deadline = len(rogue.said()), time.monotonic() + ROGUE_S
        os.kill(rogue.pid, how)
        while "done with" not in (news := rogue.said()[known:]):
            if not rogue.is_alive or time.monotonic() > deadline:
                raise RuntimeError(f"the rogue has ended, or is too slow; it said: {rogue.said()}")
            time.sleep(0.05)
        return "; ".join(line for line in news.splitlines() if "done with" not in line)


def start_rogue(boards: Boards) -> Board:
    """Instead of the worker of the board that is called so; it listens some seconds later."""
    rogue = boards.by_name[ROGUE]
    rogue.launch([sys.executable, str(Path(__file__).with_name("rogue.py")), *rogue.command()])
    return rogue


def to_json(fault: Fault, origin_s: float, observed: list[str]) -> dict[str, Any]:
    """Plain values; times since ``origin_s``."""
    return {
        "kind": fault.kind,
        "device": fault.device,
        "begun_s": round(fault.begun_s - origin_s, 2),
        "returned_s": round(fault.returned_s - origin_s, 2),
        "back_in_use_s": None if fault.back_in_use_s is None else round(fault.back_in_use_s, 2),
        "note": fault.note,
        "observed": observed,
    }
