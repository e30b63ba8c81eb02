"""``cluster.toml``: who belongs to a cluster, where each device is, and by which key it is known.

    [coordinator]
    name = "laptop"
    public_key = "..."

    [[device]]
    name = "jetson"
    address = "192.168.1.20:5555"
    public_key = "..."

Device 0 is the coordinator, the others follow in the order of the file. A host name is looked up at each connection.
Without any keys the devices are on loopback.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.errors import InputError
from edgeprism.specs.plan import MAX_DEVICES
from edgeprism.wire.key_file import read_key_file
from edgeprism.wire.keys import OPEN_KEYS, KeyPair, Peer, check_key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device of the file. ``address`` (host:port) is empty for the coordinator, which nobody dials."""

    name: str
    address: str
    public_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """The members, the coordinator first."""

    members: tuple[Member, ...]

    @classmethod
    def read(cls, path: Path) -> ClusterFile:
        """InputError says in one line what is wrong in the file, and where."""
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"no cluster file {path}") from None
        except UnicodeDecodeError:
            raise InputError(f"cluster file {path} is no text; give the TOML file that names the devices") from None
        except OSError as exc:
            raise InputError(f"cluster file {path} cannot be read: {exc.strerror or exc}") from exc
        except tomllib.TOMLDecodeError as exc:
            raise InputError(
                f"cluster file {path} is not TOML: {exc}; texts stand in quotes, keys in single ones"
            ) from exc
        try:
            return cls._of(document)
        except InputError as exc:
            raise InputError(f"cluster file {path}: {exc}") from exc

    def peers(self) -> list[Peer]:
        """Everyone as the transport knows them: rank, address, key."""
        return [
            Peer(
                rank=rank,
                address=f"tcp://{member.address}" if member.address else "",
                public_key=member.public_key,
            )
            for rank, member in enumerate(self.members)
        ]

    @classmethod
    def _of(cls, document: Mapping[str, Any]) -> ClusterFile:
        _refuse_others(document, {"coordinator", "device"}, "the file")
        tables = document.get("device", [])
        if not isinstance(tables, list) or not tables:
            raise InputError("it lists no [[device]]")
        if len(tables) >= MAX_DEVICES:
            raise InputError(
                f"it lists {len(tables)} devices; with the coordinator a cluster has at most {MAX_DEVICES}"
            )
        members = [_member(document.get("coordinator", {"name": "coordinator"}), "[coordinator]", ("name",))]
        members += [_member(table, f"[[device]] {i}", ("name", "address")) for i, table in enumerate(tables, start=1)]
        for field in ("name", "address", "public_key"):
            values = [getattr(member, field) for member in members if getattr(member, field)]
            again = {value for value in values if values.count(value) > 1 and value != OPEN_KEYS.public}
            if again:
                raise InputError(f"{field} {min(again)!r} is there twice; each device has its own")
        if sum(member.public_key == OPEN_KEYS.public for member in members[1:]) > 1:
            raise InputError("several devices have no public_key; without keys one can be told from another no more")
        return cls(members=tuple(members))


def own_keys(path: Path, own: Member, key: Path | None) -> KeyPair:
    """The keys of the device that reads the cluster file ``path``: from ``key``, else from NAME.secret beside that
    file. InputError unless they are those that it lists."""
    if own.public_key == OPEN_KEYS.public and key is None:
        return OPEN_KEYS
    keys = read_key_file(key or path.with_name(f"{own.name}.secret"))
    if keys.public != own.public_key:
        raise InputError(
            f"the key file is of {keys.public}, the cluster file lists {own.public_key} for the coordinator {own.name}"
        )
    return keys


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``; InputError for anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(f"address {text!r} must look like 192.168.1.20:5555")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether an address stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _member(table: object, where: str, needed: tuple[str, ...]) -> Member:
    if not isinstance(table, dict):
        raise InputError(f"{where} must be a table")
    _refuse_others(table, {"name", "public_key", *needed}, where)
    for field in (*needed, "public_key"):
        if not isinstance(table.get(field, ""), str) or (field in needed and not table.get(field)):
            raise InputError(f"{where} needs {field}, as text")
    address, key = table.get("address", ""), table.get("public_key", "")
    if address and not is_loopback(split_address(address)[0]) and key in ("", OPEN_KEYS.public):
        raise InputError(
            f"{where} ({table['name']}) has no public_key of its own; without keys a device must be on loopback"
        )
    if key:
        try:
            check_key(key)
        except InputError as exc:
            raise InputError(f"{where} ({table['name']}): its public_key is not one: {exc}") from exc
    return Member(name=table["name"], address=address, public_key=key or OPEN_KEYS.public)


def _refuse_others(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise InputError(
            f"{where} has {', '.join(unknown)}, which means nothing here; it may have {', '.join(sorted(known))}"
        )
