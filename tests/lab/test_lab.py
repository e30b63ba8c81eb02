"""The lab itself: links, changes while it runs, workers, and that nothing is left. Needs root, skipped elsewhere."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from edgeprism.errors import InputError, LabError, NoLab
from edgeprism.lab.buckets import wire_bytes, wire_s
from edgeprism.lab.device import LabDevice
from edgeprism.lab.groups import hierarchy
from edgeprism.lab.lab import Lab, remove_leftovers
from edgeprism.lab.namespaces import RUN, is_running, owner_of, require_root
from edgeprism.lab.state import DIRECTORY, State, state_files
from edgeprism.wire.keys import KeyPair

pytestmark = pytest.mark.alone
SOURCE = Path(__file__).resolve().parents[2]
HOLD = """
import signal, sys, time
from edgeprism.lab.device import LabDevice
from edgeprism.lab.lab import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
with Lab([LabDevice(name=n, rate_mbit=100.0, speed=s, memory_mb=500) for n, s in (("a", 1.0), ("b", 0.5))]) as lab:
    print(lab.popen(1, ["sleep", "1000"], stdout=sys.stderr, start_new_session=True).pid, flush=True)
    try:
        time.sleep(1000)
    except KeyboardInterrupt:
        pass
"""


@pytest.fixture(autouse=True)
def _root() -> None:
    """Skips where there can be no lab."""
    try:
        require_root()
    except NoLab as exc:
        pytest.skip(str(exc))


def pair(rate_mbit: float | None = 100.0, **fields: float) -> list[LabDevice]:
    """Two devices."""
    return [LabDevice(name=name, rate_mbit=rate_mbit, **fields) for name in ("a", "b")]  # type: ignore[arg-type]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two devices at 100 Mbit/s."""
    with Lab(pair(), share_cores=True) as made:
        yield made


def ours(*owners: int) -> set[str]:
    """What labs of these processes, or of dead ones, have: namespaces, control groups, directories."""
    groups = [top for top in (hierarchy("cpu"), hierarchy("memory")) if top is not None]
    places = [RUN, DIRECTORY, *groups]
    found = {str(path) for place in places if place.exists() for path in place.glob("edgeprism-*")}
    return {path for path in found if (owner := owner_of(Path(path).name)) in owners or not is_running(owner or 0)}


def transfer_s(lab: Lab, num_bytes: int) -> float:
    """What so many bytes take from device 0 to device 1, from a connection's first byte to its last."""
    with lab.on(1), socket.create_server((lab.address(1), 5000)) as server:
        code = f"""
import socket, time
with socket.socket(fileno={{}}) as s:
    left = {num_bytes}
    while left:
        left -= len(s.recv(65536))
    print(time.monotonic())
"""
        with lab.on(0):
            client = socket.create_connection((lab.address(1), 5000))
        accepted, _ = server.accept()
    with client, accepted:
        reader = subprocess.Popen(
            [sys.executable, "-c", code.format(accepted.fileno())],
            pass_fds=[accepted.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(0.2)  # until it reads
        began_s = time.monotonic()
        client.sendall(bytes(num_bytes))
        return float(reader.communicate(timeout=60)[0]) - began_s


def test_a_link_has_its_rate_and_counts_headers(lab: Lab) -> None:
    """4 MB take what the bound says, at most 15 % more; the wire has carried the headers as well."""
    num_bytes, before = 4 * 10**6, lab.bytes_to(1)
    took_s, sent = transfer_s(lab, num_bytes), lab.bytes_to(1) - before
    assert 0.98 * wire_s(num_bytes, 100.0) <= took_s < 1.15 * wire_s(num_bytes, 100.0)
    assert wire_bytes(num_bytes) <= sent < 1.03 * wire_bytes(num_bytes)


def test_devices_have_parts_of_one_core() -> None:
    """Each has its own, and no more while the other one rests; small parts have periods that the kernel takes."""
    with Lab([LabDevice(name=name, rate_mbit=100.0, speed=0.05, core=0) for name in ("a", "b")]) as slow:
        assert slow.popen(1, [sys.executable, "-I", "-c", "pass"]).wait(timeout=30) == 0
    busy = "import time; b = time.perf_counter(); exec('while time.process_time() < 0.4: pass'); "
    busy += "print(time.process_time() / (time.perf_counter() - b))"
    parts = [LabDevice(name=name, rate_mbit=100.0, speed=0.4, core=0) for name in ("a", "b")]
    with Lab(parts) as made:
        for indices in ((0, 1), (1,)):
            running = [
                made.popen(index, [sys.executable, "-I", "-c", busy], stdout=subprocess.PIPE, text=True)
                for index in indices
            ]
            for process in running:
                assert 0.2 < float(process.communicate(timeout=30)[0]) < 0.48


def test_rates_and_delays_change_while_it_runs(lab: Lab) -> None:
    """A process on device 0 sets them by EDGEPRISM_LAB, and the next transfer takes as long as that means."""
    words = [
        "from edgeprism.lab.lab import Lab",
        "lab = Lab.attach()",
        "lab.set_rate(None, 20)",
        "lab.set_delay(0, 30)",
    ]
    process = lab.popen(0, [sys.executable, "-c", "\n".join(words)])
    assert process.wait(timeout=30) == 0
    assert [(device.rate_mbit, device.delay_ms) for device in lab.devices] == [(20, 30), (20, 0)]
    expected_s = wire_s(200_000, 20.0) + 0.03
    assert 0.95 * expected_s < transfer_s(lab, 200_000) < 1.5 * expected_s
    thread = lab.replay([(0.0, 50.0), (0.1, 200.0, 0.0)])
    thread.join(timeout=5)
    assert [(device.rate_mbit, device.delay_ms) for device in lab.devices] == [(200, 0), (200, 0)]
    with pytest.raises(InputError, match="no device 2"):
        lab.set_rate(2, 20.0)


def test_all_devices_share_a_medium() -> None:
    """Both directions at once take twice as long as one; one device has no rate of its own."""
    with Lab(pair(50.0), is_shared=True, share_cores=True) as shared:
        with pytest.raises(InputError, match="shared medium"):
            shared.set_rate(1, 20.0)
        ends = []
        for index in (0, 1):
            with shared.on(index):
                ends.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                ends[-1].bind((shared.address(index), 5001))
        began_s, count = time.monotonic(), 50  # that fit the receivers' buffers
        for _ in range(count):
            for index, end in enumerate(ends):
                end.sendto(bytes(1400), (shared.address(1 - index), 5001))
        for end in ends:
            end.settimeout(5)
            for _ in range(count):
                end.recv(2000)
            end.close()
        alone_s = count * (1400 + 42) * 8 / 50e6
        assert 1.85 * alone_s < time.monotonic() - began_s < 3 * alone_s


@pytest.mark.parametrize("delay_ms", [0.0, 5.0])
def test_a_link_goes_down_and_up(lab: Lab, delay_ms: float) -> None:
    """What is sent over a link that is down does not arrive; over the same link, up again, it does."""
    lab.set_delay(None, delay_ms)
    with lab.on(1):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((lab.address(1), 5002))
    with lab.on(0):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.settimeout(0.3)
    with receiver, sender:
        for up in (True, False, True):
            lab.set_link(1, up=up)
            assert lab.state.down == (() if up else (1,))
            if up:
                deadline, got = time.monotonic() + 10, b""
                while not got and time.monotonic() < deadline:  # the kernel notices a cable some moments later
                    sender.sendto(b"x", (lab.address(1), 5002))
                    try:
                        got = receiver.recv(10)
                    except TimeoutError:
                        continue
                assert got == b"x"
                try:
                    while receiver.recv(10):
                        pass
                except TimeoutError:
                    pass
            else:
                sender.sendto(b"y", (lab.address(1), 5002))
                with pytest.raises(TimeoutError):
                    receiver.recv(10)


def test_a_device_has_its_part_of_a_core_and_of_the_memory() -> None:
    """A quarter of the core while it computes, within a tenth on a machine that is busy; more than its memory kills."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    devices = [LabDevice(name="a", rate_mbit=None), LabDevice(name="b", rate_mbit=None, speed=0.25, memory_mb=100)]
    code = "import time; e = time.time() + 1\nwhile time.time() < e: pass\nprint(time.process_time())"
    with Lab(devices) as made:
        with made.popen(1, [sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert 0.2 < float(process.stdout.read()) < 0.29
        greedy = made.popen(1, [sys.executable, "-I", "-c", "x = b'x' * 200_000_000"])
        assert greedy.wait(timeout=20) == -signal.SIGKILL


def test_a_request_goes_through_the_lab(tmp_path: Path) -> None:
    """`edgeprism lab run` with 200 Mbit/s and 2 ms: one image through two devices by its cluster file."""
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    Image.new("RGB", (32, 32)).save(tmp_path / "cat.png")
    edgeprism = [sys.executable, "-m", "edgeprism"]
    request = [*edgeprism, "run", str(tmp_path / "vit"), str(tmp_path / "cat.png"), "--cluster", "{cluster}"]
    words = [*edgeprism, "lab", "run", "--rate", "200", "--delay", "2", "--share-cores", "--no-check", "--"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, *request, "--plan", "sequence", "--require-all"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "sequence exact" in done.stdout and "device1  200 Mbit/s, 2 ms" in done.stderr
    assert not ours()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(how: int) -> None:
    """After Ctrl-C and SIGTERM at once; after SIGKILL when the next lab is made. Labs that live stay."""
    with Lab(pair(), share_cores=True):
        others = ours(os.getpid())
        assert others
        environment = {**os.environ, "PYTHONPATH": str(SOURCE / "src")}
        holder = subprocess.Popen([sys.executable, "-c", HOLD], env=environment, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        held = int(holder.stdout.readline())
        assert ours(holder.pid)
        holder.send_signal(how)
        holder.communicate(timeout=20)
        if how == signal.SIGKILL:
            assert len(ours()) > 3
            remove_leftovers()
        assert not ours(holder.pid) and ours(os.getpid()) == others
        assert not is_running(held)


def test_up_and_down(tmp_path: Path) -> None:
    """The commands of a lab that stays up find it, change it, and take it down."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE / "src")}

    def run(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "edgeprism", "lab", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    if state_files():
        pytest.skip("another lab is up on this machine")
    assert run("status") == (1, "edgeprism: no lab is up; start one: edgeprism lab up\n")
    assert run("up", "--rate", "100", "--share-cores", "--no-check")[0] == 0
    try:
        assert run("up")[0] == 2
        assert run("set", "--rate", "20", "--device", "1") == (0, "")
        assert run("link", "--device", "1", "down") == (0, "")
        status, text = run("status")
        assert status == 0 and "device1  20 Mbit/s" in text and "link down" in text
        (tmp_path / "trace.csv").write_text("0,50\n0.1,60,1\n")
        assert run("replay", "trace.csv") == (0, "")
        assert "device0  60 Mbit/s, 1 ms" in run("status")[1]
    finally:
        assert run("down") == (0, "")
    assert not ours()


def test_the_check_finds_what_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that is not the one that the state names is found, and named in one line."""
    for name, value in {"SIZES_BYTES": (262144,), "BLOCKS_MS": (5.0,), "REPEATS": 1}.items():
        monkeypatch.setattr(f"edgeprism.lab.check.{name}", value)
    with Lab(pair(50.0), share_cores=True) as made:
        made._links._fill(made.state.changed(0, rate_mbit=40.0), 0)
        report = made.check()
        with pytest.raises(LabError, match="not what it should be"):
            report.require()
        assert any("a to b" in str(each) for each in report.off)


def test_an_attached_lab_that_is_gone_says_so(tmp_path: Path) -> None:
    """Its owner has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    State(owner=process.pid, devices=tuple(pair()), cores=(0, 1), is_shared=False).write(tmp_path / "state.json")
    with pytest.raises(LabError, match="is gone"):
        Lab.attach(tmp_path / "state.json")


def test_keys_and_cluster_file_fit(lab: Lab, tmp_path: Path) -> None:
    """The file lists the lab's addresses, and what the coordinator's secret belongs to."""
    from edgeprism.runtime.cluster_file import ClusterFile, own_keys

    path = lab.write_cluster(tmp_path)
    members = ClusterFile.read(path).members
    assert [(member.name, member.address) for member in members] == [("a", ""), ("b", "10.73.0.2:5555")]
    assert isinstance(own_keys(path, members[0], None), KeyPair)
