"""The performance map as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeprism.errors import InputError
from edgeprism.specs.performance_map import DeviceFacts, PerformanceMap
from tests.policy.maps import CLUSTER, FINGERPRINT, performance_map


def document() -> dict[str, Any]:
    """A map as it is written."""
    return json.loads(json.dumps(performance_map().to_json()))


def test_what_was_written_is_read() -> None:
    """What was written is read back."""
    assert PerformanceMap.from_json(document()) == performance_map()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["costs"]["devices"][0].update(idle_w=1.0), "edited"),
        (lambda one: one.update(dtype="bfloat16"), "edited"),
        (lambda one: one["requests"].clear(), "edited"),
        (lambda one: one.update(schema_version=99), "schema_version 99"),
    ],
)
def test_an_edited_map_is_refused(change: Any, message: str) -> None:
    """An edited map is refused."""
    one = document()
    change(one)
    with pytest.raises(InputError, match=message):
        PerformanceMap.from_json(one)


@pytest.mark.parametrize("part", [0, 1, 0.3, 0.999])
def test_a_map_that_was(part: float, tmp_path: Path) -> None:
    """A map that was cut off is refused with its name and what to do."""
    path = tmp_path / "map.json"
    text = json.dumps(performance_map().to_json())
    path.write_text(text[: int(part * len(text))] if part < 1 else text[:-1])
    with pytest.raises(InputError, match=r"map\.json.*edgeprism profile"):
        PerformanceMap.read(path)


@pytest.mark.parametrize("text", ["[]", "3", '{"schema_version": 1}', "\x00", '{"schema_version": 1, "sha256": "x"}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    """Other files are refused."""
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"map\.json"):
        PerformanceMap.read(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fingerprint": "0" * 64}, "another model"),
        ({"dtype": "bfloat16"}, "measured in float32, and the model runs in bfloat16"),
        ({"cluster": "0" * 64}, r"another cluster \(board0, board1\)"),
        (
            {"devices": {1: DeviceFacts(name="board1", hardware="other", num_threads=1)}},
            "hardware of board1 was 'board', and is 'other'",
        ),
        ({}, ""),
    ],
)
def test_a_map_says_how(given: dict[str, Any], message: str) -> None:
    """A map says how it does not fit."""
    asked = {"fingerprint": FINGERPRINT, "dtype": "float32", "cluster": CLUSTER, "devices": {}, **given}
    misfit = performance_map().misfit(**asked)
    if not message:
        assert not misfit
    else:
        with pytest.raises(InputError, match=message):
            raise InputError(misfit)
