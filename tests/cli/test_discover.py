"""`edgeprism worker --announce` and `edgeprism discover`: real processes, real mDNS on loopback or in namespaces."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import (
    DNSAddress,
    DNSOutgoing,
    DNSPointer,
    DNSService,
    DNSText,
    IPVersion,
    ServiceBrowser,
    ServiceStateChange,
    Zeroconf,
)

from edgeprism.cli.discover import to_toml
from edgeprism.cli.main import main
from edgeprism.errors import InputError
from edgeprism.runtime.announce import LOOPBACK
from edgeprism.runtime.cluster_file import ClusterFile
from edgeprism.runtime.discovery import MAX_FOUND, SERVICE, Announcement, find
from edgeprism.wire.key_file import read_key_file
from edgeprism.wire.keys import OPEN_KEYS, KeyPair

pytestmark = pytest.mark.alone

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
_IN, _UNIQUE, _A, _PTR, _TXT, _SRV = 1, 0x8001, 1, 12, 16, 33


def ours(found: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    """Others may be announcing on this machine as well."""
    return [device for device in found if device["name"] == name]


def test_a_worker_is_found_and_withdraws_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `discover` prints is a cluster file; its key is the board's. SIGTERM takes the announcement back at once."""
    monkeypatch.chdir(tmp_path)
    name = f"pi.lab-{secrets.token_hex(4)}"
    assert main(["keys", "new", name]) == main(["keys", "new", "laptop"]) == 0
    public, coordinator = (read_key_file(tmp_path / f"{one}.secret").public for one in (name, "laptop"))
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "edgeprism", "worker", "--listen", f"{LOOPBACK}:{port}", "--key", f"{name}.secret"]
    worker = subprocess.Popen([*words, "--coordinator", coordinator, "--announce"], stderr=subprocess.PIPE, text=True)
    try:
        assert worker.stderr is not None
        assert "listens on" in worker.stderr.readline()
        assert f"announces itself as {name}, {LOOPBACK}:{port}, with public key {public}" in worker.stderr.readline()
        before = sorted(tmp_path.iterdir())
        search = [sys.executable, "-m", "edgeprism", "discover", "--interface", LOOPBACK, "--seconds", "2"]
        done = subprocess.run(search, capture_output=True, text=True, check=True)
        assert sorted(tmp_path.iterdir()) == before
        assert "compare each public_key" in done.stdout.splitlines()[1]
        table = {"name": name, "address": f"{LOOPBACK}:{port}", "public_key": public}
        assert ours(tomllib.loads(done.stdout)["device"], name) == [table]
        (tmp_path / "cluster.toml").write_text(to_toml((Announcement(**fields_of(table)),)))
        assert ClusterFile.read(tmp_path / "cluster.toml").members[1].public_key == public
        done = subprocess.run([*search, "--json"], capture_output=True, text=True, check=True)
        (device,) = ours(json.loads(done.stdout)["devices"], name)
        assert {field: device[field] for field in table} == table
        with removed(name) as gone:
            worker.send_signal(signal.SIGTERM)
            assert gone.wait(10)
        assert worker.wait(10) == 0
    finally:
        worker.kill()
        worker.communicate()


def fields_of(table: dict[str, str]) -> dict[str, object]:
    """The announcement that a table was made from."""
    host, _, port = table["address"].rpartition(":")
    return {"name": table["name"], "addresses": (host,), "port": int(port), "public_key": table["public_key"]}


@contextmanager
def removed(whose: str) -> Iterator[threading.Event]:
    """Set when the announcement of that name is withdrawn; the block begins when it was heard of."""
    heard, gone = threading.Event(), threading.Event()

    def on_change(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if name == f"{whose}.{SERVICE}":
            (gone if state_change is ServiceStateChange.Removed else heard).set()

    with Zeroconf(interfaces=[LOOPBACK], ip_version=IPVersion.V4Only) as mdns:
        browser = ServiceBrowser(mdns, SERVICE, handlers=[on_change])
        assert heard.wait(10)
        yield gone
        browser.cancel()


@contextmanager
def said(messages: list[DNSOutgoing]) -> Iterator[None]:
    """Anybody's packets to everybody on loopback, again and again."""
    ends = threading.Event()
    packets = [packet for message in messages for packet in message.packets()]

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
            while not ends.wait(0.2):
                for packet in packets:
                    sender.sendto(packet, ("224.0.0.251", 5353))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def message(
    instance: str, port: int = 5555, key: bytes = KEY.encode(), protocol: bytes = b"1", address: str = "192.0.2.7"
) -> DNSOutgoing:
    """An announcement as raw records; nothing checks them."""
    name, server = f"{instance}.{SERVICE}", f"{secrets.token_hex(8)}.local."
    text = b"".join(bytes([len(one)]) + one for one in (b"protocol=" + protocol, b"public_key=" + key))
    out = DNSOutgoing(0x8400)
    for record in (
        DNSPointer(SERVICE, _PTR, _IN, 120, name),
        DNSService(name, _SRV, _UNIQUE, 120, 0, 0, port, server),
        DNSText(name, _TXT, _UNIQUE, 120, text),
        DNSAddress(server, _A, _UNIQUE, 120, socket.inet_aton(address)),
    ):
        out.add_answer_at_time(record, 0)
    return out


def test_lies_are_thrown_away(capsys: pytest.CaptureFixture[str]) -> None:
    """No name, key, port or address breaks out of the TOML text; the good one among the bad is listed."""
    tag = secrets.token_hex(4)
    public = KeyPair.generate().public
    bad = [
        message(f'{tag}"\naddress = "198.51.100.1:1'),
        message(f"{tag} \x1b[2J"),
        message(f"{tag}\u202e\u00e9"),
        message(f"-{tag}"),
        message(f"{tag}1", port=0),
        message(f"{tag}2", key=b'"\n[coordinator]\n' + KEY.encode()[:25]),
        message(f"{tag}3", key=b"#" * 40),  # digits of Z85, but five of them are more than 32 bits
        message(f"{tag}4", key=b"\xff" * 40),
        message(f"{tag}5", key=b""),
        message(f"{tag}6", key=OPEN_KEYS.public.encode()),  # everybody has its secret
        message(f"{tag}7", protocol=b"1\n[x]"),
        message(f"{tag}8", protocol=b"999"),
        message(f"{tag}9", address="224.0.0.1"),
        message(f"{tag}a", address="0.0.0.0"),
    ]
    with said([*bad, message(f"{tag}-good", key=public.encode(), protocol=b"7")]):
        assert main(["discover", "--interface", LOOPBACK, "--seconds", "2"]) == 0
    printed = capsys.readouterr()
    document = tomllib.loads(printed.out)
    assert set(document) == {"device"}
    assert [device for device in document["device"] if tag in device["name"]] == [
        {"name": f"{tag}-good", "address": "192.0.2.7:5555", "public_key": public}
    ]
    assert "198.51.100.1" not in printed.out
    assert "speaks protocol 7" in printed.out
    assert int(printed.err.split()[0]) >= len(bad)


def test_a_flood_is_cut() -> None:
    """Of hundreds of announcements, all well-formed, a bounded number is taken, and the rest counted."""
    tag = secrets.token_hex(4)
    with said([message(f"{tag}-{index}") for index in range(200)]):
        found = find(1.5, LOOPBACK)
    assert len(found.devices) == MAX_FOUND
    assert found.num_refused >= 200 - MAX_FOUND


@given(st.sampled_from(("name", "public_key", "address")), st.integers(0, 40), st.text(max_size=8))
def test_what_is_accepted_reads_back_as_it_was(field: str, position: int, inserted: str) -> None:
    """Whatever is put into a field is refused, or is that field's value in the TOML text, and nothing else's."""
    texts = {"name": "pi1", "public_key": KEY, "address": "192.0.2.7"}
    texts[field] = texts[field][:position] + inserted + texts[field][position + len(inserted) :]
    try:
        device = Announcement(
            name=texts["name"], addresses=(texts["address"],), port=5555, public_key=texts["public_key"]
        )
    except InputError:
        return
    table = {**texts, "address": f"{texts['address']}:5555"}
    assert tomllib.loads(to_toml((device,))) == {"device": [table]}


def test_a_device_without_a_key_is_listed_without_one() -> None:
    """On loopback, that is; the pair of those without keys is no key of anybody's."""
    device = Announcement(name="a", addresses=(LOOPBACK,), port=5555, public_key=OPEN_KEYS.public)
    assert tomllib.loads(to_toml((device,)))["device"] == [{"name": "a", "address": f"{LOOPBACK}:5555"}]
    with pytest.raises(InputError, match="loopback only"):
        Announcement(name="a", addresses=("192.0.2.7",), port=5555, public_key=OPEN_KEYS.public)


def test_one_key_under_two_names_is_pointed_out() -> None:
    """One of the two lies, or both do."""
    one, two = (Announcement(name=name, addresses=("192.0.2.7",), port=5555, public_key=KEY) for name in "ab")
    assert to_toml((one, two)).count("several announce this key") == 2
    assert "several" not in to_toml((one,))


BOARD = """
import json, subprocess, sys
from edgeprism.runtime import announce, discovery
announce._RECHECK_S = 0.2
def ip(words):
    subprocess.run(["ip", *words.split()], check=True)
def others_find(seconds):
    print(seconds, file=other.stdin, flush=True)
    return json.loads(other.stdout.readline())
other = subprocess.Popen(
    ["unshare", "--net", sys.executable, "-c", sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
assert other.stdout.readline() == "ready\\n"
ip("link set lo up")
ip(f"link add here type veth peer name there netns {other.pid}")
ip("link set here up")
with announce.announced("pi1", "tcp://0.0.0.0:5555", sys.argv[1]):
    found = others_find(0.5)
    assert found == [], "it has no address yet"
    ip("addr add 192.0.2.7/24 dev here")
    ip("addr add 192.0.2.130/25 dev here")
    found = others_find(5)
assert found == [["pi1", ["192.0.2.7", "192.0.2.130"], 5555, sys.argv[1]]], found
with announce.announced("pi1", "tcp://127.0.0.1:5555", sys.argv[1]):
    found = others_find(3)
    (one,) = discovery.find(2, "127.0.0.1").devices
assert found == [] and one.addresses == ("127.0.0.1",), (found, one)
other.stdin.close()
assert other.wait(10) == 0
"""
OTHER = """
import json, subprocess, sys
from edgeprism.runtime.discovery import find


print("ready", flush=True)
for is_first, line in zip([True, False, False], sys.stdin):
    if is_first:
        subprocess.run(["ip", "link", "set", "there", "up"], check=True)
        subprocess.run(["ip", "addr", "add", "192.0.2.8/25", "dev", "there"], check=True)
    found = find(float(line)).devices
    print(json.dumps([[one.name, one.addresses, one.port, one.public_key] for one in found]), flush=True)
"""


def test_all_interfaces_and_loopback_alone() -> None:
    """Bound to 0.0.0.0 it announces the addresses of its interfaces, one that comes later too, and the other device
    takes its neighbour's address first; bound to loopback the other device does not hear it. Two network namespaces,
    so that nothing is sent to this machine's network."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("needs unshare and ip")
    if subprocess.run([*unshare, "ip", "link", "add", "type", "veth"], capture_output=True).returncode != 0:
        pytest.skip("this machine gives no network namespace")
    words = [*unshare, sys.executable, "-W", "error", "-c", BOARD, KEY, OTHER]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", [("discover", "--seconds", "1"), ("worker", "--listen", "127.0.0.1:5555", "--announce", "pi1")]
)
def test_without_zeroconf_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """Its absence is one line and status 2."""
    monkeypatch.setitem(sys.modules, "zeroconf", None)  # as Python itself marks a module that cannot be imported
    assert main(list(words)) == 2
    assert capsys.readouterr().err == (
        "edgeprism: discovery needs the library zeroconf; run: pip install 'edgeprism[discover]'\n"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("discover", "--seconds", "0"), "above 0"),
        (("discover", "--seconds", "nan"), "above 0"),
        (("discover", "--seconds", "61"), "at most 60"),
        (("discover", "--interface", "203.0.113.7"), "no interface"),
        (("discover", "--interface", "eth0\n"), "no interface"),
        (("worker", "--listen", "127.0.0.1:5555", "--announce", 'a"b'), "letters, digits"),
        (("worker", "--listen", "127.0.0.1:5555", "--announce", "a" * 64), "at most 63"),
        (("worker", "--listen", "127.0.0.1:5555", "--announce", "a..b"), "letters, digits"),
        (("worker", "--listen", "127.0.0.1:5555", "--announce", "--key", "a b.secret"), "letters, digits"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str) -> None:
    """Status 2, and a line that says what is wrong."""
    assert main(list(words)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("edgeprism: ") and errors.count("\n") == 1
    assert says in errors


def test_the_search_is_no_slower_than_asked() -> None:
    """Names without records, which somebody only claims to exist, do not hold it up."""
    out = DNSOutgoing(0x8400)
    for index in range(20):
        out.add_answer_at_time(DNSPointer(SERVICE, _PTR, _IN, 120, f"claim-{index}.{SERVICE}"), 0)
    with said([out]):
        start_s = time.monotonic()
        found = find(1.0, LOOPBACK)
        took_s = time.monotonic() - start_s
    assert not [device for device in found.devices if device.name.startswith("claim")]
    assert found.num_refused >= 20
    assert took_s < 5
