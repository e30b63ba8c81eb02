"""Where MODEL and --cluster on a command line lead, before torch or any weight is read: what a command checks first."""

from __future__ import annotations

import json
import os
from pathlib import Path

from edgeprism.errors import ModelFilesError
from edgeprism.specs.model import ModelSpec


def config_directory(source: str) -> Path:
    """The directory that holds config.json: ``source`` itself, or the hub's copy of an id, fetched if need be."""
    path = Path(os.path.expanduser(source))  # unlike Path.expanduser it leaves the home of an unknown user as it is
    looks_like_id = source.count("/") <= 1 and not source.startswith((".", "/", "~"))
    if path.is_dir() or not looks_like_id:
        return path
    if path.exists():
        raise ModelFilesError(f"{source} is a file; give the directory that holds config.json")
    return _config_from_hub(source).parent


def check_cluster(path: Path, key: Path | None) -> None:
    """InputError where the cluster file, or this device's key for it, cannot be used."""
    from edgeprism.runtime.cluster_file import ClusterFile, own_keys

    own_keys(path, ClusterFile.read(path).members[0], key)


def names_of(path: Path) -> list[str]:
    """The devices of a cluster file, the coordinator first."""
    from edgeprism.runtime.cluster_file import ClusterFile

    return [member.name for member in ClusterFile.read(path).members]


def usual_tokens(directory: Path, model: ModelSpec) -> int:
    """Tokens of a request of which nothing is known: a picture as the processor cuts it, or a short text."""
    return (tokens_of_pictures(directory, model) if model.resizes_images else None) or model.usual_tokens


def tokens_of_pictures(directory: Path, model: ModelSpec) -> int | None:
    """Tokens of a picture as the processor cuts it, for families that take any size; None if it does not say."""
    try:
        processor = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = processor["crop_size" if processor.get("do_center_crop") else "size"]
        height, width = int(size["height"]), int(size["width"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    patch_height, patch_width = model.patch_size_px
    return (height // patch_height) * (width // patch_width) + model.special_tokens


def _config_from_hub(model_id: str) -> Path:
    import huggingface_hub as hub

    try:
        cached = hub.try_to_load_from_cache(model_id, "config.json")
        if isinstance(cached, str):
            return Path(cached)
        hub.get_hf_file_metadata(hub.hf_hub_url(model_id, "config.json"))  # fails at once where hf_hub_download retries
        return Path(hub.hf_hub_download(model_id, "config.json"))
    except Exception as exc:  # offline, unknown id, no access: the hub's client has a class for each
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ModelFilesError(
            f"{model_id} is no directory here, and the hub gave no config.json for it ({reason})"
        ) from exc
