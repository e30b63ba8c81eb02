"""The command line as a whole: speed, exit statuses, errors in one line."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprism.cli import main as cli
from edgeprism.cli import plan
from edgeprism.errors import EdgeprismError, PeerLost, PlanError
from tests.specs.configs import VIT_BASE

REPORT_HEAVY_MODULES = """
import sys
from edgeprism.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as exc:
    status = exc.code
heavy = {"torch", "transformers", "numpy"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else status)
"""


@pytest.fixture
def vit(tmp_path: Path) -> str:
    """A ViT-B/16 directory without weights."""
    (tmp_path / "config.json").write_text(json.dumps(VIT_BASE), encoding="utf-8")
    return str(tmp_path)


def edgeprism(*words: str) -> subprocess.CompletedProcess[str]:
    """One call of the command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "edgeprism", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words", [("--help",), ("plan", "--help"), ("plan", "MODEL", "--plan", "sequence", "--devices", "2")]
)
def test_heavy_modules_stay_out(vit: str, words: tuple[str, ...]) -> None:
    """Neither help nor counting imports torch, transformers or numpy."""
    words = tuple(vit if word == "MODEL" else word for word in words)
    done = subprocess.run(
        [sys.executable, "-c", REPORT_HEAVY_MODULES, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.alone
def test_answers_within_half_a_second(vit: str) -> None:
    """Help and counts come in under 0.5 s; the best of five, for the machine may be busy."""
    for words in (("--help",), ("plan", vit, "--plan", "sequence", "--devices", "2", "--json")):
        seconds = []
        for _ in range(5):
            start_s = time.perf_counter()
            assert edgeprism(*words).returncode == 0
            seconds.append(time.perf_counter() - start_s)
        assert min(seconds) < 0.5


def test_help_names_the_commands() -> None:
    """Each command has its line."""
    done = edgeprism("--help")
    assert done.returncode == 0
    assert "plan" in done.stdout
    assert "run" in done.stdout


def test_version_is_one_line() -> None:
    """The version, and nothing else."""
    done = edgeprism("--version")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith("edgeprism ")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("fly",),
        ("--fast",),
        ("plan",),
        ("plan", "x", "--fast"),
        ("plan", "x", "--batch", "many"),
        ("plan", "x", "--dev", "2"),
    ],
)
def test_wrong_usage_is_one_line(words: tuple[str, ...]) -> None:
    """Unknown commands and options: one line that says where help is, exit status 2."""
    done = edgeprism(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("edgeprism: ")
    assert "--help" in done.stderr


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    """A command that fails."""

    def execute(_: argparse.Namespace) -> int:
        raise error

    return execute


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PlanError("no such\n plan"), 2, "edgeprism: no such plan\n"),
        (PeerLost("device 1 is gone"), 1, "edgeprism: device 1 is gone\n"),
        (EdgeprismError("something else"), 1, "edgeprism: something else\n"),
        (KeyboardInterrupt(), 130, "edgeprism: interrupted\n"),
    ],
)
def test_errors_become_statuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    """Our errors are one line and a status: 2 for input, 1 for failures, 130 for an interrupt."""
    monkeypatch.setattr(plan, "execute", raising(error))
    assert cli.main(["plan", "x"]) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("words", [("--help",), ("plan", "MODEL")])
def test_closed_pipe_is_no_traceback(vit: str, words: tuple[str, ...]) -> None:
    """A reader that has gone (head, less) ends the command without complaints."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgeprism", *(vit if word == "MODEL" else word for word in words)],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode in (0, 1)  # argparse itself forgives a closed pipe, and its help ends with 0
    assert "Broken" not in done.stderr
    assert "Traceback" not in done.stderr
