"""The emulated network: its links carry what they should and nothing is left of it. Needs root, skipped elsewhere."""

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

from benchmarks import network
from benchmarks.network import FRAME_BYTES, SEGMENT_BYTES, Network, NoNetwork, wire_s

REPOSITORY = Path(__file__).resolve().parents[2]
HOLD = """
import signal, subprocess, sys, time
from benchmarks.network import Network
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
with Network(["laptop", "pi1"]) as made:
    held = subprocess.Popen(made.command("pi1", ["sleep", "1000"]), stdout=subprocess.DEVNULL, start_new_session=True)
    print(held.pid, flush=True)
    try:
        time.sleep(1000)
    except KeyboardInterrupt:
        pass
"""


@pytest.fixture
def two_hosts() -> Iterator[Network]:
    """A laptop and a board at 100 Mbit/s."""
    try:
        with Network(["laptop", "pi1"], 100) as made:
            yield made
    except NoNetwork as exc:
        pytest.skip(str(exc))


def namespaces() -> str:
    """Those of this machine that are ours."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in listed.splitlines() if line.startswith(network.PREFIX))


def test_a_link_has_its_rate_and_counts_headers(two_hosts: Network) -> None:
    """4 MB take what the bound says, at most 15 % more; the wire has carried the headers as well."""
    with two_hosts.on("pi1"):
        server = socket.create_server(("0.0.0.0", 5000))
    with two_hosts.on("laptop"):
        client = socket.create_connection((two_hosts.address("pi1"), 5000))
    accepted, _ = server.accept()
    num_bytes, began = 4 * 10**6, time.monotonic()
    code = f"import socket, sys; s = socket.socket(fileno={accepted.fileno()})\nwhile s.recv(65536): pass"
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[accepted.fileno()]) as reader:
        accepted.close()
        before = two_hosts.bytes_to("pi1")
        client.sendall(bytes(num_bytes))
        client.close()
        assert reader.wait() == 0
    took_s, sent = time.monotonic() - began, two_hosts.bytes_to("pi1") - before
    server.close()
    assert wire_s(num_bytes, 100) <= took_s * 1.01
    assert took_s < 1.15 * wire_s(num_bytes, 100) + 0.2  # a process starts meanwhile
    assert num_bytes * FRAME_BYTES / SEGMENT_BYTES <= sent < 1.02 * num_bytes * FRAME_BYTES / SEGMENT_BYTES


def test_a_link_goes_down_and_up(two_hosts: Network) -> None:
    """What is sent over a link that is down does not arrive; over the same link, up again, it does."""
    with two_hosts.on("pi1"):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("0.0.0.0", 5000))
    receiver.settimeout(0.3)
    with two_hosts.on("laptop"):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    here = (two_hosts.address("pi1"), 5000)
    for up in (True, False, True):
        two_hosts.set_link("pi1", up=up)
        if up:
            while True:  # the bridge forwards some moments later
                sender.sendto(b"x", here)
                try:
                    assert receiver.recv(10) == b"x"
                    break
                except TimeoutError:
                    continue
        else:
            sender.sendto(b"y", here)
            with pytest.raises(TimeoutError):
                receiver.recv(10)
    sender.close()
    receiver.close()


@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(two_hosts: Network, how: int) -> None:
    """After Ctrl-C and SIGTERM at once; after SIGKILL when the next network is made. Networks that live stay."""
    others = namespaces()
    assert str(os.getpid()) in others
    holder = subprocess.Popen([sys.executable, "-c", HOLD], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    held = int(holder.stdout.readline())
    assert str(holder.pid) in namespaces()
    holder.send_signal(how)
    holder.communicate(timeout=10)
    if how == signal.SIGKILL:
        assert str(holder.pid) in namespaces()
        network.remove_leftovers()
    assert namespaces() == others
    deadline = time.monotonic() + 5
    while Path("/proc", str(held)).exists() and "Z" not in Path("/proc", str(held), "stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize(("words", "status"), [((), 2), (("--smoke",), 0)])
def test_without_root_a_script_says_so(words: tuple[str, ...], status: int) -> None:
    """One line; exit 2, or 0 for a smoke run."""
    code = "import os, runpy; os.geteuid = lambda: 1000; runpy.run_module('benchmarks.weights', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == status
    assert (done.stdout + done.stderr).strip().splitlines() == [
        "weights: " + "skipped: " * (status == 0) + "needs root and ip (network namespaces; iproute2)"
    ]
