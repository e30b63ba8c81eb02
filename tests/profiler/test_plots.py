"""The pictures of a performance map; `tests/cli/test_profile.py` draws a measured one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeprism.profiler.plots import draw
from tests.policy.maps import performance_map


def test_a_map_without_one_device(tmp_path: Path) -> None:
    """What could not be measured is in no picture, and hinders none."""
    pytest.importorskip("matplotlib")
    found = performance_map((1.0, 1.0, 1.0))
    first, second, third = found.costs.devices
    lost = replace(third, compute=(), wire=(), codecs={})
    found = replace(found, costs=replace(found.costs, devices=(first, second, lost)))
    written = draw(found, tmp_path, points_lost=lambda codec, num_devices: None, max_accuracy_drop=None)
    assert {path.name for path in written} >= {"latency.png", "regimes.svg"}
    assert all(path.stat().st_size > 5000 for path in written)
