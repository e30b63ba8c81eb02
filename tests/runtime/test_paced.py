"""Paced links between processes of this machine: what `--link-rate` gives without root."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

import edgeprism
from edgeprism.cli.main import main
from edgeprism.errors import InputError
from edgeprism.runtime.link_probe import measure_link, ping_s
from tests.families import example, expected, make

pytestmark = pytest.mark.alone

ARCHITECTURE = "ViTForImageClassification"
FRAMES = 1514 / 1448  # of Ethernet, over what of a message they carry


def test_links_have_rate_and_delay(tmp_path: Path) -> None:
    """In both directions at once as alone, since a cable has two; and what runs over them is right."""
    make(ARCHITECTURE).save_pretrained(tmp_path)
    inputs = example(ARCHITECTURE)
    with edgeprism.Cluster.spawn(2, link_rate_mbit=40.0, link_delay_ms=5.0) as cluster:
        engine = edgeprism.load(str(tmp_path), cluster=cluster, plan="sequence")
        output = engine(**inputs)
        assert engine.last_trace is not None
        assert engine.last_trace.plan.strategy == "sequence"
        assert not engine.last_trace.failures
        torch.testing.assert_close(output.logits, expected(make(ARCHITECTURE), inputs)["logits"], atol=1e-4, rtol=1e-4)
        link = engine.on_device_thread(partial(measure_link, device=1))
    assert 0.010 <= link.round_trip_s < 0.030
    for rate in (link.to_bytes_per_s, link.from_bytes_per_s, link.both_bytes_per_s):
        assert 0.7 * 40e6 / 8 < rate * FRAMES < 1.15 * 40e6 / 8


def test_much_may_be_under_way(tmp_path: Path) -> None:
    """A long link is as fast as a short one: 0.6 MB are on it at once."""
    make(ARCHITECTURE).save_pretrained(tmp_path)
    with edgeprism.Cluster.spawn(2, link_rate_mbit=100.0, link_delay_ms=50.0) as cluster:
        engine = edgeprism.load(str(tmp_path), cluster=cluster, plan="local")
        ping = partial(ping_s, device=1, num_bytes=4 * 2**20, timeout_s=20.0)
        seconds = min(engine.on_device_thread(ping) for _ in range(3))
    assert 0.4 < seconds < 0.65  # 0.35 s of the rate, 0.1 s of the delay


def children() -> set[str]:
    """Processes that this one has started and not yet seen the end of."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def test_nothing_is_left_behind() -> None:
    """Neither workers nor the process that paces."""
    before = children()
    with edgeprism.Cluster.spawn(2, link_rate_mbit=100.0):
        assert len(children() - before) == 2
    assert children() == before


@pytest.mark.parametrize(
    ("rate", "delay", "says"), [(0.0, 0.0, "0.1 to 1000"), (10.0, -1.0, "0 to 1000 ms"), (None, 2.0, "--link-rate")]
)
def test_values_that_cannot_be(rate: float | None, delay: float, says: str) -> None:
    """Are refused before anything is started."""
    with pytest.raises(InputError, match=says):
        edgeprism.Cluster.spawn(2, link_rate_mbit=rate, link_delay_ms=delay)


def test_gloo_is_not_paced() -> None:
    """And says so."""
    with pytest.raises(InputError, match="gloo cannot be paced"):
        edgeprism.Cluster.spawn(2, transport="gloo", link_rate_mbit=10.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--link-rate", "10"], "--local-workers"),
        (["--local-workers", "2", "--link-delay", "3"], "needs --link-rate"),
        (["--local-workers", "2", "--link-rate", "5000"], "0.1 to 1000"),
        (["--local-workers", "2", "--link-rate", "10", "--transport", "gloo"], "paces zmq"),
    ],
)
def test_options(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit status 2."""
    assert main(["run", "anything", "x.jpg", *options]) == 2
    assert says in capsys.readouterr().err
