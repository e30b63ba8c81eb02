"""`edgeprism simulate`: systems from files and those published, partitions, changes, a device that leaves, charts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import main
from edgeprism.simulate.published import published
from edgeprism.simulate.system import System
from edgeprism.specs.plan import Stage

SIMPLE: dict[str, Any] = {
    "schema_version": 1,
    "model": "four pieces",
    "micro_batch": 2,
    "cut_bytes": [100, 1000, 1000, 1000, 10],
    "weight_bytes": [50, 50, 50, 50],
    "devices": [{"name": "board", "count": 2, "piece_s": [1.0, 1.0, 1.0, 1.0], "bytes_per_s": 2000.0}],
}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What the command prints as JSON."""
    assert main(["simulate", *words, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    """Two boards and a model of four pieces, a second each."""
    path = tmp_path / "system.json"
    path.write_text(json.dumps(SIMPLE))
    return path


def test_two_boards_by_hand(simple: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two pieces each: 2 s a micro-batch, half a second to hand on; the first is home after 2 + 0.5 + 2 + 0.005."""
    found = run(capsys, str(simple), "--micro-batches", "10", "--partition", "0:0-2,1:2-4")
    assert found["period_s"] == pytest.approx(2.0) and found["planned_period_s"] == pytest.approx(2.0)
    assert found["first_s"] == pytest.approx(4.505)
    assert found["total_s"] == pytest.approx(2 + 0.5 + 10 * 2 + 0.005)
    assert found["samples_per_s"] == pytest.approx(1.0) and found["one_device_s"] == pytest.approx(4.0)


def test_slow_links_stay_unused(simple: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a hundredth of the rate handing on takes 50 s, so one device computes everything."""
    found = run(capsys, str(simple), "--rate", "0.00016", "--micro-batches", "4")
    assert [row["pieces"] for row in found["stages"]] == [[0, 4]] and found["period_s"] == pytest.approx(4.0)
    forced = run(capsys, str(simple), "--rate", "0.00016", "--partition", "0:0-2,1:2-4", "--micro-batches", "4")
    assert forced["period_s"] == pytest.approx(50.0)


def test_a_rate_that_falls(simple: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After 10 s a tenth of the rate: 5 s to hand on what took half a second."""
    before = run(capsys, str(simple), "--micro-batches", "20")
    found = run(capsys, str(simple), "--micro-batches", "20", "--change", "10:0.1")
    assert found["total_s"] > before["total_s"] + 30 and found["period_s"] == pytest.approx(5.0)


def test_a_device_that_leaves(simple: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was not home begins again on the other, which takes 4 s for each: nothing is lost."""
    found = run(capsys, str(simple), "--micro-batches", "10", "--partition", "0:0-2,1:2-4", "--leave", "1:10:3")
    assert found["micro_batches"] == 10 and found["stages_after"] == ["0:0-4"]
    num_done = 3  # home at 4.505, 6.505 and 8.505 s
    assert found["total_s"] == pytest.approx(10 + 3 + 4 * (10 - num_done))
    assert found["begun_again"] > 0 and found["samples_per_s_after"] == pytest.approx(2 / 4)
    assert main(["simulate", str(simple), "--partition", "0:0-2,1:2-4", "--leave", "1:10:3"]) == 0
    text = capsys.readouterr().out
    assert "until the device left one every 2.000 s" in text and "0.500 samples/s from then on" in text
    assert "1 (board 2)" in text


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (("--change", "30:0.1"), "no rate changed at 30 s: all micro-batches were home after 4.55 s"),
        (("--partition", "0:0-2,1:2-4", "--leave", "1:60"), "device 1 did not leave at 60 s"),
        (("--partition", "0:0-4", "--leave", "1:1"), "device 1 has no stage"),
    ],
)
def test_what_does_not_come_about_is_said(
    simple: Path, words: tuple[str, ...], note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All is over before it could; what does come about needs no note."""
    assert main(["simulate", str(simple), "--micro-batches", "1", *words]) == 0
    assert note in capsys.readouterr().err
    assert main(["simulate", str(simple), "--partition", "0:0-2,1:2-4", "--leave", "1:1", "--change", "1:0.5"]) == 0
    assert not capsys.readouterr().err


def test_a_device_that_leaves_at_once(simple: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything was begun: all runs on the other."""
    found = run(capsys, str(simple), "--micro-batches", "5", "--partition", "0:0-2,1:2-4", "--leave", "1:0")
    assert found["micro_batches"] == 5 and found["total_s"] == pytest.approx(4 * 5)


@pytest.mark.parametrize("model", ["vit-base", "vit-large"])
def test_published_profiles_give_the_published_speed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures a second of one device: 0.613 and 0.770 for ViT-Base, 0.180 and 0.223 for ViT-Large."""
    said = {"vit-base": (0.613, 0.770), "vit-large": (0.180, 0.223)}[model]
    for device, speed in zip(("minnowboard", "rcc-ve"), said, strict=True):
        assert run(capsys, f"published:{model}:{device}")["samples_per_s"] == pytest.approx(speed, rel=0.005)


def test_sixteen_published_boards(capsys: pytest.CaptureFixture[str]) -> None:
    """No partition is better than the best one, and it is near what all devices compute together."""
    name = "published:vit-large:minnowboard=8,rcc-ve=8"
    found = {
        partition: run(capsys, name, "--partition", partition)["samples_per_s"]
        for partition in ("fastest", "even", "proportional", "pipedream")
    }
    assert max(found.values()) == found["fastest"]
    assert 0.95 < found["fastest"] / (8 * 0.180 + 8 * 0.223) <= 1.0


def test_a_chart_is_drawn(simple: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PNG and SVG, and text for people beside."""
    pytest.importorskip("matplotlib")
    for name in ("chart.png", "chart.svg"):
        assert main(["simulate", str(simple), "--leave", "1:9", "--gantt", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 5000
    text = capsys.readouterr().out
    assert "board 1" in text and "were begun again, on stages 0:0-4" in text


def test_systems_survive_json(simple: Path) -> None:
    """Those published, too; and what bytes take, which slows a stage."""
    plain = System.read(simple)
    kinds = tuple(replace(kind, s_per_byte=1e-9) for kind in plain.devices)
    slower = replace(plain, devices=kinds)
    assert System.from_json(json.loads(json.dumps(slower.to_json()))) == slower
    stage = Stage(device=1, start=0, stop=1)
    carried_s = 1e-9 * (plain.cut_bytes[0] + plain.cut_bytes[1])
    assert slower.pipeline().compute_s(stage) == pytest.approx(plain.pipeline().compute_s(stage) + carried_s)
    system = published("published:vit-base:rcc-ve=2,minnowboard")
    assert System.from_json(json.loads(json.dumps(system.to_json()))) == system
    assert system.names == ("rcc-ve 1", "rcc-ve 2", "minnowboard")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["/nowhere.json"], "there is no file"),
        (["published:vit-giant:rcc-ve"], "models vit-base, vit-large"),
        (["published:vit-base:pi=3"], "devices minnowboard, rcc-ve"),
        (["published:vit-base:rcc-ve=0"], "with its count"),
        (["published:vit-base:rcc-ve", "--micro-batches", "0"], "at least 1"),
        (["published:vit-base:rcc-ve", "--partition", "best"], "unknown partition 'best'"),
        (["published:vit-base:rcc-ve", "--partition", "0:0-20"], "end at piece 20"),
        (["published:vit-base:rcc-ve", "--change", "ten"], "SECONDS:FACTOR"),
        (["published:vit-base:rcc-ve", "--change", "1:0"], "more than nothing; not at 1 s to 0 of it"),
        (["published:vit-base:rcc-ve", "--change", "1:nan"], "SECONDS:FACTOR"),
        (["published:vit-base:rcc-ve=2", "--leave", "1:nan"], "DEVICE:SECONDS"),
        (["published:vit-base:rcc-ve=3", "--leave", "1:2", "--leave", "2:3"], "one device may leave"),
        (["published:vit-base:rcc-ve", "--rate", "inf"], "more than 0"),
        (["published:vit-base:rcc-ve", "--gantt", "/"], "not /"),
        (["published:vit-base:rcc-ve", "--leave", "0:3"], "has the inputs"),
        (["published:vit-base:rcc-ve", "--leave", "7:3"], "have the numbers 0 to 0"),
        (["published:vit-base:rcc-ve", "--leave", "zero"], "DEVICE:SECONDS"),
        (["published:vit-base:rcc-ve", "--rate", "-1"], "more than 0"),
        (["published:vit-base:rcc-ve", "--gantt", "chart.txt"], "FILE.png or FILE.svg"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and what can be done."""
    assert main(["simulate", *words]) == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema_version": 2}, "schema_version 1"),
        ({"micro_batch": 0}, "micro_batch must be a count"),
        ({"cut_bytes": [1, 2]}, "cut_bytes is of 1 pieces (it has one number more), and weight_bytes of 4"),
        ({"weight_bytes": [1, 2]}, "cut_bytes is of 4 pieces (it has one number more), and weight_bytes of 2"),
        ({"weight_bytes": [1, 2, 3, 4.0]}, "weight_bytes must be whole numbers of bytes, not 4.0"),
        ({"mikro_batch": 2}, "unknown field 'mikro_batch'; there are schema_version"),
        ({"has_one_medium": "no"}, "has_one_medium must be true or false, not 'no'"),
        ({"model": 7}, "model must be text, not 7"),
        ({"devices": [{"piece_s": [0, 0, 0, 0], "bytes_per_s": 1}]}, "piece_s of device must be more than 0"),
        ({"devices": [{"piece_s": [1, 1, 1, 1], "bytes_per_s": 0}]}, "bytes_per_s of device must be more than 0"),
        ({"devices": [{"piece_s": [1, 1, 1, 1e999], "bytes_per_s": 1}]}, "piece_s must be a number"),
        ({"devices": [{"piece_s": [1, 1, 1], "bytes_per_s": 1}]}, "piece_s of device of 3"),
        ({"devices": [{"piece_s": [1, 1, 1, 1], "bytes_per_s": 1, "memory_byte": 1}]}, "unknown field 'memory_byte'"),
        ({"cut_bytes": [1, 2, 3, 4, -5]}, "cut_bytes must be whole numbers"),
        ({"weight_bytes": []}, "weight_bytes must be a list"),
        ({"devices": [{"piece_s": [1, 1, 1, 1]}]}, "bytes_per_s must be a number"),
        ({"devices": [{"piece_s": [1, "x", 1, 1], "bytes_per_s": 1}]}, "piece_s must be a number"),
        ({"devices": ["board"]}, "list of objects"),
        ({"devices": [{"piece_s": [1, 1, 1, 1], "bytes_per_s": 1, "memory_bytes": 10}]}, "lack"),
    ],
)
def test_files_that_cannot_be_used(
    change: dict[str, Any], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The field that is wrong is named."""
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({**SIMPLE, **change}))
    assert main(["simulate", str(path)]) == 2
    assert text in capsys.readouterr().err
