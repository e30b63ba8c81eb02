"""Tables that a codec needs of a model: made once by `edgeprism calibrate`, kept in a safetensors file.

The file's metadata names the codec, the model's fingerprint and what the tables were made from. Its tensors, of which
each codec has those that it needs (in front of each shape: the blocks):

    gain, offset  (width)                        prediction from the block before: of a row or, with rot, rotated values
    spread        (1, width)                     of the differences
    basis         (groups, group_width, group_width)
    codebooks     (groups, runs, 256, group)

``width`` is what one token sends; keys and values are two groups, a row is one. Floating point, stored in 16 bits where
that is enough.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeprism.codecs.product import NUM_CODEWORDS
from edgeprism.codecs.rotated_difference import linear_tables
from edgeprism.errors import InputError, PlanError
from edgeprism.specs.codec import CodecSpec

SCHEMA_VERSION = 2
_FORMAT = "edgeprism-calibration"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The tables of one codec for one model. InputError when they do not belong together."""

    codec: CodecSpec
    fingerprint: str
    """Of the model, as in its manifest; empty where it is not known."""
    tables: Mapping[str, Tensor]
    source: Mapping[str, Any] = field(default_factory=dict)
    """What the tables were made from: data set, number of inputs and tokens."""

    def __post_init__(self) -> None:
        wanted = {**{name: 2 for name in ("gain", "offset") if self.codec.is_delta}}
        if self.codec.group is not None:
            wanted |= {"basis": 4, "codebooks": 5}
        elif self.codec.is_delta and self.codec.is_rotated:
            wanted |= {"spread": 3}
        if (given := {name: table.dim() for name, table in self.tables.items()}) != wanted:
            raise InputError(f"tables of codec {self.codec} must be {wanted} (dimensions), not {given}")
        if len({table.shape[0] for table in self.tables.values()}) != 1:
            raise InputError(f"tables of codec {self.codec} are for different numbers of blocks")
        if any(table.dtype not in _DTYPES or not table.isfinite().all() for table in self.tables.values()):
            raise InputError(f"tables of codec {self.codec} hold values that are no finite numbers")
        if "spread" in self.tables and not (self.tables["spread"] > 0).all():
            raise InputError(f"tables of codec {self.codec} hold a spread that is not above zero")

    def check(self, num_blocks: int, width: int) -> None:
        """InputError unless the tables fit a model of ``num_blocks`` blocks whose tokens send ``width`` values."""
        groups = 1 if self.codec.travels == "rows" else 2
        part, group = width // groups, self.codec.group or 1
        shapes = {
            "gain": (num_blocks, width),
            "offset": (num_blocks, width),
            "spread": (num_blocks, groups, part),
            "basis": (num_blocks, groups, part, part),
            "codebooks": (num_blocks, groups, -(-part // group), NUM_CODEWORDS, group),
        }
        for name, table in self.tables.items():
            if tuple(table.shape) != shapes[name]:
                raise InputError(
                    f"the tables of codec {self.codec} are for another model: {name} is {list(table.shape)}, "
                    f"{list(shapes[name])} is needed; run edgeprism calibrate on this model"
                )

    @cached_property
    def ready(self) -> dict[str, Tensor]:
        """The tables in float32, and what packings make of them: ``inverse``, that of the basis; ``linear_tables``."""
        tables = {name: table.float() for name, table in self.tables.items()}
        if "basis" in tables:
            try:
                tables["inverse"] = torch.linalg.inv(tables["basis"])
            except torch.linalg.LinAlgError:
                raise InputError(f"the basis of codec {self.codec} cannot be inverted; calibrate again") from None
        if "spread" in tables:
            tables |= linear_tables(
                self.codec.bits, gains=tables["gain"], offsets=tables["offset"], spreads=tables["spread"]
            )
        return tables

    @cached_property
    def digest(self) -> str:
        """sha256 of the tables, in hex."""
        digest = hashlib.sha256()
        for name in sorted(self.tables):
            table = self.tables[name].detach().cpu().contiguous()
            digest.update(f"{name} {table.dtype} {tuple(table.shape)}\n".encode())
            digest.update(table.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return next(iter(self.tables.values())).device

    def to(self, device: torch.device) -> Calibration:
        """The same on a device."""
        tables = {name: table.to(device) for name, table in self.tables.items()}
        return Calibration(codec=self.codec, fingerprint=self.fingerprint, tables=tables, source=self.source)

    def write(self, path: Path) -> None:
        """Writes the file whole or not at all. InputError where it cannot be written."""
        metadata = {
            "format": _FORMAT,
            "schema_version": str(SCHEMA_VERSION),
            "codec": str(self.codec),
            "fingerprint": self.fingerprint,
            "source": json.dumps(dict(self.source)),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".calibration-", delete=False) as file:
                temporary = Path(file.name)
            try:
                save_file({name: table.contiguous() for name, table in self.tables.items()}, temporary, metadata)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, SafetensorError) as exc:
            raise InputError(f"{path} cannot be written: {exc}") from exc

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Reads what ``write`` wrote; InputError for any other file."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise InputError(f"{path} holds no calibration; edgeprism calibrate writes them")
                if metadata.get("schema_version") != str(SCHEMA_VERSION):
                    raise InputError(
                        f"{path} has schema_version {metadata.get('schema_version')}; this edgeprism reads "
                        f"{SCHEMA_VERSION}: run edgeprism calibrate again"
                    )
                source = json.loads(metadata["source"])
                if not isinstance(source, dict):
                    raise InputError(f"source is no JSON object but {type(source).__name__}")
                return cls(
                    codec=CodecSpec.parse(metadata["codec"]),
                    fingerprint=metadata["fingerprint"],
                    source=source,
                    tables={name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118 (no mapping)
                )
        except FileNotFoundError:
            raise InputError(f"there is no calibration {path}") from None
        except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as exc:
            raise InputError(f"{path} cannot be read as a calibration: {exc}") from exc


def missing(codec: CodecSpec, model: str = "MODEL") -> PlanError:
    """What to say of a codec whose tables nobody has made."""
    return PlanError(
        f"codec {codec} needs tables that are made from the model's own rows; run: "
        f"edgeprism calibrate {model} --codec {codec} --dataset NAME"
    )
