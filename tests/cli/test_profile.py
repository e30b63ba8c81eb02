"""`edgeprism profile`, `plan --explain`, `plots` and plan `auto` by what was measured: on real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeprism
from edgeprism.cli.main import main
from edgeprism.errors import InputError
from edgeprism.runtime.auto import AutoSettings
from edgeprism.runtime.maps import write
from edgeprism.specs.performance_map import PerformanceMap
from tests.families import example, expected, make

ARCHITECTURE = "ViTForImageClassification"
SHORT = ["--local-workers", "2", "--batches", "1,4", "--codec", "int8", "--minutes", "2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory, a performance map of it on two processes, and a cache in which `auto` finds it."""
    home = tmp_path_factory.mktemp("profile")
    make(ARCHITECTURE).save_pretrained(home / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRISM_CACHE", str(home / "cache"))
        assert main(["profile", str(home / "model"), *SHORT]) == 0
    return home


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRISM_CACHE", str(home / "cache"))


def the_map(home: Path) -> Path:
    """Where the command wrote it."""
    (path,) = (home / "cache" / "maps").glob("*/*.json")
    return path


def test_the_map(home: Path) -> None:
    """Two devices, a link, codecs that were timed, and predictions that are near what was measured."""
    found = PerformanceMap.read(the_map(home))
    assert [device.name for device in found.devices] == ["device 0", "device 1"]
    assert {"exact", "int8"} <= set(found.codecs)
    assert found.is_complete
    assert found.links[0].to_bytes_per_s > 1e6
    assert all(len(one.total_s) >= 3 for one in found.requests)
    assert "estimate" in found.costs.devices[1].energy_source or found.costs.devices[1].idle_w > 0


def test_auto_chooses_by_it(home: Path) -> None:
    """The outputs are those of one device, whatever runs, and the trace says why it did."""
    model, inputs = make(ARCHITECTURE), example(ARCHITECTURE)
    right = expected(model, inputs)
    with edgeprism.Cluster.spawn(2) as cluster, warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = edgeprism.load(str(home / "model"), cluster=cluster)
        for _ in range(5):
            output = engine(**inputs)
            assert engine.last_trace is not None
            assert engine.last_trace.note.startswith("auto: ")
            torch.testing.assert_close(output.logits, right["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("policy", "strategies"), [("model", {"replica"}), ("table", {"local", "sequence"})])
def test_both_policies_run(home: Path, tmp_path: Path, policy: str, strategies: set[str]) -> None:
    """With a coordinator that is said to be slow, one policy gives the other device everything; the published one knows
    no such plan. Neither uses a codec whose accuracy was never measured."""
    found = PerformanceMap.read(the_map(home))
    slow = replace(found.costs.devices[0], compute=tuple(1000 * cost for cost in found.costs.devices[0].compute))
    costs = replace(found.costs, devices=(slow, *found.costs.devices[1:]))
    write(tmp_path / "map.json", replace(found, costs=costs))
    with edgeprism.Cluster.spawn(2) as cluster:
        settings = AutoSettings(performance_map=tmp_path / "map.json", policy=policy, max_accuracy_drop=3.0)
        engine = edgeprism.load(str(home / "model"), cluster=cluster, auto=settings)
        engine(**example(ARCHITECTURE))
        assert engine.last_trace is not None
        assert engine.last_trace.plan.strategy in strategies
        assert engine.last_trace.plan.codec.is_exact, "what int8 costs was never measured"


def test_explain(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One screen for people, the same as JSON for programs; slow links change what is chosen."""
    assert main(["plan", str(home / "model"), "--local-workers", "2", "--batch", "8", "--explain"]) == 0
    text = capsys.readouterr().out
    assert "> " in text
    assert "left out: int8: not exact" in text
    given = ["plan", str(home / "model"), "--local-workers", "2", "--batch", "8", "--rate", "0.01", "--json"]
    assert main(given) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["decision"]["chosen"]["strategy"] == "local"


def test_plots_need_the_file_alone(home: Path, tmp_path: Path) -> None:
    """Six pictures, none of them empty."""
    pytest.importorskip("matplotlib")
    assert main(["plots", str(the_map(home)), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "bandwidth.png", "breakdown.png", "latency.png", "regimes.png",
    }  # fmt: skip
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())


def _other_model(home: Path, path: Path) -> list[str]:
    torch.manual_seed(1)
    make(ARCHITECTURE, num_labels=3).save_pretrained(home / "other")
    return [str(home / "other"), "--map", str(path)]


def _cut(home: Path, path: Path) -> list[str]:
    (home / "cut.json").write_text(path.read_text()[:-20])
    return [str(home / "model"), "--map", str(home / "cut.json")]


def _edited(home: Path, path: Path) -> list[str]:
    document = json.loads(path.read_text())
    document["costs"]["links"][0]["bytes_per_s"] *= 2
    (home / "edited.json").write_text(json.dumps(document))
    return [str(home / "model"), "--map", str(home / "edited.json")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (_other_model, "another model"),
        (_cut, "cut off"),
        (_edited, "edited"),
        (lambda home, path: [str(home / "model"), "--map", str(path), "--dtype", "bfloat16"], "measured in float32"),
        (lambda home, path: [str(home / "model"), "--map", str(home / "none.json")], "cannot be read"),
        (lambda home, path: [str(home / "model")], "--explain needs"),
        (lambda home, path: [str(home / "model"), "--map", str(path), "--rate", "0"], "--rate must be"),
        (lambda home, path: [str(home / "model"), "--map", str(path), "--rate", "inf"], "--rate must be"),
        (lambda home, path: [str(home / "model"), "--local-workers", "2", "--dtype", "bfloat16"], "edgeprism profile"),
    ],
)
def test_a_map_that_does_not_fit(home: Path, given: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what differs, and exit status 2; nothing on standard output."""
    assert main(["plan", *given(home, the_map(home)), "--explain"]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not output.out


def test_an_explicit_map_of_another_cluster(home: Path) -> None:
    """Is refused when the model is loaded; without one, auto warns once, says the command, and goes on."""
    with edgeprism.Cluster.in_process(2) as cluster:
        settings = AutoSettings(performance_map=the_map(home))
        with pytest.raises(InputError, match="another cluster"):
            edgeprism.load(str(home / "model"), cluster=cluster, auto=settings)
    with edgeprism.Cluster.in_process(2) as cluster:
        with pytest.warns(UserWarning, match="run: edgeprism profile") as warned:
            engine = edgeprism.load(str(home / "model"), cluster=cluster)
        for _ in range(3):
            engine(**example(ARCHITECTURE))
        assert len(warned) == 1
        assert engine.last_trace is not None
        assert engine.last_trace.plan == edgeprism.Plan.local()


def _minds_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background


def test_a_sweep_that_is_broken_off_goes_on(home: Path, tmp_path: Path) -> None:
    """Ctrl-C keeps what was measured; --resume measures only the rest."""
    path = tmp_path / "map.json"
    given = [sys.executable, "-m", "edgeprism", "profile", str(home / "model"), *SHORT, "--out", str(path)]
    given[given.index("1,4")] = "1,2,4,8"
    given[4] = str(home / "larger")
    make(ARCHITECTURE, hidden_size=256, intermediate_size=1024, image_size=224).save_pretrained(home / "larger")
    running = subprocess.Popen(given, stderr=subprocess.PIPE, text=True, preexec_fn=_minds_interrupts)
    assert running.stderr is not None
    said = ""
    while "| 0/" not in said:  # the bar of the sweep has begun
        said += running.stderr.read(1)
        assert running.poll() is None, said
    time.sleep(3.0)  # until the other device has done something, too
    running.send_signal(signal.SIGINT)
    rest = running.communicate(timeout=60)[1]
    assert running.returncode == 130, rest
    assert "--resume" in rest
    before = PerformanceMap.read(path)
    assert not before.is_complete
    assert main([*given[3:], "--resume"]) == 0
    after = PerformanceMap.read(path)
    assert after.is_complete
    assert after.requests[: len(before.requests)] == before.requests
    assert len(after.requests) > len(before.requests)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batches", "0"], "--batches must be at least 1"),
        (["--batches", "a"], "not whole numbers"),
        (["--minutes", "0"], "--minutes must be"),
        (["--lengths", "5"], "--lengths is for texts"),
        (["--codec", "int5"], "unknown codec"),
        (["--cluster", "none.toml"], "no cluster file"),
        (["--dtype", "int8"], "unknown dtype"),
        (["--resume", "--out", "none.json"], "no map in none.json"),
        (["--local-workers", "0"], "1 to 16 devices, not 0"),
        (["--cluster", sys.executable], "is no text"),
    ],
)
def test_bad_options(home: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit status 2."""
    assert main(["profile", str(home / "model"), *given]) == 2
    assert message in capsys.readouterr().err
