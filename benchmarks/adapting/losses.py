"""What codecs cost in points: models that are timed have random weights."""

from __future__ import annotations

import json

from benchmarks.report import RESULTS

PUBLISHED_LOSS = {"means:3.3": 0.95, "means:4.95": 1.17, "means:9.9": 2.37}
"""A ViT on CIFAR-10 (arXiv 2507.12145)."""


def measured_loss() -> dict[str, float]:
    """The demo ViT on CIFAR-10, two devices, by benchmarks/results/accuracy.json; gains count as nothing."""
    records = json.loads((RESULTS / "accuracy.json").read_text())["figures"]["cifar10"]
    return {
        one["codec"]: max(0.0, round(100 * (one["exact"] - one["value"]), 2))
        for one in records
        if one["devices"] == 2 and one["dtype"] == "float32"
    }
