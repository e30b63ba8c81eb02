"""Emulated staging waits as long as was declared, and is counted; without a declaration nothing waits."""

from __future__ import annotations

import pytest
import torch

from edgeprism.specs.staging import VARIABLE
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.staging import Staging, _declared


@pytest.mark.parametrize(("text", "expected_s"), [("", 0.0), ("0.005,1e6", 0.009)])
def test_a_declared_cost_is_waited_for(monkeypatch: pytest.MonkeyPatch, text: str, expected_s: float) -> None:
    """4000 bytes at 1 MB/s after 5 ms: 9 ms a call."""
    monkeypatch.setenv(VARIABLE, text)
    _declared.cache_clear()
    try:
        meter = Meter()
        Staging(torch.device("cpu")).to_wire((torch.zeros(1000),), meter)
        assert expected_s <= meter.staging_s and (meter.staging_s == 0) == (expected_s == 0)
    finally:
        _declared.cache_clear()
