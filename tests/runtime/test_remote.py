"""Clusters of workers that were started by themselves: keys, introductions, weights, restarts. Real processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

import edgeprism
from edgeprism.cli.main import main
from edgeprism.errors import InputError, PeerError
from edgeprism.models.manifest import fingerprint
from edgeprism.runtime import remote
from edgeprism.runtime.cluster_file import ClusterFile
from edgeprism.runtime.remote import find_model
from edgeprism.specs.plan import Plan
from edgeprism.wire.key_file import read_key_file
from edgeprism.wire.keys import OPEN_KEYS, KeyPair
from tests.families import difference, example, expected, make

ARCHITECTURE = "BertForSequenceClassification"
KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


class Bench:
    """Keys, a cluster file, models and worker processes in one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ports = free_ports(2)
        self.model = make(ARCHITECTURE)
        self.model.save_pretrained(root / "here" / "bert")
        shutil.copytree(root / "here" / "bert", root / "there" / "another-name" / "bert")
        self.workers: dict[int, subprocess.Popen[str]] = {}
        monkey = Path.cwd()
        os.chdir(root)
        try:
            for name in ("laptop", "pi1", "pi2", "stranger"):
                assert main(["keys", "new", name]) == 0
        finally:
            os.chdir(monkey)
        lines = ["[coordinator]", 'name = "laptop"', f'public_key = "{self.key("laptop").public}"']
        for name, port in zip(("pi1", "pi2"), self.ports, strict=True):
            lines += ["[[device]]", f'name = "{name}"', f'address = "localhost:{port}"']
            lines += [f'public_key = "{self.key(name).public}"']
        self.file = root / "cluster.toml"
        self.file.write_text("\n".join(lines) + "\n")

    def key(self, name: str) -> KeyPair:
        """The keys of a device."""
        return read_key_file(self.root / f"{name}.secret")

    def start(
        self,
        rank: int,
        coordinator: str = "laptop",
        roots: str = "there/another-name",
        program: Sequence[str] = ("-m", "edgeprism"),
    ) -> None:
        """A worker process; it is stopped at the end of the test."""
        command = [sys.executable, *program, "worker", "--listen", f"127.0.0.1:{self.ports[rank - 1]}"]
        command += ["--key", f"pi{rank}.secret", "--coordinator", self.key(coordinator).public, "--models", roots]
        command += ["--threads", "1", "--verbose"]
        environment = dict(os.environ, EDGEPRISM_CACHE=str(self.root / f"cache{rank}"))
        self.workers[rank] = subprocess.Popen(
            command, cwd=self.root, stderr=subprocess.PIPE, text=True, env=environment
        )
        errors = self.workers[rank].stderr
        assert errors is not None
        assert "listens on" in errors.readline()

    def stop(self, rank: int, how: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit status of a worker, and what it has said since it listened."""
        worker = self.workers.pop(rank)
        worker.send_signal(how)
        said = worker.communicate(timeout=20)[1]
        return worker.returncode, said

    def close(self) -> None:
        """Ends what runs."""
        for worker in self.workers.values():
            worker.kill()
            worker.communicate()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Two workers' worth of files; the workers are started by the tests."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    """Waits for it; fails when time is out."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_cluster_of_workers_through_restarts_and_coordinators(bench: Bench) -> None:
    """Answers are right with all devices, without one that was killed, and with it again once it was restarted; a
    second coordinator takes over the same workers; SIGTERM ends them with status 0."""
    bench.start(1)
    bench.start(2)
    inputs = example(ARCHITECTURE)
    wanted = expected(bench.model, inputs)
    for plan in ("sequence", "replica"):  # one coordinator after the other
        with (
            edgeprism.Cluster.from_file(bench.file, require_all=True) as cluster,
            edgeprism.load(str(bench.root / "here" / "bert"), cluster=cluster, plan=Plan.even(plan, 3)) as engine,
        ):
            assert difference(engine(**inputs), wanted, inputs) <= 1e-4
            assert engine.last_trace is not None
            assert [device.device for device in engine.last_trace.devices] == [0, 1, 2]
            if plan == "replica":
                continue
            bench.stop(2, signal.SIGKILL)
            assert difference(engine(**inputs), wanted, inputs) <= 1e-4
            assert difference(engine(**inputs), wanted, inputs) <= 1e-4
            assert [device.device for device in engine.last_trace.devices] == [0, 1]
            assert "device 2" in engine.last_trace.left_out[0]
            bench.start(2)
            until(lambda: engine.devices == (0, 1, 2))
            assert difference(engine(**inputs), wanted, inputs) <= 1e-4
            assert [device.device for device in engine.last_trace.devices] == [0, 1, 2]
    for rank in (1, 2):
        status, said = bench.stop(rank)
        assert status == 0
        assert "Traceback" not in said
        assert "device 0 is gone" in said


def test_a_run_with_another_file_shuts_nobody_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers go on; the coordinator's file changes, and changes back: with the right file all are used each time,
    though one worker was told of a change that the other never heard of."""
    monkeypatch.setattr(remote, "CONNECT_TIMEOUT_S", 1.0)
    bench.start(1)
    bench.start(2)
    right = bench.file.read_text()
    head, first, second = right.split("[[device]]")
    changes = {
        "without pi1": ("[[device]]".join((head, second)), 2),
        "without pi2": ("[[device]]".join((head, first)), 2),
        "another key for pi1": (right.replace(bench.key("pi1").public, bench.key("stranger").public), 2),
        "another address of pi1": (right.replace(str(bench.ports[0]), str(free_ports(1)[0])), 2),
        "pi2 first": ("[[device]]".join((head, second, first)), 3),
    }
    inputs = example(ARCHITECTURE)
    wanted = expected(bench.model, inputs)
    for change, (text, num_used) in {"none": (right, 3), **changes}.items():
        for now, count in {text: num_used, right: 3}.items():
            bench.file.write_text(now)
            with (
                edgeprism.Cluster.from_file(bench.file) as cluster,
                edgeprism.load(str(bench.root / "here" / "bert"), cluster=cluster, plan="sequence") as engine,
            ):
                until(lambda engine=engine, count=count: len(engine.devices) == count)  # at once on an idle machine
                assert difference(engine(**inputs), wanted, inputs) <= 1e-4
                assert engine.last_trace is not None
                assert len(engine.last_trace.devices) == count, (change, engine.last_trace.left_out)


def test_two_coordinators_at_once_never_mix(bench: Bench) -> None:
    """The second, with the same key and another model, goes on without the workers, which the first keeps; it gets them
    when the first has ended. All answers are each coordinator's own."""
    bench.start(1)
    bench.start(2)
    inputs, other = example(ARCHITECTURE), make(ARCHITECTURE, seed=7)
    other.save_pretrained(bench.root / "other")
    with (
        edgeprism.Cluster.from_file(bench.file) as second_cluster,
        edgeprism.Cluster.from_file(bench.file) as cluster,
        edgeprism.load(str(bench.root / "here" / "bert"), cluster=cluster, plan=Plan.even("replica", 3)) as engine,
    ):
        # which of the two has the workers is decided by who connected first: the one that has no engine yet
        assert difference(engine(**inputs), expected(bench.model, inputs), inputs) <= 1e-4
        assert engine.devices == (0,)
        assert engine.last_trace is not None
        assert all("serves another coordinator" in why for why in engine.last_trace.left_out)
        with edgeprism.load(str(bench.root / "other"), cluster=second_cluster, plan="sequence") as second:
            for _ in range(5):
                assert difference(second(**inputs), expected(other, inputs), inputs) <= 1e-4
                assert difference(engine(**inputs), expected(bench.model, inputs), inputs) <= 1e-4
                assert second.last_trace is not None
                assert [device.device for device in second.last_trace.devices] == [0, 1, 2]
        second_cluster.close()
        until(lambda: engine.devices == (0, 1, 2))
        assert difference(engine(**inputs), expected(bench.model, inputs), inputs) <= 1e-4
        assert [device.device for device in engine.last_trace.devices] == [0, 1, 2]


@pytest.mark.alone
def test_another_protocol_is_named_on_both_sides(bench: Bench) -> None:
    """Both numbers, and the command that mends it; the device is left out, and nothing waits for it."""
    bench.start(1)
    newer = "import edgeprism.wire.frame as frame; frame.PROTOCOL = 3; import edgeprism.__main__ as m; m.main()"
    bench.start(2, program=["-c", newer])
    inputs = example(ARCHITECTURE)
    with (
        edgeprism.Cluster.from_file(bench.file) as cluster,
        edgeprism.load(str(bench.root / "here" / "bert"), cluster=cluster, plan="sequence") as engine,
    ):
        began = time.monotonic()
        assert difference(engine(**inputs), expected(bench.model, inputs), inputs) <= 1e-4
        assert time.monotonic() - began < 3
        assert engine.last_trace is not None
        assert engine.last_trace.left_out == (
            "device 2: it speaks protocol 3, this device 2; run here: pip install --upgrade edgeprism",
        )
    said = bench.stop(2)[1]
    assert "it speaks protocol 2, this device 3; run there: pip install --upgrade edgeprism" in said


def test_a_device_that_computes_something_else_is_left_out(bench: Bench) -> None:
    """Its weights are damaged in memory, after they were checked: named with the difference, and the others go on. What
    each device runs is in the trace."""
    bench.start(1)
    damages = """
import torch, edgeprism.models.partial as partial
load = partial.load_pretrained
def damaged(*args, **kwargs):
    model = load(*args, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model
partial.load_pretrained = damaged
import edgeprism.__main__ as m
m.main()
"""
    bench.start(2, program=["-c", damages])
    inputs = example(ARCHITECTURE)
    with (
        edgeprism.Cluster.from_file(bench.file) as cluster,
        edgeprism.load(str(bench.root / "here" / "bert"), cluster=cluster, plan="sequence") as engine,
    ):
        assert difference(engine(**inputs), expected(bench.model, inputs), inputs) <= 1e-4
        assert engine.last_trace is not None
        assert [device.device for device in engine.last_trace.devices] == [0, 1]
        assert "device 2: its first block is off by" in engine.last_trace.left_out[0]
        assert "float32 allows 1e-04" in engine.last_trace.left_out[0]
        assert set(engine.last_trace.versions) == {0, 1}
        assert all(f"torch {torch.__version__}" in runs for runs in engine.last_trace.versions.values())


def resident_bytes(pid: int) -> int:
    """What a process holds in memory."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(fields["VmRSS"].split()[0])


@pytest.mark.alone
def test_a_worker_that_loses_its_coordinator_frees_everything(bench: Bench) -> None:
    """A coordinator that is killed leaves 113 MB of weights behind; within ten seconds the worker has given them back,
    and it serves the next one."""
    bench.start(1)
    coordinator = """
import sys, time, torch, transformers, edgeprism
config = transformers.ViTConfig(num_hidden_layers=4)
model = transformers.ViTForImageClassification(config).eval()
cluster = edgeprism.Cluster.from_file(sys.argv[1])
engine = edgeprism.load(model, cluster=cluster, plan="sequence")
engine(pixel_values=torch.zeros(1, 3, 224, 224))
print(len(engine.last_trace.devices), flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", coordinator, str(bench.file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"2\n"
    held_bytes = resident_bytes(bench.workers[1].pid)
    process.kill()
    process.communicate()
    until(lambda: resident_bytes(bench.workers[1].pid) < held_bytes - 113e6, 10)
    inputs = example(ARCHITECTURE)
    with (
        edgeprism.Cluster.from_file(bench.file) as cluster,
        edgeprism.load(bench.model, cluster=cluster, plan="sequence") as engine,
    ):
        assert difference(engine(**inputs), expected(bench.model, inputs), inputs) <= 1e-4
        assert engine.devices == (0, 1)


def test_foreign_devices_are_named_and_weights_are_sent(bench: Bench) -> None:
    """One serves another coordinator and is left out with its reason; one has other weights, and gets the right ones,
    which the next coordinator finds there."""
    other = make(ARCHITECTURE, seed=5)
    other.save_pretrained(bench.root / "wrong" / "bert")
    bench.start(1, coordinator="stranger")
    with pytest.raises(PeerError, match=r"pi1 \(device 1\), pi2 \(device 2\).*refuses this device's key"):
        edgeprism.Cluster.from_file(bench.file, require_all=True)
    bench.start(2, roots="wrong")
    inputs = example(ARCHITECTURE)
    with (
        edgeprism.Cluster.from_file(bench.file) as cluster,
        edgeprism.load(str(bench.root / "here" / "bert"), cluster=cluster, plan="sequence") as engine,
    ):
        assert difference(engine(**inputs), expected(bench.model, inputs), inputs) <= 1e-4
        assert engine.last_trace is not None
        assert [device.device for device in engine.last_trace.devices] == [0, 2]
        assert engine.last_trace.left_out == ("device 1: it refuses this device's key",)
    with (
        edgeprism.Cluster.from_file(bench.file) as cluster,
        edgeprism.load(bench.model, cluster=cluster, plan="sequence") as engine,  # a loaded model is saved for them
    ):
        assert difference(engine(**inputs), expected(bench.model, inputs), inputs) <= 1e-4
        assert engine.devices == (0, 2)
    said = bench.stop(2)[1]
    assert "another model than the coordinator's" in said
    assert said.count("asks for it") == said.count("has it now, and loads it") == 1
    assert "has 100 % of" in said
    assert [path.name for path in (bench.root / "cache2" / "weights").iterdir()] == [
        fingerprint(bench.root / "here" / "bert")
    ]
    assert "is not among this cluster's keys" in bench.stop(1)[1]


def test_without_keys_one_worker_on_loopback(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """The shortest way to try it: no keys, two processes, the command line on both sides."""
    (port,) = free_ports(1)
    bench.file.write_text(f'[[device]]\nname = "other"\naddress = "127.0.0.1:{port}"\n')
    words = [
        sys.executable,
        "-m",
        "edgeprism",
        "worker",
        "--listen",
        f"127.0.0.1:{port}",
        "--models",
        "there/another-name",
    ]
    worker = subprocess.Popen(words, cwd=bench.root, stderr=subprocess.PIPE, text=True)
    try:
        assert worker.stderr is not None
        assert worker.stderr.readline().endswith("serves the coordinator without keys\n")
        with (
            edgeprism.Cluster.from_file(bench.file, require_all=True) as cluster,
            edgeprism.load(str(bench.root / "here" / "bert"), cluster=cluster, plan="sequence") as engine,
        ):
            inputs = example(ARCHITECTURE)
            assert difference(engine(**inputs), expected(bench.model, inputs), inputs) <= 1e-4
            assert engine.devices == (0, 1)
        second = subprocess.run(words, cwd=bench.root, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use; does a worker run here" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        worker.kill()
        worker.communicate()


def test_a_fingerprint_is_of_the_model_not_of_its_files(tmp_path: Path) -> None:
    """The same in one file and in shards, under any name; another for other weights, or another configuration."""
    model = make(ARCHITECTURE)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "shards")
    make(ARCHITECTURE, seed=1).save_pretrained(tmp_path / "other")
    assert fingerprint(tmp_path / "other") != fingerprint(tmp_path / "one")
    (tmp_path / "one" / "config.json").write_text(
        (tmp_path / "one" / "config.json").read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2')
    )
    assert fingerprint(tmp_path / "shards") != fingerprint(tmp_path / "one")
    weights = tmp_path / "shards" / "model.safetensors"
    shutil.copy(tmp_path / "one" / "model.safetensors", weights)
    for broken in (b"", weights.read_bytes()[:-10], b"\xff" * 100):
        (tmp_path / "one" / "model.safetensors").write_bytes(broken)
        with pytest.raises(InputError, match="cannot be read"):
            fingerprint(tmp_path / "one")


@pytest.mark.parametrize("name", ["../secret", "/etc", "..", ".", "", "a/b/c", "there/../../secret", "secret\0"])
def test_a_name_leads_nowhere_outside_the_roots(tmp_path: Path, name: str) -> None:
    """Only the last part of a name counts, and only inside the roots."""
    (tmp_path / "models").mkdir()
    make(ARCHITECTURE).save_pretrained(tmp_path / "secret")
    for wanted in (fingerprint(tmp_path / "secret"), "0" * 64):
        assert find_model(name, wanted, [tmp_path / "models"]) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[device]", "not TOML"),
        ("", "lists no"),
        ('[[devices]]\nname = "a"', "devices, which means nothing here"),
        ('[[device]]\nname = "a"', "needs address"),
        ('[[device]]\nname = "a"\naddress = "10.0.0.1"', "must look like"),
        ('[[device]]\nname = "a"\naddress = "10.0.0.1:70000"', "must look like"),
        ('[[device]]\nname = "a"\naddress = "10.0.0.1:5555"', "without keys"),
        ('[[device]]\nname = "a"\naddress = "10.0.0.1:5555"\npublic_key = "short"', "is not one"),
        (f'[[device]]\nname = "a"\naddress = "10.0.0.1:5555"\npublic_key = "{OPEN_KEYS.public}"', "of its own"),
        ('[[device]]\nname = "a"\naddress = "10.0.0.1:5555"\npublic_key = "' + "#" * 40 + '"', "is not one"),
        (f'[[device]]\nname = 3\naddress = "10.0.0.1:5555"\npublic_key = "{KEY}"', "needs name, as text"),
        (f'[[device]]\nname = "a"\naddres = "10.0.0.1:5555"\npublic_key = "{KEY}"', "addres, which means nothing"),
        ('[[device]]\nname = "coordinator"\naddress = "127.0.0.1:5555"', "name 'coordinator' is there twice"),
        (
            '[[device]]\nname = "a"\naddress = "127.0.0.1:5555"\n[[device]]\nname = "b"\naddress = "127.0.0.1:5556"',
            "several devices have no public_key",
        ),
        ("\n".join(f'[[device]]\nname = "d{i}"\naddress = "127.0.0.1:{i + 1}"' for i in range(16)), "at most 16"),
    ],
)
def test_a_cluster_file_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    """One line that names the file, the place and what is wrong."""
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as refused:
        ClusterFile.read(path)
    assert str(path) in str(refused.value)


def test_duplicate_keys_and_addresses_are_refused(tmp_path: Path) -> None:
    """Two devices cannot share an address or a key."""
    one, two = KeyPair.generate().public, KeyPair.generate().public
    path = tmp_path / "cluster.toml"
    for keys, ports, says in (((one, one), (1, 2), "public_key"), ((one, two), (1, 1), "address")):
        tables = zip("ab", keys, ports, strict=True)
        path.write_text(
            "".join(f'[[device]]\nname = "{n}"\naddress = "h:{p}"\npublic_key = "{k}"\n' for n, k, p in tables)
        )
        with pytest.raises(InputError, match=f"{says} .* is there twice"):
            ClusterFile.read(path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("worker", "--listen", "nowhere"), "must look like"),
        (("worker", "--listen", "0.0.0.0:5555"), "loopback only"),
        (("worker", "--listen", "127.0.0.1:5555", "--key", "pi1.secret"), "belong together"),
        (("worker", "--listen", "127.0.0.1:5555", "--key", "none.secret", "--coordinator", KEY), "no key file"),
        (("worker", "--listen", "127.0.0.1:5555", "--key", "open.secret", "--coordinator", KEY), "chmod 600"),
        (("worker", "--listen", "127.0.0.1:5555", "--key", "bad.secret", "--coordinator", KEY), "needs exactly"),
        (("worker", "--listen", "127.0.0.1:5555", "--key", "pi1.secret", "--coordinator", "no key"), "40 characters"),
        (
            ("worker", "--listen", "127.0.0.1:5555", "--key", "pi1.secret", "--coordinator", "(its own)"),
            "pi1.secret, this",
        ),
        (("worker", "--listen", "0.0.0.0:5555", "--key", "pi1.secret", "--coordinator", OPEN_KEYS.public), "everybody"),
        (("worker", "--listen", "127.0.0.1:5555", "--models", "nowhere"), "is no directory"),
        (("worker", "--listen", "127.0.0.1:5555", "--threads", "0"), "at least 1"),
        (("worker", "--listen", "127.0.0.1:5555", "--cache-gb", "0"), "above 0"),
        (("worker", "--listen", "127.0.0.1:5555", "--cores", "zero"), "must be numbers"),
        (("worker", "--listen", "127.0.0.1:5555", "--cores", "4096"), "this process may use"),
        (("worker", "--listen", "127.0.0.1:5555", "--device", "gpu"), "cannot be used here"),
        (("worker", "--listen", "203.0.113.7:5555", "--key", "pi1.secret", "--coordinator", KEY), "0.0.0.0 for all"),
        (("keys", "new", "pi1"), "exists already"),
        (("keys", "new", "../pi1"), "letters, digits"),
        (("run", "here/bert", "text", "--plan", "sequence", "--cluster", "none.toml"), "no cluster file"),
        (
            ("run", "here/bert", "text", "--plan", "sequence", "--cluster", "cluster.toml", "--local-workers", "2"),
            "two ways",
        ),
        (
            ("run", "here/bert", "text", "--plan", "sequence", "--cluster", "cluster.toml", "--key", "pi1.secret"),
            "lists",
        ),
    ],
)
def test_bad_input_is_one_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """Status 2, and a last line that says what is wrong."""
    monkeypatch.chdir(bench.root)
    (bench.root / "open.secret").write_text((bench.root / "pi1.secret").read_text())
    (bench.root / "bad.secret").write_text('name = "bad"\n')
    (bench.root / "bad.secret").chmod(0o600)
    capsys.readouterr()
    own = bench.key("pi1").public
    assert main([own if word == "(its own)" else word for word in arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("edgeprism: ")
    assert says in last


def test_run_says_how_weights_travel_and_who_is_absent(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """What a person waits for is on standard error, each line once; nothing of it is when the device has them."""
    directory = bench.root / "vit"
    make("ViTForImageClassification").save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory)
    Image.new("RGB", (32, 32), "red").save(bench.root / "red.png")
    bench.start(1)
    arguments = ["run", str(directory), str(bench.root / "red.png"), "--plan", "sequence", "--cluster", str(bench.file)]
    capsys.readouterr()
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert sum("pi1 (device 1) has 0 %" in line for line in said) == 1
    assert (
        sum(line.startswith("edgeprism: pi2 (device 2): no connection with pi2 (device 2) (no co") for line in said)
        == 1
    )
    assert "left out: pi2 (device 2): no connection yet" in out
    assert main(arguments) == 0
    assert "%" not in capsys.readouterr().err
