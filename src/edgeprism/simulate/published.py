"""Devices that others have measured: the PipeEdge testbed's profiles, as data of this package (`published.json`)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from edgeprism.errors import InputError
from edgeprism.simulate.system import DeviceKind, System

PREFIX = "published:"
_FLOAT_BYTES = 4


def published(text: str) -> System:
    """The system that ``published:MODEL:DEVICE=COUNT,...`` names. InputError says which there are."""
    document = _document()
    models, devices = document["models"], document["devices"]
    parts = text.removeprefix(PREFIX).split(":")
    known = f"models {', '.join(models)}; devices {', '.join(devices)}"
    if len(parts) != 2 or parts[0] not in models:
        raise InputError(f"{text} names no published model and devices; use {PREFIX}MODEL:DEVICE=COUNT,...: {known}")
    name, kinds = parts[0], []
    for item in parts[1].split(","):
        device, _, count = item.partition("=")
        if device not in devices or not (count or "1").isdigit() or int(count or 1) < 1:
            raise InputError(f"{item!r} is no published device with its count; use DEVICE=COUNT: {known}")
        found = devices[device]
        kinds.append(
            DeviceKind(
                name=device,
                count=int(count or 1),
                piece_s=tuple(found["piece_ms"][name][i] / 1e3 for i in range(models[name]["num_pieces"])),
                bytes_per_s=found["link_mbit_per_s"] * 1e6 / 8,
                memory_bytes=found["memory_mb"] * 1e6,
            )
        )
    model, micro_batch = models[name], document["micro_batch"]
    elements = (model["input_values"], *model["values_after_piece"])
    return System(
        source=document["source"],
        model=name,
        micro_batch=micro_batch,
        cut_bytes=tuple(micro_batch * _FLOAT_BYTES * count for count in elements),
        weight_bytes=tuple(_FLOAT_BYTES * count for count in model["weights_of_piece"]),
        work_bytes=(0,) * model["num_pieces"],
        devices=tuple(kinds),
    )


@cache
def _document() -> dict[str, Any]:
    return json.loads((files("edgeprism.simulate") / "published.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
