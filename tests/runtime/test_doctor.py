"""What the doctor makes of a network: which links are warned about, and how far one gets towards an address."""

from __future__ import annotations

import socket

import pytest

from edgeprism.runtime.check import Check
from edgeprism.runtime.doctor_link import FAR_CLOCK_S, LARGE_JITTER_S, SLOW_BYTES_PER_S, SLOW_TRIP_S, link_checks
from edgeprism.runtime.probe import LinkReport
from edgeprism.runtime.reach import reach_all

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, ""),
        ({"round_trip_s": 2 * SLOW_TRIP_S}, "round trip"),
        ({"jitter_s": 2 * LARGE_JITTER_S}, "round trip"),
        ({"to_bytes_per_s": SLOW_BYTES_PER_S / 2}, "rate"),
        ({"from_bytes_per_s": SLOW_BYTES_PER_S / 2}, "rate"),
        ({"clock_ahead_s": 2 * FAR_CLOCK_S}, "wall clock"),
        ({"clock_ahead_s": -2 * FAR_CLOCK_S}, "wall clock"),
    ],
)
def test_what_is_a_warning_about_a_link(changed: dict[str, float], name: str) -> None:
    """Each number has its bound, and a link beyond one still works."""
    good = {"round_trip_s": 0.001, "jitter_s": 0.001, "to_bytes_per_s": 5e7, "from_bytes_per_s": 5e7}
    link = LinkReport(num_round_trips=50, **{**good, "clock_ahead_s": 0.0, **changed})
    checks: list[Check] = list(link_checks("pi1", link))
    assert [check.name for check in checks if check.status == "warn"] == ([name] if name else [])
    assert all(check.is_of_peer and check.status != "FAIL" for check in checks)


def test_how_far_one_gets() -> None:
    """A port that listens, one that does not, one that does not answer, and a name that cannot be one; all at once."""
    with socket.create_server(("127.0.0.1", 0)) as open_port, socket.socket() as full, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and never listens
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        queued = [socket.socket() for _ in range(3)]  # more than wait for being accepted: the kernel answers no other
        for one in queued:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        places = [("localhost", one.getsockname()[1]) for one in (open_port, closed, full)]
        found = reach_all([*places, ("x" * 64, 1)], timeout_s=0.5)
        for one in queued:
            one.close()
    assert [reach.trouble for reach in found] == ["", "refused", "silent", "name"]
    assert [reach.ip for reach in found] == ["127.0.0.1"] * 3 + [""]
    assert found[0].is_loopback and found[0].is_here and not found[0].is_unspecified
