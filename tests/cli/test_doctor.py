"""`edgeprism doctor`: this device, and real workers on loopback that work, are absent, foreign, mistaken or stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgeprism
from edgeprism.cli.main import main
from edgeprism.wire.key_file import read_key_file, write_key_file
from edgeprism.wire.keys import KeyPair
from tests.families import difference, example, expected, make

SOURCES = Path(edgeprism.__file__).parents[1]
LINE = re.compile(r"  (ok  |warn|FAIL)  (?=\S)(.{12}) (\S.*)")


class Bench:
    """Keys and worker processes in one directory; every device has a port of loopback."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workers: dict[str, subprocess.Popen[str]] = {}
        for name in ("laptop", "stranger", "works", "absent", "foreign"):
            write_key_file(root / f"{name}.secret", name, KeyPair.generate())
        sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in ("works", "foreign")}
        self.ports = {name: one.getsockname()[1] for name, one in sockets.items()}
        for one in sockets.values():
            one.close()
        self.ports["absent"] = 9  # discard: nobody listens there, and no worker is ever given it

    def key(self, name: str) -> str:
        """The public key of a device."""
        return read_key_file(self.root / f"{name}.secret").public

    def file(self, *names: str, host: str = "127.0.0.1") -> Path:
        """A cluster file of these devices. "mistaken" is the one that works, under another name and a wrong key."""
        lines = ["[coordinator]", 'name = "laptop"', f'public_key = "{self.key("laptop")}"']
        for name in names:
            address = f"localhost:{self.ports['works']}" if name == "mistaken" else f"{host}:{self.ports[name]}"
            key = self.key("stranger" if name == "mistaken" else name)
            lines += ["[[device]]", f'name = "{name}"', f'address = "{address}"', f'public_key = "{key}"']
        path = self.root / "cluster.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def start(self, name: str, coordinator: str = "laptop") -> None:
        """A worker process; ``wait`` until it listens."""
        command = [sys.executable, "-m", "edgeprism", "worker", "--listen", f"127.0.0.1:{self.ports[name]}"]
        command += ["--key", f"{name}.secret", "--coordinator", self.key(coordinator), "--threads", "1", "--verbose"]
        environment = dict(os.environ, EDGEPRISM_CACHE=str(self.root / "cache"))
        self.workers[name] = subprocess.Popen(
            command, cwd=self.root, stderr=subprocess.PIPE, text=True, env=environment
        )

    def wait(self) -> None:
        """Until all of them listen."""
        for worker in self.workers.values():
            assert worker.stderr is not None
            assert "listens on" in worker.stderr.readline()

    def close(self) -> None:
        """Ends what runs."""
        for worker in self.workers.values():
            worker.kill()
            worker.communicate()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Two workers: one as it should be, and one of another coordinator."""
    bench = Bench(tmp_path_factory.mktemp("doctor"))
    try:
        bench.start("works")
        bench.start("foreign", coordinator="stranger")
        bench.wait()
        yield bench
    finally:
        bench.close()


def look(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Exit status of a doctor with --json, and its checks by what they are about and their name."""
    capsys.readouterr()
    status = main(["doctor", "--device", "cpu", "--json", *map(str, words)])
    document = json.loads(capsys.readouterr().out)
    return status, {(check["about"], check["check"]): check for check in document["checks"]}


def test_this_device_has_a_line_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, aligned; a processor that runs these tests works."""
    assert main(["doctor"]) == 0
    heading, *lines, empty, summary = capsys.readouterr().out.splitlines()
    assert (heading, empty) == ("this device", "")
    assert summary.startswith("everything works")
    found = [LINE.fullmatch(line) for line in lines]
    names = [match[2].strip() for match in found if match]
    assert len(names) == len(lines)
    assert {*names} >= {"edgeprism", "torch", "transformers", "cpu", "cores", "memory", "disk", "cpu clock", "energy"}


def test_the_document_has_numbers_with_units(capsys: pytest.CaptureFixture[str]) -> None:
    """What a line says as text, the document says as a number, too."""
    status, checks = look(capsys)
    assert status == 0
    here = {name: check["measured"] for (about, name), check in checks.items() if about == "this device"}
    assert here["cpu"]["flop_per_s"] > 1e6
    assert 0 < here["cpu"]["error"] < 1e-4
    assert here["memory"]["memory_available_bytes"] > 0
    assert here["cores"]["num_cores"] >= 1
    assert here["edgeprism"]["protocol"] == 2


@pytest.mark.alone
def test_each_trouble_is_told_apart_within_seconds(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """The device that works is measured; of each of the others it says why it does not answer, and what to do."""
    status, checks = look(capsys, "--cluster", bench.file("works", "absent", "foreign", "mistaken"))
    assert status == 1
    assert checks["cluster.toml", "file"]["status"] == checks["cluster.toml", "key"]["status"] == "ok"
    names = ("address", "connection", "round trip", "rate", "wall clock", "versions", "memory", "device")
    works = {name: checks["works", name] for name in names}
    assert {check["status"] for name, check in works.items() if name not in ("round trip", "rate")} == {"ok"}
    assert 0 < works["round trip"]["measured"]["round_trip_s"] < 1
    assert min(works["rate"]["measured"].values()) > 1e5
    assert abs(works["wall clock"]["measured"]["clock_ahead_s"]) < 0.5  # it is the same clock
    assert f"edgeprism {edgeprism.__version__}, Python 3." in works["versions"]["value"]
    for name, value, advice in (
        ("absent", "nothing listens on port 9", f"--key absent.secret --coordinator='{bench.key('laptop')}'"),
        ("foreign", "refuses this device's key", f"--key foreign.secret --coordinator='{bench.key('laptop')}'"),
        ("mistaken", "another key than expected", "compare public_key of mistaken"),
    ):
        assert [key for key in checks if key[0] == name] == [(name, "address"), (name, "connection")]
        found = checks[name, "connection"]
        assert found["status"] == "FAIL"
        assert value in found["value"]
        assert advice in found["advice"]


@pytest.mark.alone
def test_a_stopped_process_keeps_nobody_waiting(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Its port is open, for the kernel answers there; after some seconds it is said so. What goes on again is heard."""
    file = bench.file("foreign")
    bench.workers["foreign"].send_signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        status, checks = look(capsys, "--cluster", file)
        assert time.monotonic() - began_s < 10
    finally:
        bench.workers["foreign"].send_signal(signal.SIGCONT)
    assert status == 1
    assert "nothing speaks there" in checks["foreign", "connection"]["value"]
    assert "is stopped" in checks["foreign", "connection"]["advice"]
    assert "refuses" in look(capsys, "--cluster", file)[1]["foreign", "connection"]["value"]


@pytest.mark.alone
def test_a_coordinator_that_uses_the_device_is_not_disturbed(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """While another process with the same key looks at its worker, and afterwards, every request is answered by both
    devices."""
    make("BertForSequenceClassification").save_pretrained(bench.root / "bert")
    inputs = example("BertForSequenceClassification")
    wanted = expected(make("BertForSequenceClassification"), inputs)
    file = bench.file("works")
    command = [sys.executable, "-m", "edgeprism", "doctor", "--device", "cpu", "--cluster", str(file), "--json"]
    with (
        edgeprism.Cluster.from_file(file, require_all=True) as cluster,
        edgeprism.load(str(bench.root / "bert"), cluster=cluster, plan="sequence") as engine,
    ):

        def ask() -> None:
            assert difference(engine(**inputs), wanted, inputs) <= 1e-4
            trace = engine.last_trace
            assert trace is not None
            assert ([device.device for device in trace.devices], trace.failures, trace.left_out) == ([0, 1], (), ())

        ask()
        doctor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        num_meanwhile = 0
        while doctor.poll() is None:
            ask()
            num_meanwhile += 1
        ask()
    assert doctor.stdout is not None
    document = json.loads(doctor.stdout.read())
    doctor.stdout.close()
    assert doctor.returncode == 0, document
    assert num_meanwhile > 1
    assert "rate" in {check["check"] for check in document["checks"] if check["about"] == "works"}


@pytest.mark.parametrize(
    ("host", "value", "advice"),
    [
        ("x" * 64, "leads nowhere", "IP address"),
        ("0.0.0.0", "is not found there", "own address"),
    ],
)
def test_addresses_that_lead_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str, value: str, advice: str
) -> None:
    """A name that cannot be looked up, and the address for listening, are the other device's failure: status 1."""
    bench = Bench(tmp_path)
    status, checks = look(capsys, "--cluster", bench.file("absent", host=host))
    assert status == 1
    assert checks["absent", "address"]["status"] == "FAIL"
    assert value in checks["absent", "address"]["value"]
    assert advice in checks["absent", "address"]["advice"]


def test_keys_and_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, a line about the file or the key, and what to do; no device is asked."""
    bench = Bench(tmp_path)
    file, secret = bench.file("absent"), tmp_path / "laptop.secret"

    def failing(name: str, *words: str | Path) -> str:
        status, checks = look(capsys, *words)
        (found,) = (check for check in checks.values() if check["status"] == "FAIL")
        assert (status, found["check"]) == (2, name)
        assert ("absent", "address") not in checks
        return f"{found['value']}; {found['advice']}"

    secret.chmod(0o644)
    assert f"chmod 600 {secret}" in failing("key", "--cluster", file)
    assert f"chmod 600 {secret}" in failing("key", "--key", secret)
    secret.chmod(0o600)
    assert "lists" in failing("key", "--cluster", file, "--key", tmp_path / "stranger.secret")
    secret.unlink()
    assert "edgeprism keys new laptop" in failing("key", "--cluster", file)
    file.write_text("[[devices]]\n")
    assert "devices, which means nothing" in failing("file", "--cluster", file)
    assert "no cluster file" in failing("file", "--cluster", tmp_path / "none.toml")
    status, checks = look(capsys, "--key", tmp_path / "works.secret")
    assert status == 0
    assert bench.key("works") in checks["works.secret", "key"]["value"]


def test_a_place_for_weights_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache below a file can never be made."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRISM_CACHE", str(tmp_path / "file"))
    status, checks = look(capsys)
    assert (status, checks["this device", "disk"]["status"]) == (2, "FAIL")
    assert "EDGEPRISM_CACHE" in checks["this device", "disk"]["advice"]


def test_an_unknown_device_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, nothing else, status 2."""
    assert main(["doctor", "--device", "tpu"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "edgeprism: --device must be cpu or cuda, not 'tpu'\n")


def test_a_device_that_is_not_there_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """torch's own reason in one line, and status 2."""
    assert main(["doctor", "--device", "cuda:99", "--json"]) == 2
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["cuda:99"]["status"] == "FAIL"
    assert checks["cuda:99"]["advice"] == "use --device cpu"


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    """An environment that has everything but torch: no traceback, status 2, and the other checks are made."""
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.fullmatch(r"torch|torch-.*|torchgen|functorch", entry.name):
            (tmp_path / entry.name).symlink_to(entry)
    path = [str(SOURCES), str(tmp_path)]
    program = f"import sys; sys.path[:0] = {path!r}; from edgeprism.cli.main import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert '  FAIL  torch        not installed; pip install "edgeprism[torch]"' in done.stdout
    assert "  ok    memory" in done.stdout
    assert done.stdout.endswith("failed: this device\n")


def test_help_needs_no_torch() -> None:
    """Neither importing the command nor its help loads anything heavy."""
    program = (
        "import sys\nfrom edgeprism.cli.main import main\nimport edgeprism.cli.doctor\n"
        "try:\n    main(['doctor', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(str({'torch', 'transformers', 'numpy'} & set(sys.modules) or 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == "0\n"
    assert "--cluster FILE" in done.stdout
