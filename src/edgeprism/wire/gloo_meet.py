"""How two gloo devices find each other: by a store that device 0 keeps, or a file that all can read.

gloo joins a group once and for all, so a link that fails needs a new group, and both ends must agree which. Of two
devices the lower offers one, under a name that nobody has used; the higher takes an offer once, ever, and says so; then
both join. An end that was restarted never takes what its predecessor took, so each return makes a new group.

Which network gloo uses follows from the route to the store, or to the peer's address, and never from the host's name.
gloo has no keys: off loopback and the lab it needs ``insecure``.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeprism.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroupGloo, Store

    from edgeprism.wire.gloo_store import StoreServer

_LOOK_AGAIN_S = 0.02
_MAX_NOTE_BYTES = 4096
_NEVER = 2  # a tag that nobody sends with


class Unmet(Exception):
    """They did not meet this time; says why."""


@dataclass
class Place:
    """A store as all devices see it: ``host:port``, or the path of a file; and what this device may use to get there.

    ``address``: this device's own, on the way there. InputError for what cannot be used.
    """

    store: str
    interface: str | None = None
    insecure: bool = False
    address: str = field(init=False)
    _server: StoreServer | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.address = "127.0.0.1" if self.is_file else route_to(self._host_port()[0])
        self.check(self.address)
        if self.interface is not None:
            self.address = address_of_interface(self.interface)
        self.check(self.address)

    @property
    def is_file(self) -> bool:
        """Whether the store is a file rather than a server."""
        return "/" in self.store

    def check(self, address: str) -> None:
        """InputError where gloo, which has no keys, may not be used."""
        if not (self.insecure or os.environ.get("EDGEPRISM_LAB") or ipaddress.ip_address(address).is_loopback):
            raise InputError(
                f"gloo neither encrypts nor asks who is there, and {address} is no loopback: use --transport zmq, or "
                "say --insecure where everybody on that network is trusted"
            )

    def keep(self) -> None:
        """Be the server of the store, on that address alone. InputError if it cannot be bound."""
        from edgeprism.wire.gloo_store import StoreServer

        if not self.is_file:
            self._server = StoreServer(*self._host_port())
            self.store = self._server.address

    def leave(self) -> None:
        """Stop being the server."""
        if self._server is not None:
            self._server.close()
            self._server = None

    @contextmanager
    def open(self) -> Iterator[Store]:
        """A connection with the store, for one thread. Unmet, here and in the body, when it is gone."""
        from torch.distributed import FileStore

        from edgeprism.wire.gloo_store import RemoteStore

        with _unmet("the store is gone"):
            if self.is_file:
                yield FileStore(self.store, -1)
                return
            with closing(RemoteStore(*self._host_port())) as store:
                yield store

    def join(
        self, store: Store, name: str, index: int, size: int, timeout_s: float, peer_address: str = ""
    ) -> ProcessGroupGloo:
        """The group of that name; waits for the others. Unmet if they do not come in time."""
        from torch.distributed import PrefixStore, ProcessGroupGloo

        own = self.address
        if peer_address and self.interface is None:
            own = route_to(peer_address)
            self.check(own)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=timeout_s)
        options._threads = 1
        options._devices = [_device(own)]
        with _unmet("the others did not join in time"):
            return ProcessGroupGloo(PrefixStore(name, store), index, size, options)

    def _host_port(self) -> tuple[str, int]:
        host, colon, port = self.store.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) >= 2**16:
            raise InputError(f"store {self.store!r} must look like 192.168.1.20:29500, or be the path of a file")
        return _resolved(host.strip("[]")), int(port)


Heed: TypeAlias = Callable[[int, Mapping[str, Any]], str]
"""Is given a peer and what its offer says; returns why it cannot be taken, or nothing."""


def meet(
    place: Place,
    own: int,
    peer: int,
    note: Mapping[str, Any],
    timeout_s: float,
    *,
    heed: Heed,
    is_over: Callable[[], bool],
) -> ProcessGroupGloo:
    """Waits, for ever if need be, until the two have a new group. ``note`` is what an offer of this device says.
    Unmet when the store or the peer goes meanwhile, and as soon as ``is_over``."""
    pair = f"{min(own, peer)}-{max(own, peer)}"
    with place.open() as store:
        if own > peer:
            offer = _next_offer(store, pair, lambda offer: heed(peer, offer), is_over)
            return place.join(store, f"{pair}/{offer['token']}", 1, 2, timeout_s, offer["address"])
        token = secrets.token_hex(8)
        offer = {"token": token, "address": place.address, **note}
        store.set(f"{pair}/offer/{store.add(f'{pair}/offers', 1)}", json.dumps(offer))
        _look(store, lambda: f"{pair}/taken/{token}", is_over)
        return place.join(store, f"{pair}/{token}", 0, 2, timeout_s)


def _next_offer(
    store: Store, pair: str, heed: Callable[[Mapping[str, Any]], str], is_over: Callable[[], bool]
) -> dict[str, Any]:
    """The newest offer that nobody has taken yet; takes it."""
    newest = 0

    def newer() -> str:
        return f"{pair}/offer/{max(newest + 1, store.add(f'{pair}/offers', 0))}"

    while True:
        key = _look(store, newer, is_over)
        newest, offer = int(key.rpartition("/")[2]), _read(store, key)
        if why := heed(offer):
            raise Unmet(why)
        if store.add(f"{pair}/taken/{offer['token']}", 1) == 1:
            return offer


def join_all(
    place: Place, name: str, devices: Sequence[int], own: int, timeout_s: float, is_over: Callable[[], bool]
) -> ProcessGroupGloo:
    """The group of several devices, which all know its name. Unmet if one does not come in time."""
    deadline = time.monotonic() + timeout_s
    with place.open() as store:
        store.set(f"{name}/here/{own}", "")
        for device in devices:  # only then join: that cannot be ended from here
            _look(store, lambda: f"{name}/here/{device}", lambda: is_over() or time.monotonic() > deadline)  # noqa: B023
        return place.join(store, name, devices.index(own), len(devices), timeout_s)


def break_off(group: ProcessGroupGloo, peer: int) -> None:
    """Close a group's connections, so that every wait in it ends, here and on the others. gloo has no call for that
    (``abort`` does nothing); but a wait that it gives up does it, so one is made that must be given up."""
    import torch

    try:
        work = group.recv([torch.empty(1, dtype=torch.uint8)], peer % group.size(), _NEVER)  # type: ignore[attr-defined]
        work.wait(timedelta(milliseconds=1))
    except RuntimeError:
        pass  # as it should


def route_to(host: str) -> str:
    """This device's address on the route to another. Nothing is sent. InputError where there is no route."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as exc:
            raise InputError(f"there is no route to {host}: {exc.strerror}") from exc
        return str(probe.getsockname()[0])


def address_of_interface(name: str) -> str:
    """The IPv4 address of a network interface of this device. InputError if it has none."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            request = struct.pack("256s", name.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), 0x8915, request)[20:24])  # SIOCGIFADDR
        except OSError as exc:
            names = ", ".join(known for _, known in socket.if_nameindex())
            raise InputError(f"interface {name!r} has no IPv4 address here; there are {names}") from exc


@lru_cache(maxsize=8)
def _device(address: str) -> ProcessGroupGloo.Device:
    """One of gloo's I/O threads, which all groups on one address share."""
    from torch.distributed import ProcessGroupGloo

    return ProcessGroupGloo.create_device(hostname=address)


def _resolved(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as exc:
        raise InputError(f"no device is known as {host!r}: {exc.strerror}") from exc


def _look(store: Store, key: Callable[[], str], is_over: Callable[[], bool]) -> str:
    """Waits for a key, asked for anew at each look."""
    while not is_over():
        wanted = key()
        if store.check([wanted]):
            return wanted
        time.sleep(_LOOK_AGAIN_S)
    raise Unmet("this device is closing, or time is out")


def _read(store: Store, key: str) -> dict[str, Any]:
    text = store.get(key)
    try:
        offer = json.loads(text) if len(text) <= _MAX_NOTE_BYTES else None
        if isinstance(offer, dict) and isinstance(offer["token"], str):
            ipaddress.ip_address(offer["address"])
            return offer
    except (ValueError, KeyError):
        pass
    raise Unmet("what the store holds is no offer; do devices of the same edgeprism use it?")


@contextmanager
def _unmet(what: str) -> Iterator[None]:
    """What torch.distributed raises, which is RuntimeError always, and refused addresses, as Unmet."""
    try:
        yield
    except InputError as exc:
        raise Unmet(str(exc)) from exc
    except RuntimeError as exc:
        words = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise Unmet(f"{what}: {words}") from exc
