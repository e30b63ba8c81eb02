"""The last part of the demo, on a tiny model: it measures, and says what auto runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import edgeprism
from demo.adapt import choose, profile
from tests.families import make


def test_it_profiles_and_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the cache, where auto finds the map; a line for each size of request."""
    monkeypatch.setenv("EDGEPRISM_CACHE", str(tmp_path / "cache"))
    make("ViTForImageClassification").save_pretrained(tmp_path / "model")
    shown: list[tuple[int, int]] = []
    with edgeprism.Cluster.spawn(2) as cluster:
        engine = edgeprism.load(str(tmp_path / "model"), cluster=cluster, plan="local")
        size = engine.image_size
        said = profile(engine, cluster, tmp_path / "model", 17, lambda done, total: shown.append((done, total)))

        def timed(pixels: Tensor) -> float:
            began_s = time.perf_counter()
            engine(pixel_values=pixels)
            return time.perf_counter() - began_s

        lines = choose(engine, torch.rand(4, 3, *size), timed)
    assert "measured in" in said
    assert shown[-1][0] == shown[-1][1]
    assert len(lines) == 2 and all("auto: " in line for line in lines)
    assert len(list((tmp_path / "cache" / "maps").glob("*/*.json"))) == 1
