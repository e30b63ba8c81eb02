"""Where calibrations lie, and how they reach the devices: with the order to load the model that they belong to.

A calibration is found by the model's fingerprint and the codec's name in edgeprism's cache, where `edgeprism calibrate`
puts it, or is given by path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from edgeprism.codecs.calibration import Calibration, missing
from edgeprism.errors import FrameError, InputError
from edgeprism.models.load import directory_of
from edgeprism.models.manifest import fingerprint
from edgeprism.runtime.cache import cache_root
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import DEFAULT_LIMITS, Buffer


def place_of(identity: str, codec: CodecSpec) -> Path:
    """The file of a codec's calibration for the model with the fingerprint ``identity``."""
    name = str(codec).replace(":", "_").replace("=", "")
    return cache_root() / "calibrations" / identity[:32] / f"{name}.safetensors"


def find(
    model: str | PreTrainedModel, codecs: Sequence[CodecSpec], given: Sequence[str | Path | Calibration] = ()
) -> dict[str, Calibration]:
    """The calibrations of those of ``codecs`` that need one, by name: from ``given`` (files are read), else the one
    that `edgeprism calibrate` made.

    PlanError when there is none, InputError when a given one is for another model.
    """
    if not given and not any(codec.needs_calibration for codec in codecs):
        return {}
    name = model if isinstance(model, str) else "MODEL"
    identity = fingerprint(directory_of(model)) if isinstance(model, str) else ""
    found: dict[str, Calibration] = {}
    for one in given:
        calibration = one if isinstance(one, Calibration) else Calibration.read(Path(one))
        if identity and calibration.fingerprint and calibration.fingerprint != identity:
            raise InputError(
                f"the calibration of codec {calibration.codec} was made from another model, or from other weights; "
                f"run: edgeprism calibrate {name} --codec {calibration.codec} --dataset NAME"
            )
        found[str(calibration.codec)] = calibration
    for codec in codecs:
        if codec.needs_calibration and str(codec) not in found:
            path = place_of(identity, codec)
            if not identity or not path.is_file():
                raise missing(codec, name)
            found[str(codec)] = Calibration.read(path)
    return found


def ready_for(spec: ModelSpec, calibrations: Mapping[str, Calibration], device: torch.device) -> dict[str, Calibration]:
    """The same on the device that computes; InputError when they do not fit the model."""
    for calibration in calibrations.values():
        is_rows = calibration.codec.travels == "rows"
        calibration.check(spec.num_layers, spec.hidden_size if is_rows else 2 * spec.key_value_width)
    there = {name: calibration.to(device) for name, calibration in calibrations.items()}
    for calibration in there.values():
        _ = calibration.ready  # inverts a basis: not in the time of the first request
    return there


def tables_to_send(calibrations: Mapping[str, Calibration]) -> tuple[list[dict[str, Any]], tuple[Buffer, ...]]:
    """For the meta of a frame, and its buffers."""
    meta = [{"codec": name, "tables": list(calibration.tables)} for name, calibration in calibrations.items()]
    tables = [
        table.cpu().contiguous() for calibration in calibrations.values() for table in calibration.tables.values()
    ]
    if len(tables) > DEFAULT_LIMITS.max_arrays:
        raise InputError(
            f"{len(calibrations)} codecs have {len(tables)} tables, and {DEFAULT_LIMITS.max_arrays} can be sent; load "
            "the engine with the calibrations of fewer codecs"
        )
    return meta, Staging(torch.device("cpu")).to_wire(tables, Meter())


def tables_received(meta: object, tensors: Sequence[Tensor]) -> dict[str, Calibration]:
    """What ``tables_to_send`` made; FrameError for anything else."""
    try:
        assert isinstance(meta, list)
        names = [(CodecSpec.parse(one["codec"]), list(map(str, one["tables"]))) for one in meta]
        assert sum(len(tables) for _, tables in names) == len(tensors)
        left = iter(tensors)
        made = [
            Calibration(codec=codec, fingerprint="", tables=dict(zip(tables, left, strict=False)))
            for codec, tables in names
        ]
    except (AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as exc:
        raise FrameError(f"a LOAD message with calibrations that cannot be used: {exc}") from exc
    return {str(calibration.codec): calibration for calibration in made}
