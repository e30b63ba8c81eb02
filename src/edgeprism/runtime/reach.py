"""Does a name lead anywhere, and does a port answer there: the network, before any key is tried.

In threads that nobody waits for longer than the deadline: a name server that is away keeps a lookup for half a minute,
and nothing can end it.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Trouble = Literal["", "name", "refused", "silent", "unreachable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far one got towards ``host:port``. ``ip`` is empty where the name leads nowhere."""

    ip: str = ""
    trouble: Trouble = ""
    reason: str = ""
    """The system's words for the trouble."""

    @property
    def is_here(self) -> bool:
        """The address is this machine's own."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((self.ip, 0))  # only an address that an interface has can be bound
            except OSError:
                return False
        return True

    @property
    def is_loopback(self) -> bool:
        """Each machine has this address, and reaches only itself by it."""
        return ipaddress.ip_address(self.ip).is_loopback

    @property
    def is_unspecified(self) -> bool:
        """0.0.0.0: where one listens, and which nobody can be dialled by."""
        return ipaddress.ip_address(self.ip).is_unspecified


def reach_all(places: Sequence[tuple[str, int]], timeout_s: float) -> list[Reach]:
    """Tries all of them at once, over IPv4 like the transport."""
    deadline = time.monotonic() + timeout_s
    found = [Reach(trouble="name", reason=f"no name server answered within {timeout_s:g} s") for _ in places]

    def attempt(index: int) -> None:
        host, port = places[index]
        try:
            first = socket.getaddrinfo(host.strip("[]"), None, socket.AF_INET, socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as exc:
            found[index] = Reach(trouble="name", reason=getattr(exc, "strerror", None) or str(exc))
            return
        silent = Reach(ip=str(first[4][0]), trouble="silent", reason=f"no answer within {timeout_s:g} s")
        found[index] = silent  # until it answers
        found[index] = _connect(silent, port, deadline - time.monotonic())

    threads = [threading.Thread(target=attempt, args=(index,), daemon=True) for index in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()) + 0.1)
    return list(found)


def _connect(silent: Reach, port: int, timeout_s: float) -> Reach:
    try:
        socket.create_connection((silent.ip, port), timeout=max(0.1, timeout_s)).close()
    except ConnectionRefusedError:
        return Reach(ip=silent.ip, trouble="refused", reason="connection refused")
    except TimeoutError:
        return silent
    except OSError as exc:
        return Reach(ip=silent.ip, trouble="unreachable", reason=exc.strerror or str(exc))
    return Reach(ip=silent.ip)
