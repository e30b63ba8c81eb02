"""What a user gives as a model, a device and a dtype: made ready for this device, and an order for the others."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from edgeprism.errors import InputError
from edgeprism.models.load import directory_of, no_progress_bar
from edgeprism.models.manifest import fingerprint
from edgeprism.models.model import DTYPES, Model
from edgeprism.models.registry import adapt
from edgeprism.runtime.accelerator import choose_device
from edgeprism.runtime.cluster import Cluster
from edgeprism.runtime.holders import load_within_memory
from edgeprism.runtime.messages import LoadOrder
from edgeprism.runtime.weights import WeightFiles

_keys = itertools.count()


def adapted(model: str | PreTrainedModel, device: torch.device, dtype: torch.dtype | None) -> Model:
    """Ours, on this device. InputError for what is no model, or is loaded in another dtype or place."""
    if isinstance(model, str):
        return load_within_memory(model, dtype, device)
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"a model is an id, a directory or a loaded PreTrainedModel, not {type(model).__name__}")
    if dtype is not None and model.dtype != dtype:
        raise InputError(f"the model was loaded in {model.dtype}; load it in {dtype}, or give its directory instead")
    if model.device.type != device.type:
        raise InputError(f"the model is on {model.device}; move it to {device}, or give its directory instead")
    return adapt(model)


def device_of(model: str | PreTrainedModel, device: str | torch.device | None) -> torch.device:
    """A model that was given loaded stays where it is, unless another place is named."""
    return choose_device(model.device if device is None and isinstance(model, PreTrainedModel) else device)


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Torch's, by its name or as it is. InputError names those that a model can compute in."""
    if dtype is None or dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    return DTYPES[str(dtype)]


def load_order(
    given: str | PreTrainedModel, model: Model, cluster: Cluster, at_end: list[Callable[[], None]]
) -> tuple[LoadOrder, WeightFiles | None]:
    """What tells workers which model to load: a key for threads, a directory for processes; on other devices a name
    and a fingerprint, and the files for those that lack them. ``at_end`` gets what has to be done when they end."""
    dtype = str(model.dtype).removeprefix("torch.")
    if cluster.shared_models is not None:
        key = f"model-{next(_keys)}"
        cluster.shared_models.clear()
        cluster.shared_models[key] = model
        return LoadOrder(model=key, dtype=dtype, device=str(model.device)), None
    directory = _directory(given, cluster, at_end)
    if cluster.introductions is None:
        return LoadOrder(model=directory, dtype=dtype, device=model.device.type), None
    name = given if isinstance(given, str) else directory
    identity = fingerprint(Path(directory))
    return LoadOrder(model=name, dtype=dtype, device="", fingerprint=identity), WeightFiles(Path(directory))


def _directory(given: str | PreTrainedModel, cluster: Cluster, at_end: list[Callable[[], None]]) -> str:
    """Where worker processes read the weights: a model that was given loaded is saved for them."""
    if isinstance(given, str):
        return str(directory_of(given).resolve())
    if cluster.num_devices == 1:
        return ""
    folder = tempfile.TemporaryDirectory(prefix="edgeprism-")
    at_end.append(folder.cleanup)
    with no_progress_bar():
        given.save_pretrained(folder.name)
    return folder.name
