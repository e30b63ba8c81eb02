"""Copies between an accelerator and its host: on the CPU, since no test machine has one."""

from __future__ import annotations

import pytest
import torch

from edgeprism.runtime.staging_probe import SIZES_BYTES, copies, measure_staging

pytestmark = pytest.mark.alone


def test_every_size_and_direction() -> None:
    """Large ones take longer."""
    found = copies(torch.device("cpu"))
    assert {(one["direction"], one["num_bytes"]) for one in found} == {
        (direction, size) for direction in ("to device", "to host") for size in SIZES_BYTES
    }
    by_size = {one["num_bytes"]: one["seconds"] for one in found if one["direction"] == "to host"}
    assert by_size[SIZES_BYTES[-1]] > by_size[SIZES_BYTES[0]] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_pinned_buffers_of_a_gpu() -> None:
    """Both kinds are measured, and pinned ones are no slower."""
    found = {
        (one["direction"], one["is_pinned"]): one["seconds"]
        for one in measure_staging("cuda")
        if one["num_bytes"] == SIZES_BYTES[-1]
    }
    assert len(found) == 4
    assert found["to device", True] < 1.2 * found["to device", False]


def test_there_is_nothing_to_measure_without_one() -> None:
    """Where the host computes, nothing is copied."""
    assert measure_staging("cpu") == measure_staging("") == []
