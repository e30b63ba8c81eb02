"""What a lab refuses before it makes anything, and what it reads from files. Needs no root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprism.cli.lab_options import staging_of
from edgeprism.cli.main import main
from edgeprism.errors import InputError
from edgeprism.lab.buckets import FRAME_BYTES, SEGMENT_BYTES, wire_bytes
from edgeprism.lab.device import LabDevice, check_devices, place
from edgeprism.lab.state import State
from edgeprism.lab.trace import read_trace
from edgeprism.specs.staging import StagingCost

PAIR = (LabDevice(name="a", rate_mbit=100.0), LabDevice(name="b", rate_mbit=100.0))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a b"}, "name"),
        ({"rate_mbit": 0.0}, "rate"),
        ({"rate_mbit": 1e6}, "rate"),
        ({"delay_ms": -1.0}, "delay"),
        ({"delay_ms": float("nan")}, "delay"),
        ({"speed": 0.01}, "speed"),
        ({"speed": 1.5}, "speed"),
        ({"memory_mb": 0}, "memory"),
    ],
)
def test_a_device_refuses_what_means_nothing(fields: dict[str, object], words: str) -> None:
    """One line that names the value."""
    with pytest.raises(InputError, match=words):
        LabDevice(**{"name": "a", "rate_mbit": 100.0, **fields})  # type: ignore[arg-type]


def test_devices_must_fit_together() -> None:
    """Two names, and one rate where the medium is shared."""
    with pytest.raises(InputError, match="2 to 16 devices"):
        check_devices(PAIR[:1], is_shared=False)
    with pytest.raises(InputError, match="one name"):
        check_devices((PAIR[0], PAIR[0]), is_shared=False)
    with pytest.raises(InputError, match="one rate"):
        check_devices((PAIR[0], LabDevice(name="b", rate_mbit=50.0)), is_shared=True)


def test_each_device_has_its_core() -> None:
    """Those that ask get theirs, the others what is left; too few are refused, or shared when that is said."""
    wants = LabDevice(name="b", rate_mbit=None, core=0)
    assert place((PAIR[0], wants), (0, 1), share_cores=False) == (1, 0)
    assert place((*PAIR, LabDevice(name="c", rate_mbit=None)), (0, 1), share_cores=True) == (0, 1, 0)
    with pytest.raises(InputError, match="--share-cores"):
        place(PAIR, (3,), share_cores=False)
    with pytest.raises(InputError, match="wants core 0"):
        place((PAIR[0], wants), (1, 2), share_cores=False)
    with pytest.raises(InputError, match=r"speeds of 1\.5 together"):
        place((PAIR[0], LabDevice(name="b", rate_mbit=None, speed=0.5)), (0,), share_cores=True)
    parts = [LabDevice(name=name, rate_mbit=None, speed=0.4) for name in "abcd"]
    assert place(parts, (0, 1), share_cores=False) == (0, 1, 0, 1)
    with pytest.raises(InputError, match="--speed"):
        place(parts, (0,), share_cores=False)


@given(st.integers(1, 10**7))
def test_the_wire_carries_whole_frames(num_bytes: int) -> None:
    """Between what only full frames would need, and one frame's headers more."""
    full = num_bytes * FRAME_BYTES / SEGMENT_BYTES
    assert full - 1e-6 <= wire_bytes(num_bytes) <= full + FRAME_BYTES - SEGMENT_BYTES


@pytest.mark.parametrize("name", ["trace.csv", "trace.json"])
def test_a_trace_is_read(tmp_path: Path, name: str) -> None:
    """CSV, with a head or without, and JSON say the same."""
    path = tmp_path / name
    texts = ["seconds,mbit,ms\n0,400\n5,20,2\n", "0,400\n5,20,2\n"]
    if name.endswith("json"):
        texts = [json.dumps([[0, 400], [5, 20, 2]])]
    for text in texts:
        path.write_text(text)
        assert read_trace(path) == [(0.0, 400.0), (5.0, 20.0, 2.0)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no steps"),
        ("0,x\n", "step 1"),
        ("0,1\n5\n", "step 2"),
        ("0,0\n", "a rate must be"),
        ("5,1\n0,1\n", "after"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """With the step."""
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_trace(path)


def test_the_state_round_trips(tmp_path: Path) -> None:
    """What is written is what is read."""
    state = State(owner=os.getpid(), devices=PAIR, cores=(0, 1), is_shared=True, down=(1,), relay=7, staging="0.1,2.0")
    state = replace(state, frames_at_once=4)
    state.write(tmp_path / "state.json")
    assert State.read(tmp_path / "state.json") == state
    assert state.changed(1, rate_mbit=5.0).devices == (PAIR[0], LabDevice(name="b", rate_mbit=5.0))


def test_staging_is_read() -> None:
    """Text and cost are the same; --staging speaks of ms and MB/s."""
    cost = StagingCost(fixed_s=0.002, bytes_per_s=4e8)
    assert StagingCost.parse(str(cost)) == cost == staging_of("2,400")
    assert staging_of("published") is not None
    for text in ("fast", "1", "1,0", "-1,400"):
        with pytest.raises(InputError):
            staging_of(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--devices", "1"], "--devices must be at least 2"),
        (["up", "--rate", "fast"], "--rate 'fast' is not a number"),
        (["run", "--speed", "1,1,1", "--", "true"], "3 values for 2 devices"),
        (["up", "--staging", "much"], "must be published"),
        (["run"], "COMMAND"),
        (["up", "--delay", "-1"], "delay must be"),
        (["up", "--frames-at-once", "9"], "1 to 8 frames at once, not 9"),
        (["up", "--delay", "2", "--frames-at-once", "4"], "a link with a delay sends one frame at once, not 4"),
    ],
)
def test_the_command_refuses_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, whether root or not."""
    try:
        status = main(["lab", *words])
    except SystemExit as exc:
        status = exc.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert status == 2 and said in error and error.count("\n") == 1


def test_without_root_the_way_on_is_said() -> None:
    """One line, exit 2."""
    code = (
        "import os, sys; os.geteuid = lambda: 1000; from edgeprism.cli.main import main; sys.exit(main(['lab', 'up']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "edgeprism: a lab needs root (network namespaces); without it, run and profile can pace links: --link-rate"
    ]
