"""Secret keys in files: `edgeprism keys new NAME` writes one, a worker and a coordinator read their own."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.wire.keys import KeyPair

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FIELDS = {"name", "public_key", "secret_key"}


def write_key_file(path: Path, name: str, keys: KeyPair) -> None:
    """A new file that its owner alone may read (0600); InputError where one exists already, or none can be made."""
    text = (
        f'# edgeprism: the secret key of "{name}". It stays on this device; the others list its public key.\n'
        f'name = "{name}"\npublic_key = "{keys.public}"\nsecret_key = "{keys.secret}"\n'
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError(
            f"{path} exists already; a key that is replaced is lost, so remove it yourself first"
        ) from None
    except OSError as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror}") from exc
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def read_key_file(path: Path) -> KeyPair:
    """The key pair in a file; InputError if it cannot be read, or if others than its owner can read it."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"no key file {path}; give the path of this device's with --key, or, where it has never had one, make it: "
            f"edgeprism keys new {path.stem}"
        ) from None
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"key file {path} cannot be read: {exc}") from exc
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(f"key file {path} can be read by others than its owner; run: chmod 600 {path}")
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise InputError(f"key file {path} is damaged: {exc}") from exc
    if fields.keys() != _FIELDS or not all(isinstance(value, str) for value in fields.values()):
        raise InputError(f"key file {path} needs exactly name, public_key and secret_key")
    return KeyPair(public=fields["public_key"], secret=fields["secret_key"])
