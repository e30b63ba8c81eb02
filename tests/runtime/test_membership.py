"""Which devices are used together, and who is to blame when a request fails. Devices are threads of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import edgeprism
from edgeprism.errors import InputError
from edgeprism.models.gpt2 import BareGpt2
from edgeprism.models.vision import VisionModel
from edgeprism.runtime.job import JobRun, Results
from edgeprism.wire.frame import Limits
from edgeprism.wire.memory import MemoryTransport
from tests.families import difference, example, expected, make

pytestmark = pytest.mark.alone

ARCHITECTURE = "ViTForImageClassification"


@pytest.fixture
def cluster() -> Iterator[edgeprism.Cluster]:
    """Three devices."""
    with edgeprism.Cluster.in_process(3) as cluster:
        yield cluster


def mesh_of(cluster: edgeprism.Cluster) -> list[MemoryTransport]:
    """The transports of all devices."""
    assert isinstance(cluster.transport, MemoryTransport)
    return cluster.transport._mesh


def on_device(
    monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, actions: dict[int, Callable[[], object]]
) -> None:
    """Has some devices do something before they run ``owner.method``."""
    original = getattr(owner, method)

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        device = threading.current_thread().name.removeprefix("edgeprism-")
        if device.isdigit() and int(device) in actions:
            actions[int(device)]()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, patched)


def fail() -> None:
    """As a device without memory would."""
    raise MemoryError("no memory for rows")


def used(engine: edgeprism.Engine) -> list[int]:
    """The devices of the last request."""
    assert engine.last_trace is not None
    return [device.device for device in engine.last_trace.devices]


def test_devices_without_a_link_are_not_used_together() -> None:
    """Devices 1 and 2 cannot reach each other: one of them is left out, and used as soon as the link is there."""
    model = make(ARCHITECTURE)
    inputs = example(ARCHITECTURE)
    with edgeprism.Cluster.in_process(4) as cluster:
        one = mesh_of(cluster)[1]
        one.connected = lambda: {0, 3}  # type: ignore[method-assign]
        engine = edgeprism.load(model, cluster=cluster, plan="sequence")
        assert engine.devices == (0, 1, 3)

        output = engine(**inputs)

        assert difference(output, expected(model, inputs), inputs) <= 1e-4
        assert engine.last_trace is not None
        assert used(engine) == [0, 1, 3]
        assert not engine.last_trace.failures
        assert engine.last_trace.left_out == ("device 2: it has no link with device 1",)

        del one.connected
        deadline = time.monotonic() + 5
        while engine.devices != (0, 1, 2, 3) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert difference(engine(**inputs), expected(model, inputs), inputs) <= 1e-4
        assert used(engine) == [0, 1, 2, 3]
        assert not engine.last_trace.left_out


def test_whole_samples_go_to_devices_that_have_no_link_with_each_other(caplog: pytest.LogCaptureFixture) -> None:
    """Under `replica` workers send each other nothing: that two of them cannot reach each other is no reason."""
    model = make(ARCHITECTURE)
    inputs = {name: torch.cat([tensor] * 3) for name, tensor in example(ARCHITECTURE, batch=1).items()}
    with edgeprism.Cluster.in_process(3) as cluster:
        mesh_of(cluster)[1].connected = lambda: {0}  # type: ignore[method-assign]
        engine = edgeprism.load(model, cluster=cluster, plan=edgeprism.Plan.even("replica", 3))

        output = engine(**inputs)

        assert difference(output, expected(model, inputs), inputs) <= 1e-4
        assert used(engine) == [0, 1, 2]
        assert engine.last_trace is not None
        assert not engine.last_trace.left_out
        assert "device 2 has no link with device 1; it gets whole samples only" in caplog.text


def test_the_device_that_failed_is_blamed_not_the_one_that_is_busy(
    cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Device 2 computes on for half a second after device 1 has failed: device 1 is left out, with its reason."""
    model = make(ARCHITECTURE)
    engine = edgeprism.load(model, cluster=cluster, plan="sequence")
    on_device(monkeypatch, VisionModel, "embed", {1: fail, 2: lambda: time.sleep(0.5)})
    inputs = example(ARCHITECTURE)

    output = engine(**inputs)

    assert difference(output, expected(model, inputs), inputs) <= 1e-4
    assert engine.last_trace is not None
    assert len(engine.last_trace.failures) == 1
    assert "device 1 failed: MemoryError: no memory for rows" in engine.last_trace.failures[0]
    time.sleep(0.6)
    engine(**inputs)
    assert used(engine) == [0, 2]
    assert not engine.last_trace.failures
    assert engine.last_trace.left_out == ("device 1: it failed a moment ago",)


def test_a_link_that_swallows_frames_costs_one_request(
    cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What device 2 sends to device 1 never arrives, while both answer: the next request does without one of them."""
    model = make(ARCHITECTURE)
    engine = edgeprism.load(model, cluster=cluster, plan="sequence")
    mesh = mesh_of(cluster)
    post = mesh[2]._post
    monkeypatch.setattr(mesh[2], "_post", lambda peer, parts: None if peer == 1 else post(peer, parts))
    inputs = example(ARCHITECTURE)

    output = engine(**inputs)

    assert difference(output, expected(model, inputs), inputs) <= 1e-4
    assert engine.last_trace is not None
    assert len(engine.last_trace.failures) == 1
    assert "device 2 sent no rows" in engine.last_trace.failures[0]
    started = time.monotonic()
    output = engine(**inputs)
    assert difference(output, expected(model, inputs), inputs) <= 1e-4
    assert used(engine) == [0, 1]
    assert not engine.last_trace.failures
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("plan", ["sequence", "replica"])
@pytest.mark.parametrize(
    "results",
    [
        Results(names=(), tensors=()),
        Results(names=(), tensors=(torch.zeros(2, 2, 2),)),
        Results(names=("logits",), tensors=(torch.zeros(1, 4),)),
        Results(names=("words",), tensors=(torch.zeros(1, 5),)),
        Results(names=("logits",), tensors=(torch.zeros(7, 5),)),
    ],
)
def test_results_that_do_not_fit_are_a_failure(
    cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch, plan: str, results: Results
) -> None:
    """Too few, other shapes, other names: the coordinator computes the answer itself."""
    model = make("ViTModel")  # its head reads every row, so every device owes some
    engine = edgeprism.load(model, cluster=cluster, plan=edgeprism.Plan.even(plan, 3))
    run = JobRun.run

    def patched(self: JobRun, *args: Any) -> Results:
        right = run(self, *args)
        return results if threading.current_thread().name == "edgeprism-1" else right

    monkeypatch.setattr(JobRun, "run", patched)
    inputs = example(ARCHITECTURE)
    output = engine(**inputs)
    assert difference(output, expected(model, inputs), inputs) <= 1e-4
    assert engine.last_trace is not None
    assert len(engine.last_trace.failures) == 1


def test_bad_input_puts_no_device_out(cluster: edgeprism.Cluster) -> None:
    """Only a worker sees the sample with an id beyond the vocabulary; it is the caller's mistake all the same."""
    model = make("BertModel")
    engine = edgeprism.load(model, cluster=cluster, plan=edgeprism.Plan.even("replica", 3))
    inputs = example("BertModel")
    broken = inputs["input_ids"].clone()
    broken[2, 5] = 5000
    with pytest.raises(InputError, match="must lie between"):
        engine(input_ids=broken)
    assert difference(engine(**inputs), expected(model, inputs), inputs) <= 1e-4
    assert used(engine) == [0, 1, 2]


def test_results_larger_than_a_message_travel_in_pieces(cluster: edgeprism.Cluster) -> None:
    """Logits over a vocabulary are far larger than the ids they come from."""
    model = make("GPT2LMHeadModel")
    engine = edgeprism.load(model, cluster=cluster, plan=edgeprism.Plan.even("replica", 3))
    inputs = example("GPT2LMHeadModel", batch=8)
    for transport in mesh_of(cluster):
        transport.limits = Limits(max_array_bytes=13 * 97 * 4 + 1)  # one sample's logits
    assert difference(engine(**inputs), expected(model, inputs), inputs) <= 1e-4
    assert used(engine) == [0, 1, 2]


def test_what_workers_send_back_is_counted(cluster: edgeprism.Cluster) -> None:
    """Bytes sent are bytes received, results included."""
    engine = edgeprism.load(make("GPT2LMHeadModel"), cluster=cluster, plan=edgeprism.Plan.even("replica", 3))
    engine(**example("GPT2LMHeadModel", batch=6))
    assert engine.last_trace is not None
    coordinator, *workers = engine.last_trace.devices
    assert sum(worker.bytes_sent for worker in workers) == coordinator.bytes_received > 13 * 97 * 4


def test_shares_follow_the_speed_that_is_seen(cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that turns out slow gets fewer samples, request by request."""
    model = make("GPT2Model")
    engine = edgeprism.load(model, cluster=cluster, plan="replica")
    inputs = example("GPT2Model", batch=24)
    engine(**inputs)
    on_device(monkeypatch, BareGpt2, "embed", {1: lambda: time.sleep(0.3)})
    for _ in range(12):
        output = engine(**inputs)
    assert difference(output, expected(model, inputs), inputs) <= 1e-4
    assert engine.last_trace is not None
    work = {device.device: device.work for device in engine.last_trace.devices}
    assert work.get(1, 0) <= 4, work  # 8 to begin with
    assert sum(work.values()) == 24


def test_a_slow_request_is_waited_for_the_next_time(
    cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout although everyone answers teaches patience: the second try, when they are used again, gets through."""
    model = make(ARCHITECTURE)
    engine = edgeprism.load(model, cluster=cluster, plan="sequence")
    monkeypatch.setattr("edgeprism.runtime.membership.RETRY_S", 0.1)
    on_device(monkeypatch, VisionModel, "embed", {1: lambda: time.sleep(2.8), 2: lambda: time.sleep(2.8)})
    inputs = example(ARCHITECTURE)
    engine(**inputs)
    assert engine.last_trace is not None
    assert engine.last_trace.failures
    deadline = time.monotonic() + 10
    while engine.devices != (0, 1, 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    output: dict[str, Tensor] = engine(**inputs)
    assert difference(output, expected(model, inputs), inputs) <= 1e-4
    assert not engine.last_trace.failures
    assert used(engine) == [0, 1, 2]
