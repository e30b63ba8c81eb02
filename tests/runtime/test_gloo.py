"""Clusters over gloo, of child processes and of workers started by themselves: the first law, and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeprism
from edgeprism.cli.main import main
from edgeprism.errors import PeerError
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from edgeprism.wire.gloo import GlooMode, GlooTransport
from tests.families import difference, example, expected, make, padded

TOLERANCE = 1e-4
VIT, GPT2 = "ViTForImageClassification", "GPT2LMHeadModel"


@pytest.fixture(scope="module", params=["gloo", "gloo:all_gather,blocking"])
def cluster(request: pytest.FixtureRequest) -> Iterator[edgeprism.Cluster]:
    """This process and a child, on as many cores as there are."""
    with edgeprism.Cluster.spawn(2, share_cores=True, transport=request.param) as cluster:
        assert isinstance(cluster.transport, GlooTransport)
        assert cluster.transport.how == GlooMode.parse(request.param)
        yield cluster


def run(engine: edgeprism.Engine, plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
    """One request, in which both devices take part."""
    engine.use(plan)
    output = engine(**inputs)
    trace = engine.last_trace
    assert trace is not None and trace.failures == () and [device.device for device in trace.devices] == [0, 1]
    return dict(output)


@pytest.mark.parametrize("architecture", [VIT, GPT2])
def test_the_first_law_over_gloo(cluster: edgeprism.Cluster, architecture: str, tmp_path: Path) -> None:
    """Two processes give what one device gives: rows, keys and values, an uneven split, and whole samples."""
    reference = make(architecture)
    reference.save_pretrained(tmp_path)
    batches = [example(architecture)] + ([padded(architecture, "left")] if architecture == GPT2 else [])
    with edgeprism.load(str(tmp_path), cluster=cluster) as engine:
        assert engine.devices == (0, 1)
        plans = [
            Plan(strategy="sequence", shares=(0.5, 0.5), codec=CodecSpec.parse("exact")),
            Plan(strategy="sequence", shares=(0.2, 0.8), codec=CodecSpec.parse("kv:exact")),
            Plan.even("replica", 2),
        ]
        for plan in plans:
            for inputs in batches:
                assert difference(run(engine, plan, inputs), expected(reference, inputs), inputs) <= TOLERANCE, plan
        if architecture == GPT2:
            engine.use("sequence", "exact")
            ours = engine.generate(**batches[0], max_new_tokens=8)
            theirs = reference.generate(**batches[0], max_new_tokens=8, do_sample=False)  # type: ignore[operator]
            assert engine.last_trace is not None and engine.last_trace.plan.num_devices == 2
            assert torch.equal(ours, theirs)


@pytest.mark.alone
@pytest.mark.parametrize("transport", ["gloo:blocking", "gloo:all_gather"])
def test_a_killed_worker_is_named_and_the_answer_is_right(transport: str, tmp_path: Path) -> None:
    """The coordinator finishes the request alone, and soon."""
    reference, inputs = make(VIT), example(VIT)
    reference.save_pretrained(tmp_path)
    with (
        edgeprism.Cluster.spawn(2, share_cores=True, transport=transport) as cluster,
        edgeprism.load(str(tmp_path), cluster=cluster) as engine,
    ):
        plan = Plan.even("sequence", 2)
        run(engine, plan, inputs)
        os.kill(cluster.pids[0], signal.SIGKILL)
        began = time.monotonic()
        for _ in range(3):
            engine.use(plan)
            assert difference(dict(engine(**inputs)), expected(reference, inputs), inputs) <= TOLERANCE
        assert time.monotonic() - began < 10
        trace = engine.last_trace
        assert trace is not None and trace.plan.strategy == "local"
        assert "device 1: its connection ended" in " ".join(trace.left_out)


@contextmanager
def worker(store: str, root: Path) -> Iterator[subprocess.Popen[str]]:
    """`edgeprism worker --transport gloo` as device 1 of 2."""
    words = ["worker", "--transport", "gloo", "--store", store, "--rank", "1", "--devices", "2", "--threads", "1"]
    environment = dict(os.environ, EDGEPRISM_CACHE=str(root / "cache"))
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-m", "edgeprism", *words], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stderr is not None
            assert f"is device 1 of 2; store {store}" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def used(engine: edgeprism.Engine, devices: tuple[int, ...], within_s: float = 30.0) -> bool:
    """Whether the engine comes to use exactly these."""
    deadline = time.monotonic() + within_s
    while engine.devices != devices and time.monotonic() < deadline:
        time.sleep(0.1)
    return engine.devices == devices


def test_workers_started_by_themselves_are_sent_the_weights_and_come_back(tmp_path: Path) -> None:
    """A worker without the model gets it over gloo; one that is restarted is used again; SIGTERM ends it well."""
    reference, inputs = make(VIT), example(VIT)
    reference.save_pretrained(tmp_path / "model")
    plan = Plan.even("sequence", 2)
    with GlooTransport(0, 1, "127.0.0.1:0") as probe:
        store = probe.store
    with (
        worker(store, tmp_path) as first,
        edgeprism.Cluster.gloo(store, 2, transport="gloo:blocking", require_all=True) as cluster,
        edgeprism.load(str(tmp_path / "model"), cluster=cluster) as engine,
    ):
        assert difference(run(engine, plan, inputs), expected(reference, inputs), inputs) <= TOLERANCE
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
        assert used(engine, (0,))
        with worker(store, tmp_path):
            assert used(engine, (0, 1))
            assert difference(run(engine, plan, inputs), expected(reference, inputs), inputs) <= TOLERANCE


def test_an_absent_worker_is_an_error_only_where_all_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to start."""
    monkeypatch.setattr("edgeprism.runtime.gloo.CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(
        PeerError, match=r"device 1 .*edgeprism worker --transport gloo --store 127\.0\.0\.1:"
    ) as caught:
        edgeprism.Cluster.gloo("127.0.0.1:0", 2, require_all=True)
    assert caught.value.peers == (1,)
    with edgeprism.Cluster.gloo("127.0.0.1:0", 2) as cluster:
        assert cluster.num_devices == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("worker", "a worker needs --listen HOST:PORT"),
        ("worker --listen 127.0.0.1:5555 --store 127.0.0.1:5556", "--store cannot be used with --transport zmq"),
        ("worker --transport gloo --rank 1 --devices 2", "needs --store HOST:PORT"),
        ("worker --transport gloo --store 127.0.0.1:5556 --rank 2 --devices 2", "--rank 2: a worker of 2 devices is"),
        ("worker --transport gloo --store 127.0.0.1:5556 --rank 1 --devices 99", "99"),
        ("worker --transport gloo --listen 127.0.0.1:5555", "--listen cannot be used with --transport gloo"),
        ("run MODEL a.png --local-workers 2 --transport glue", "transport 'glue' must be zmq, gloo"),
        ("run MODEL a.png --transport gloo", "--transport is for --local-workers"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2."""
    assert main(words.split()) == 2
    errors = capsys.readouterr().err
    assert said in errors and errors.count("\n") == 1


def test_off_loopback_a_worker_asks_for_insecure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is dialled."""
    monkeypatch.delenv("EDGEPRISM_LAB", raising=False)
    words = "worker --transport gloo --store 192.0.2.77:29500 --rank 1 --devices 2"
    assert main(words.split()) == 2
    errors = capsys.readouterr().err
    assert "--insecure" in errors or "there is no route to 192.0.2.77" in errors
