"""Performance maps with round numbers, for tests of the policy: no device was measured."""

from __future__ import annotations

import hashlib

from edgeprism.specs.model import ModelSpec
from edgeprism.specs.performance_map import (
    Costs,
    DeviceCosts,
    DeviceFacts,
    LinkCosts,
    PartMeasured,
    PerformanceMap,
    RequestMeasured,
)
from edgeprism.specs.plan import Plan

FINGERPRINT = hashlib.sha256(b"model").hexdigest()
CLUSTER = hashlib.sha256(b"cluster").hexdigest()
CODECS = ("exact", "int8", "kv:int8", "means:9.9")
VIT_B = ModelSpec.from_config(
    {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
    }
)


def device(speed: float = 1.0) -> DeviceCosts:
    """0.26 s for a picture of ViT-B/16 at speed 1: 15 ms a 1e9 multiply-accumulates."""
    linear = 0.0148 / speed
    return DeviceCosts(
        compute=(0.004 / speed, linear, linear, linear, linear, 0.0001, 0.0002),
        wire=(0.0001, 0.0002),
        codecs={name: (0.0 if name == "exact" else 0.0001, 0.0 if name == "exact" else 0.0008) for name in CODECS},
        idle_w=2.0,
        busy_w=5.0,
        joules_per_megabyte=0.01,
    )


def costs(speeds: tuple[float, ...] = (1.0, 1.0), rate_mbit: float = 400.0, latency_s: float = 1e-4) -> Costs:
    """Devices of these speeds on links of that rate."""
    links = tuple(
        LinkCosts(device=index, latency_s=latency_s, bytes_per_s=rate_mbit * 1e6 / 8) for index in range(1, len(speeds))
    )
    return Costs(devices=tuple(map(device, speeds)), links=links)


def performance_map(
    speeds: tuple[float, ...] = (1.0, 1.0), rate_mbit: float = 400.0, model: ModelSpec = VIT_B
) -> PerformanceMap:
    """One with those costs, and one measured point."""
    part = PartMeasured(
        device=0, compute_s=0.26, codec_s=0.0, staging_s=0.0, wire_s=0.0, wait_s=0.0, bytes_sent=0, bytes_received=0
    )
    return PerformanceMap(
        fingerprint=FINGERPRINT,
        model=model,
        dtype="float32",
        cluster=CLUSTER,
        devices=tuple(
            DeviceFacts(name=f"board{index}", hardware="board", num_threads=1) for index in range(len(speeds))
        ),
        requests=(RequestMeasured(plan=Plan.local(), batch=1, num_tokens=197, total_s=(0.26, 0.27), parts=(part,)),),
        links=(),
        costs=costs(speeds, rate_mbit),
    )
