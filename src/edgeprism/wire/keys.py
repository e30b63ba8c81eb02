"""Who is who on a ZeroMQ cluster: CURVE key pairs and the peers that hold them. Keys are Z85 text of 40 characters."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zmq.utils import z85

from edgeprism.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """The keys of one device. ``secret`` must not leave it; ``public`` is what the others list."""

    public: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        check_key(self.public)
        check_key(self.secret)

    @classmethod
    def generate(cls) -> KeyPair:
        """A new pair from the system's randomness."""
        import zmq

        while True:
            public, secret = zmq.curve_keypair()
            if not public.startswith(b"-"):  # on a command line it would pass for an option
                return cls(public=public.decode(), secret=secret.decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another device. ``address`` (``tcp://host:port``) may be empty for a lower rank: those dial us."""

    rank: int
    address: str = ""
    public_key: str

    def __post_init__(self) -> None:
        if not 0 <= self.rank < 2**16:
            raise InputError(f"rank {self.rank} of a peer must be 0 to 65535")
        if self.address and not self.address.startswith("tcp://"):
            raise InputError(f"address {self.address!r} of device {self.rank} must look like tcp://192.168.1.5:5555")
        check_key(self.public_key)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; ``from_json`` reads it back."""
        return {"rank": self.rank, "address": self.address, "public_key": self.public_key}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Peer:
        """InputError for anything but what ``to_json`` gives."""
        match dict(value):
            case {"rank": int(rank), "address": str(address), "public_key": str(key), **rest} if not rest:
                return cls(rank=rank, address=address, public_key=key)
        raise InputError(f"a peer is an object of rank, address and public_key; got {sorted(value)}")


def check_key(key: str) -> None:
    """InputError unless this is a key of 40 Z85 characters. The key is not repeated: it may be the secret one."""
    try:
        is_key = len(key) == 40 and len(z85.decode(key.encode("ascii"))) == 32
    except (KeyError, ValueError, struct.error):  # the last: five characters above 32 bits
        is_key = False
    if not is_key:
        raise InputError("a key is 40 characters of Z85, as edgeprism keys new prints them")


def key_name(key: str) -> str:
    """What the log calls a public key: its beginning."""
    return f"key {key[:8]}…"


OPEN_KEYS = KeyPair(
    public="E=<)Yn:YP:WhEFE8cyvydOxoP4&+015db^5QqEx[", secret="}b$Kh@Q%+)pshD-UDtsLu3=WA>j%VJ)^=M+/N*5g"
)
"""The pair of everyone who has no key of its own: no secret, so it is used on loopback only."""
