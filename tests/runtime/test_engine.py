"""The engine on threads of this process: plans, traces, errors of workers, and what it leaves as it was."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import edgeprism
from edgeprism.errors import InputError, PlanError
from edgeprism.models.vision import VisionModel
from edgeprism.runtime.cores import on_cores
from edgeprism.runtime.patience import FACTOR, FLOOR_S, WARM_UP_S, Patience
from edgeprism.specs.plan import Stage
from edgeprism.strategies.registry import count
from tests.families import difference, example, expected, make

pytestmark = pytest.mark.alone

ARCHITECTURE = "ViTForImageClassification"


@pytest.fixture
def cluster() -> Iterator[edgeprism.Cluster]:
    """Three devices."""
    with edgeprism.Cluster.in_process(3) as cluster:
        yield cluster


def test_auto_is_local_and_says_so(cluster: edgeprism.Cluster) -> None:
    """Until there is a policy, auto runs on this device, and the trace's note says it."""
    engine = edgeprism.load(make(ARCHITECTURE), cluster=cluster)
    engine(**example(ARCHITECTURE))
    assert engine.last_trace is not None
    assert engine.last_trace.plan == edgeprism.Plan.local()
    assert "auto" in engine.last_trace.note


def test_narrow_keys_and_values_travel_instead_of_rows(cluster: edgeprism.Cluster) -> None:
    """Where heads share them, and unless a plan says otherwise: the same answers from fewer bytes."""
    model = make("LlamaForCausalLM", num_key_value_heads=1)
    inputs = example("LlamaForCausalLM")
    engine = edgeprism.load(model, cluster=cluster, plan="sequence")
    output = engine(**inputs)
    assert engine.last_trace is not None
    assert str(engine.last_trace.plan.codec) == "kv:exact"
    assert difference(output, expected(model, inputs), inputs) <= 1e-4
    num_bytes = engine.last_trace.devices[0].bytes_sent

    engine.use(edgeprism.Plan.even("sequence", 3))
    engine(**inputs)
    assert str(engine.last_trace.plan.codec) == "exact"
    assert num_bytes < engine.last_trace.devices[0].bytes_sent


def test_the_trace_says_where_time_and_bytes_went(cluster: edgeprism.Cluster) -> None:
    """Each device's parts add up to its total, tokens to the whole; bytes are those counted, and headers."""
    engine = edgeprism.load(make("ViTModel"), cluster=cluster, plan="sequence")
    engine(**example("ViTModel", batch=2))
    trace = engine.last_trace
    assert trace is not None
    assert [device.device for device in trace.devices] == [0, 1, 2]
    assert sum(device.work for device in trace.devices) == trace.num_tokens == 17
    for device in trace.devices:
        parts = (device.compute_s, device.codec_s, device.staging_s, device.wire_s, device.wait_s)
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(device.total_s, rel=0.01, abs=1e-3)
        assert device.total_s <= trace.total_s + 1e-3
    counted = count(engine.spec, trace.plan, num_tokens=17, batch=2, element_bytes=4)
    results = sum(2 * device.work * 64 * 4 for device in trace.devices[1:])  # every row goes back to the coordinator
    sent = sum(device.bytes_sent for device in counted.devices) + results
    assert sent <= trace.bytes_sent <= sent + 3 * 3 * 2 * 100 + 2 * 2000
    assert sum(device.bytes_received for device in trace.devices) > 0
    assert trace.summary().count("\n") == 4
    assert trace.to_json()["plan"]["strategy"] == "sequence"


def test_a_worker_that_raises_is_named_and_left_out_for_a_while(
    cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception on a worker is a failure with its reason; the answer is right; the next request does without it."""
    model = make(ARCHITECTURE)
    engine = edgeprism.load(model, cluster=cluster, plan="sequence")
    embed = VisionModel.embed

    def fails_on_device_1(self: VisionModel, features: dict[str, Tensor]) -> Tensor:
        if threading.current_thread().name == "edgeprism-1":
            raise MemoryError("no memory for rows")
        return embed(self, features)

    monkeypatch.setattr(VisionModel, "embed", fails_on_device_1)
    inputs = example(ARCHITECTURE)
    logits = engine(**inputs).logits
    torch.testing.assert_close(logits, expected(model, inputs)["logits"], atol=1e-4, rtol=0)
    assert engine.last_trace is not None
    assert "no memory for rows" in engine.last_trace.failures[0]
    assert "device 1" in engine.last_trace.failures[0]
    engine(**inputs)
    assert not engine.last_trace.failures
    assert [device.device for device in engine.last_trace.devices] == [0, 2]


def test_bad_input_is_refused_and_the_next_request_is_fine(cluster: edgeprism.Cluster) -> None:
    """A request that is refused leaves no worker waiting and no device left out."""
    model = make(ARCHITECTURE)
    for plan in ("sequence", "replica"):
        engine = edgeprism.load(model, cluster=cluster, plan=plan)
        with pytest.raises(InputError, match="do not fit this model"):
            engine(pixel_values=torch.zeros(3, 3, 20, 20))
        inputs = example(ARCHITECTURE)
        logits = engine(**inputs).logits
        torch.testing.assert_close(logits, expected(model, inputs)["logits"], atol=1e-4, rtol=0)


def test_several_threads_may_call_one_engine(cluster: edgeprism.Cluster) -> None:
    """Each gets the answer to its own input."""
    model = make(ARCHITECTURE)
    engine = edgeprism.load(model, cluster=cluster, plan="sequence")
    inputs = [example(ARCHITECTURE, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda given: engine(**given).logits, inputs))
    for given, logits in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(logits, expected(model, given)["logits"], atol=1e-4, rtol=0)


def test_a_cluster_serves_the_newest_engine(cluster: edgeprism.Cluster) -> None:
    """An older engine says that its cluster was given away, instead of answering with another model."""
    old = edgeprism.load(make(ARCHITECTURE), cluster=cluster)
    edgeprism.load(make(ARCHITECTURE, seed=1), cluster=cluster)
    with pytest.raises(InputError, match="newer"):
        old(**example(ARCHITECTURE))


def test_one_device_needs_no_cluster() -> None:
    """Without a cluster every plan runs here, and close ends it."""
    model = make(ARCHITECTURE)
    inputs = example(ARCHITECTURE)
    with edgeprism.load(model, plan="sequence") as engine:
        torch.testing.assert_close(engine(**inputs).logits, expected(model, inputs)["logits"], atol=1e-4, rtol=0)
        assert engine.last_trace is not None
        assert "one device" in engine.last_trace.note
    with pytest.raises(InputError, match="closed"):
        engine(**inputs)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"plan": "magic"}, "unknown strategy"),
        ({"plan": edgeprism.Plan.pipeline([Stage(device=0, start=0, stop=4)], 1)}, "end at piece 4"),
        ({"plan": "sequence", "codec": "zip"}, "unknown codec"),
        ({"plan": edgeprism.Plan.even("sequence", 4)}, "4 devices"),
        ({"plan": edgeprism.Plan.even("sequence", 3), "codec": "int8"}, "give one"),
        ({"dtype": "int3"}, "unknown dtype"),
        ({"dtype": "bfloat16"}, "was loaded in"),
        ({"device": "abacus"}, "abacus"),
        ({"model": make(ARCHITECTURE).to(torch.float8_e5m2)}, "float8"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    cluster: edgeprism.Cluster, settings: dict[str, Any], says: str
) -> None:
    """One line that says what is wrong and what would do."""
    with pytest.raises(InputError, match=says):
        edgeprism.load(**{"model": make(ARCHITECTURE), "cluster": cluster, **settings})


def test_more_devices_than_tokens_are_refused() -> None:
    """A sequence of two tokens cannot be shared by three devices."""
    with edgeprism.Cluster.in_process(3) as cluster:
        engine = edgeprism.load(make("BertModel"), cluster=cluster, plan="sequence")
        with pytest.raises(PlanError, match="more devices than tokens"):
            engine(**example("BertModel", length=2))


def test_a_codec_without_effect_warns(cluster: edgeprism.Cluster) -> None:
    """replica sends no rows, so a codec does nothing there."""
    with pytest.warns(UserWarning, match="no effect"):
        edgeprism.load(make(ARCHITECTURE), cluster=cluster, plan="replica", codec="int8")


def test_threads_and_cores_of_the_caller_are_as_before() -> None:
    """Work on given cores leaves the calling thread's affinity and torch's thread count alone, also after an error."""
    cores, num_threads = os.sched_getaffinity(0), torch.get_num_threads()
    one = (min(cores),)

    def fail_on(cores: tuple[int, ...]) -> None:
        with on_cores(cores):
            assert os.sched_getaffinity(0) == set(cores)
            assert torch.get_num_threads() == 1
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail_on(one)
    assert os.sched_getaffinity(0) == cores
    assert torch.get_num_threads() == num_threads


def test_patience_follows_what_was_observed() -> None:
    """Three times the expected time, never below the floor; one timeout is a failure, a second one a slower network."""
    patience = Patience(FLOOR_S)

    def timeout_s(kind: str = "a") -> float:
        return patience.timeout_s(kind, of="all", compute_s=2.0, num_bytes=0)

    assert timeout_s() == pytest.approx(FACTOR * (2.0 + WARM_UP_S))
    patience.learn("a", 0.01, of="all")
    assert timeout_s() == FLOOR_S
    assert timeout_s("b") == FACTOR * 2.0  # of another kind, but everybody is warm
    patience.learn("a", 4.01, of="all")
    assert timeout_s() == pytest.approx(FACTOR * 1.21)
    patience.learn_timeout("a")
    assert timeout_s() == pytest.approx(FACTOR * 1.21)
    for growth in (2, 4, 4):
        patience.learn_timeout("a")
        assert timeout_s() == pytest.approx(growth * FACTOR * 1.21)
    patience.learn("a", 1.21, of="all")
    assert timeout_s() == pytest.approx(FACTOR * 1.21)


def test_the_floor_of_deadlines_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no number above 0 is as if it were not there."""
    for text, floor_s in (("1.5", 1.5), ("", FLOOR_S), ("soon", FLOOR_S), ("-1", FLOOR_S)):
        monkeypatch.setenv("EDGEPRISM_DEADLINE_S", text)
        assert Patience().floor_s == floor_s
