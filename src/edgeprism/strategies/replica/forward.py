"""The batch split over the devices: each runs the whole model on its samples. Exact; nothing travels between blocks.

Raw inputs travel to a device and its outputs come back, both named tensors with the samples along the first axis.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from edgeprism.errors import InputError, PeerFault
from edgeprism.models.model import Model
from edgeprism.strategies.local.forward import run_local


def batch_of(inputs: dict[str, Any]) -> int:
    """Number of samples, which all tensors among the inputs must share (a row of positions may stand for all)."""
    sizes = {name: value.shape[0] for name, value in inputs.items() if isinstance(value, Tensor) and value.ndim}
    if not sizes:
        raise InputError("no input tensor was given")
    batch = max(sizes.values())
    if wrong := sorted(name for name, size in sizes.items() if size not in (batch, 1)):
        raise InputError(f"{', '.join(wrong)} must have one row for each of the {batch} samples")
    return batch


def samples_of(inputs: dict[str, Any], start: int, stop: int, batch: int) -> dict[str, Any]:
    """The inputs of the samples [start, stop); what is not per sample goes to everyone."""
    return {
        name: value[start:stop] if isinstance(value, Tensor) and value.shape[0] == batch else value
        for name, value in inputs.items()
    }


def run_samples(model: Model, inputs: dict[str, Any]) -> ModelOutput:
    """One device's samples, from inputs to outputs."""
    return model.head(run_local(model, model.tokens(inputs)))


def merge(outputs: list[dict[str, Tensor]], kind: type[ModelOutput]) -> ModelOutput:
    """The outputs of all devices, in the order of their samples, as one ModelOutput; PeerFault if they do not fit."""
    try:
        return kind(**{name: torch.cat([output[name] for output in outputs]) for name in outputs[0]})
    except (KeyError, RuntimeError, TypeError) as exc:
        raise PeerFault(f"the devices' outputs do not fit together: {exc}") from exc
