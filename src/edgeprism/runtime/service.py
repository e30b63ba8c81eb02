"""Whom a worker serves, where it listens and what it may load, checked before torch takes its seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.runtime.cluster_file import is_loopback, split_address
from edgeprism.specs.plan import check_num_devices
from edgeprism.wire.key_file import read_key_file
from edgeprism.wire.keys import OPEN_KEYS, KeyPair, check_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """``keys`` are the worker's, ``coordinator`` is the public key of the one that it serves; both are OPEN_KEYS on a
    loopback without keys. ``roots``: directories whose subdirectories are models that it has."""

    host: str
    port: int
    keys: KeyPair
    coordinator: str
    roots: tuple[Path, ...]

    @classmethod
    def of(cls, listen: str, *, key: Path | None, coordinator: str | None, roots: Sequence[Path]) -> Service:
        """InputError for what cannot be used of these."""
        host, port = split_address(listen)
        if (key is None) != (coordinator is None):
            raise InputError("--key and --coordinator belong together: this device's secret, and whom it serves")
        if key is None and not is_loopback(host):
            raise InputError(f"without --key and --coordinator a worker listens on loopback only, not on {host}")
        _check_roots(roots)
        keys, whom = OPEN_KEYS, OPEN_KEYS.public
        if key is not None and coordinator is not None:
            keys, whom = read_key_file(key), _public_key(coordinator)
        if whom == OPEN_KEYS.public and not is_loopback(host):
            raise InputError(
                "--coordinator is the key of those who have none, which everybody knows: make one of its own"
            )
        if key is not None and keys.public == whom:
            raise InputError(
                f"--coordinator is the public key of {key}, this device's own; give the one that edgeprism keys new "
                "printed on the coordinator"
            )
        return cls(host=host, port=port, keys=keys, coordinator=whom, roots=tuple(roots))

    @property
    def whom(self) -> str:
        """The coordinator, as the log names it."""
        return "without keys" if self.coordinator == OPEN_KEYS.public else f"with key {self.coordinator}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GlooService:
    """Which of ``num_devices`` a worker on a gloo cluster is, and where it finds the others."""

    rank: int
    num_devices: int
    store: str
    interface: str | None
    insecure: bool
    roots: tuple[Path, ...]

    @classmethod
    def of(
        cls,
        store: str | None,
        rank: int | None,
        num_devices: int | None,
        *,
        interface: str | None = None,
        insecure: bool = False,
        roots: Sequence[Path] = (),
    ) -> GlooService:
        """InputError for what cannot be used of these."""
        if store is None or rank is None or num_devices is None:
            raise InputError("--transport gloo needs --store HOST:PORT (the coordinator's), --rank R and --devices P")
        check_num_devices(num_devices)
        if not 0 < rank < num_devices:
            raise InputError(f"--rank {rank}: a worker of {num_devices} devices is 1 to {num_devices - 1}")
        _check_roots(roots)
        return cls(
            rank=rank, num_devices=num_devices, store=store, interface=interface, insecure=insecure, roots=tuple(roots)
        )


def _check_roots(roots: Sequence[Path]) -> None:
    for root in roots:
        if not root.is_dir():
            raise InputError(f"--models {root} is no directory")


def _public_key(coordinator: str) -> str:
    try:
        check_key(coordinator)
    except InputError:  # it is not repeated: it may be a secret
        raise InputError(
            "--coordinator is no public key, which is 40 characters: give the one that edgeprism keys new printed on "
            "the coordinator, as --coordinator='KEY', for without the quotes a shell changes some"
        ) from None
    return coordinator
