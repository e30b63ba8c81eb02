"""What the pages and the systemd unit tell people to type is what the command line takes."""

from __future__ import annotations

import argparse
import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeprism.cli.main import _build_parser
from edgeprism.wire.keys import KeyPair

ROOT = Path(__file__).resolve().parents[2]
HOW_TO = ROOT / "docs" / "how-to"
UNIT, ENVIRONMENT = HOW_TO / "edgeprism-worker.service", HOW_TO / "edgeprism-worker.env"
FENCED = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s/])(edgeprism [a-z].*)$")


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments of one command line; fails where an option does not exist, or lacks its value."""
    args, unknown = _build_parser().parse_known_args(words)
    assert not unknown, f"no such option: {unknown}"
    return args


def commands() -> list[tuple[str, str]]:
    """Every `edgeprism ...` in a block of commands, with its page."""
    found = []
    for page in [ROOT / "README.md", *sorted(HOW_TO.glob("*.md"))]:
        lines = "\n".join(FENCED.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ").splitlines()
        found += [(page.name, match[1]) for line in lines if (match := COMMAND.search(line))]
    return found


def test_commands_are_found() -> None:
    """The pages are read: README and those on boards have some."""
    pages = {page for page, _ in commands()}
    assert pages >= {"README.md", "run-on-several-boards.md", "run-at-boot.md", "laptop.md"}


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_of_the_pages_are_accepted(page: str, command: str) -> None:
    """Each names a command and options that exist."""
    parse(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize(("page", "command"), [pair for pair in commands() if " run " in pair[1]])
def test_the_model_of_a_command_is_one_that_the_reader_has(page: str, command: str) -> None:
    """$MODEL, of which the page says what it is, a hub id, or a whole path; not the bare name of a directory."""
    args = parse(shlex.split(command, comments=True)[1:])
    model = (parse(args.argv[1:]) if args.command == "lab" else args).model
    if model == "$MODEL":
        text = (ROOT / page if page == "README.md" else HOW_TO / page).read_text(encoding="utf-8")
        assert "MODEL=~/.cache/edgeprism/models/vit-s14-cifar10" in text
    else:
        assert model == "gpt2" or model.startswith(("%h/", "./", "google/"))


def test_an_option_that_does_not_exist_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """The check itself tells a good line from a bad one."""
    with pytest.raises(AssertionError, match="--loud"):
        parse(["worker", "--listen", "0.0.0.0:5555", "--loud"])
    with pytest.raises(SystemExit):
        parse(["worker", "--listen"])
    assert "expected one argument" in capsys.readouterr().err


def unit() -> dict[str, dict[str, str]]:
    """Sections of the unit."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd tells cases apart
    parser.read(UNIT, encoding="utf-8")
    return {name: dict(parser[name]) for name in parser.sections()}


def environment() -> dict[str, str]:
    """The sample of worker.env as systemd reads it: a value in single quotes is taken as it is, to the next quote."""
    pairs = [line.partition("=") for line in ENVIRONMENT.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value[1:-1] if value.startswith("'") else value for name, _, value in pairs}


def command_line(template: str, values: dict[str, str]) -> list[str]:
    """Words of ExecStart as systemd makes them: ${X} inside a word, $X alone split at spaces."""
    words: list[str] = []
    for word in template.split():
        if word.startswith("$") and not word.startswith("${"):
            words += shlex.split(values.get(word[1:], ""))
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], word))
    return words


def test_the_unit_is_for_a_user_and_starts_again() -> None:
    """It has what the page promises, and nothing that a user unit cannot have."""
    sections = unit()
    assert set(sections) == {"Unit", "Service", "Install"}
    assert sections["Install"] == {"WantedBy": "default.target"}
    assert sections["Service"]["Restart"] == "on-failure"
    assert not {"User", "Group"} & set(sections["Service"])
    assert not {"After", "Wants", "Requires"} & set(sections["Unit"]), "a user unit waits for no system unit"
    page = (HOW_TO / "run-at-boot.md").read_text(encoding="utf-8")
    for path in (sections["Service"]["WorkingDirectory"], sections["Service"]["EnvironmentFile"]):
        assert path.replace("%h", "~") in page
    assert sections["Service"]["ExecStart"].split()[0].replace("%h", "~") in page


@pytest.mark.parametrize("begins", ["", "$", "-", "%", "#"])
def test_the_command_of_the_unit_is_accepted(begins: str) -> None:
    """With the sample environment, and with any key: it may hold every sign of Z85."""
    program, *words = command_line(
        unit()["Service"]["ExecStart"],
        {**environment(), "WORKER_COORDINATOR": (begins + KeyPair.generate().public)[:40]},
    )
    assert program.endswith("/edgeprism")
    args = parse(words)
    assert (args.command, args.listen, str(args.key), args.threads) == ("worker", "0.0.0.0:5555", "pi1.secret", 4)
    assert args.announce == ""
    assert len(args.coordinator) == 40 and args.coordinator.startswith(begins)


def test_the_options_of_the_environment_may_be_left_out() -> None:
    """WORKER_OPTIONS is the one line that the page calls optional."""
    values = {name: value for name, value in environment().items() if name != "WORKER_OPTIONS"}
    assert parse(command_line(unit()["Service"]["ExecStart"], values)[1:]).announce is None


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Its own verifier has nothing to say; nothing is started."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    program = tmp_path / ".venvs" / "edgeprism" / "bin" / "edgeprism"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def verify(text: str) -> str:
        (tmp_path / "edgeprism-worker.service").write_text(text)
        words = ["systemd-analyze", "verify", "--user", str(tmp_path / "edgeprism-worker.service")]
        variables = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=60)
        return done.stderr or f"status {done.returncode}"

    text = UNIT.read_text(encoding="utf-8")
    assert verify(text) == "status 0"
    assert "Unknown key" in verify(text.replace("RestartSec=", "RestartSecs="))
