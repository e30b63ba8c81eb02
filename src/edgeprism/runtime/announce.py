"""`edgeprism worker --announce`: makes a worker known by mDNS for as long as it serves.

From a thread of its own, so that neither a slow network nor a stranger who holds the name keeps it from serving.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgeprism.errors import InputError
from edgeprism.runtime.cluster_file import is_loopback, split_address
from edgeprism.runtime.discovery import (
    MAX_ADDRESSES,
    SERVICE,
    Announcement,
    check_name,
    is_host,
    own_interfaces,
    require_zeroconf,
)

log = logging.getLogger(__name__)

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"

_RECHECK_S = 5.0  # a board's network may come after its worker, and change
_WITHDRAW_S = 5.0


@contextmanager
def announced(name: str, endpoint: str, public_key: str) -> Iterator[None]:
    """Announces a worker that listens at ``endpoint`` (``tcp://0.0.0.0:5555``) for as long as the block runs.

    InputError where zeroconf is missing, or for a name or an address that cannot be announced.
    """
    require_zeroconf()
    host, port = split_address(endpoint.removeprefix("tcp://"))
    check_name(name)
    if host != EVERYWHERE and not is_host(host):
        raise InputError(f"a worker at {host} cannot be announced: that takes an IPv4 address")
    ends = threading.Event()
    thread = threading.Thread(
        target=_keep_announcing, args=(name, host, port, public_key, ends), name="announce", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join(_WITHDRAW_S)


def addresses_of(host: str) -> tuple[str, ...]:
    """Where a worker that is bound to ``host`` is reached: there, or (0.0.0.0) at the address of every interface."""
    if host != EVERYWHERE:
        return (host,)
    return tuple(sorted(str(one.ip) for one in own_interfaces() if not one.is_loopback))[:MAX_ADDRESSES]


def _keep_announcing(name: str, host: str, port: int, public_key: str, ends: threading.Event) -> None:
    """Until the end; anew when the addresses change. What goes wrong is said once, and tried again."""
    from zeroconf import Error

    said = ""
    while not ends.is_set():
        try:
            if addresses := addresses_of(host):
                with _published(Announcement(name=name, addresses=addresses, port=port, public_key=public_key)):
                    said = ""
                    while not ends.wait(_RECHECK_S) and addresses_of(host) == addresses:
                        pass
                continue
        except (Error, OSError, InputError) as exc:
            trouble = f"{type(exc).__name__} {exc}".strip()
            if trouble != said:
                log.warning("cannot announce itself, and goes on trying: %s", trouble)
            said = trouble
        ends.wait(_RECHECK_S)


@contextmanager
def _published(announcement: Announcement) -> Iterator[None]:
    """On the interfaces of its addresses, and nowhere else; withdrawn at the end."""
    from zeroconf import IPVersion, ServiceInfo, Zeroconf

    interfaces = [LOOPBACK if is_loopback(address) else address for address in announcement.addresses]
    info = ServiceInfo(
        SERVICE,
        f"{announcement.name}.{SERVICE}",
        port=announcement.port,
        properties={"protocol": str(announcement.protocol), "public_key": announcement.public_key},
        parsed_addresses=list(announcement.addresses),
        # Its own, even where two boards have one name: the addresses of a host name are taken together.
        server=f"edgeprism-{secrets.token_hex(8)}.local.",
    )
    with Zeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only) as zeroconf:
        zeroconf.register_service(info, allow_name_change=True)  # two boards may well be called raspberrypi
        log.warning(
            "announces itself as %s, %s, with public key %s",
            info.name.removesuffix(f".{SERVICE}"),
            ", ".join(f"{address}:{announcement.port}" for address in announcement.addresses),
            announcement.public_key,
        )
        yield
