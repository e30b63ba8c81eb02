"""edgeprism: Transformers over the few small devices that you have, by the plan that is fastest for each request.

with edgeprism.Cluster.spawn(2) as cluster:
    engine = edgeprism.load("google/vit-base-patch16-224", cluster=cluster, plan="sequence", codec="int8")
    output = engine(pixel_values=images)
    print(engine.last_trace.summary())
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from edgeprism.need_torch import need_torch

if TYPE_CHECKING:
    from edgeprism.evaluate.trainable import with_codec, without_codec
    from edgeprism.runtime.auto import AutoSettings
    from edgeprism.runtime.cluster import Cluster
    from edgeprism.runtime.engine import Engine, load
    from edgeprism.runtime.trace import Trace
    from edgeprism.specs.codec import CodecSpec
    from edgeprism.specs.plan import Plan

__all__ = ["AutoSettings", "Cluster", "CodecSpec", "Engine", "Plan", "Trace", "load", "with_codec", "without_codec"]

# Loaded on first use: `edgeprism --help` and `edgeprism plan` answer without torch.
_HOMES = {
    "AutoSettings": "edgeprism.runtime.auto",
    "Cluster": "edgeprism.runtime.cluster",
    "CodecSpec": "edgeprism.specs.codec",
    "Engine": "edgeprism.runtime.engine",
    "Plan": "edgeprism.specs.plan",
    "Trace": "edgeprism.runtime.trace",
    "load": "edgeprism.runtime.engine",
    "with_codec": "edgeprism.evaluate.trainable",
    "without_codec": "edgeprism.evaluate.trainable",
}

_WITH_TORCH = {"AutoSettings", "Cluster", "Engine", "load", "with_codec", "without_codec"}

try:
    __version__ = version("edgeprism")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeprism' has no attribute {name!r}")
    if name in _WITH_TORCH:
        need_torch()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
