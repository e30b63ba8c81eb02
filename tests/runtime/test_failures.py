"""Devices that die, hang and come back in mid-request: the answer is right, in time, and says who failed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
import transformers

import edgeprism
from edgeprism.errors import PeerError
from edgeprism.specs.plan import Plan

pytestmark = pytest.mark.alone

PIXELS = torch.randn(8, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def make_model() -> transformers.PreTrainedModel:
    """A ViT whose request takes about half a second on a core."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=384, num_hidden_layers=8, num_attention_heads=6, intermediate_size=1536, image_size=112,
        patch_size=8, num_labels=10, initializer_range=0.1,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


@pytest.fixture
def cluster() -> Iterator[edgeprism.Cluster]:
    """Three processes; killed ones are not replaced, so each test has its own."""
    with edgeprism.Cluster.spawn(3, share_cores=True) as cluster:
        yield cluster


@pytest.fixture
def engine(cluster: edgeprism.Cluster) -> Iterator[edgeprism.Engine]:
    """An engine that has been used, so that the first request's extra time is over."""
    with edgeprism.load(make_model(), cluster=cluster, plan="sequence") as engine:
        engine(pixel_values=PIXELS)
        yield engine


def logits_of_one_device(model: transformers.PreTrainedModel) -> torch.Tensor:
    """What is right."""
    with torch.no_grad():
        return model(pixel_values=PIXELS).logits


def disturbed(
    engine: edgeprism.Engine, disturb: Callable[[], None], moment: float = 0.5
) -> tuple[torch.Tensor, float, float]:
    """Logits of a request that is disturbed in its middle, its seconds, and those of the request before."""
    started = time.monotonic()
    engine(pixel_values=PIXELS)
    undisturbed_s = time.monotonic() - started
    timer = threading.Timer(undisturbed_s * moment, disturb)
    timer.start()
    started = time.monotonic()
    logits = engine(pixel_values=PIXELS).logits
    elapsed_s = time.monotonic() - started
    timer.join()
    return logits, elapsed_s, undisturbed_s


@pytest.mark.parametrize(("plan", "victim"), [("sequence", 1), ("sequence", 2), ("replica", 1)])
def test_a_killed_process_is_named_and_the_answer_is_right(
    engine: edgeprism.Engine, cluster: edgeprism.Cluster, plan: str, victim: int
) -> None:
    """SIGKILL in mid-request: right within 3 x undisturbed + 5 s; the next request uses the devices that are left."""
    engine.use(Plan.even(plan, 3))
    engine(pixel_values=PIXELS)
    expected = logits_of_one_device(make_model())

    moment = 0.5 if plan == "sequence" else 0.1  # a replica with few samples is done early
    logits, elapsed_s, undisturbed_s = disturbed(
        engine, lambda: os.kill(cluster.pids[victim - 1], signal.SIGKILL), moment
    )

    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert elapsed_s < 3 * undisturbed_s + 5
    assert engine.last_trace is not None
    assert any(f"device {victim}" in failure for failure in engine.last_trace.failures)
    survivors = {0, 1, 2} - {victim}
    assert set(engine.devices) == survivors
    torch.testing.assert_close(engine(pixel_values=PIXELS).logits, expected, atol=1e-4, rtol=0)
    assert {device.device for device in engine.last_trace.devices} == survivors
    assert not engine.last_trace.failures


def test_a_stopped_process_is_left_out_and_used_again_when_it_returns(
    engine: edgeprism.Engine, cluster: edgeprism.Cluster
) -> None:
    """SIGSTOP in mid-request: right in time. Resumed during the next request it disturbs nothing, and is used again."""
    expected = logits_of_one_device(make_model())
    victim = cluster.pids[0]

    logits, elapsed_s, undisturbed_s = disturbed(engine, lambda: os.kill(victim, signal.SIGSTOP))

    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert elapsed_s < 3 * undisturbed_s + 5
    assert engine.last_trace is not None
    assert any("device 1" in failure for failure in engine.last_trace.failures)
    assert not any("device 2" in failure for failure in engine.last_trace.failures)

    logits, elapsed_s, _ = disturbed(engine, lambda: os.kill(victim, signal.SIGCONT))

    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert not engine.last_trace.failures
    assert elapsed_s < 3 * undisturbed_s + 5

    deadline = time.monotonic() + 10
    while engine.devices != (0, 1, 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    torch.testing.assert_close(engine(pixel_values=PIXELS).logits, expected, atol=1e-4, rtol=0)
    assert [device.device for device in engine.last_trace.devices] == [0, 1, 2]
    assert not engine.last_trace.failures


def test_a_process_that_died_between_requests_costs_the_next_one_nothing(
    engine: edgeprism.Engine, cluster: edgeprism.Cluster
) -> None:
    """SIGKILL while idle: the next request does not wait for the dead device."""
    os.kill(cluster.pids[1], signal.SIGKILL)
    time.sleep(0.5)

    logits = engine(pixel_values=PIXELS).logits

    torch.testing.assert_close(logits, logits_of_one_device(make_model()), atol=1e-4, rtol=0)
    assert engine.last_trace is not None
    assert [device.device for device in engine.last_trace.devices] == [0, 1]
    assert not engine.last_trace.failures


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_text_goes_on_when_the_decoding_device_dies(cluster: edgeprism.Cluster, padding: str) -> None:
    """The last partition's device is killed while it decodes: the coordinator finishes, token for token right."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=256, n_layer=6, n_head=4, vocab_size=1000, initializer_range=0.3, bos_token_id=0, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    prompt = torch.randint(1, 1000, (2, 24))
    mask = torch.ones_like(prompt)
    if padding != "none":
        mask[1, slice(0, 9) if padding == "left" else slice(15, 24)] = 0
    expected = model.generate(prompt, attention_mask=mask, max_new_tokens=200, do_sample=False)
    with edgeprism.load(model, cluster=cluster, plan="sequence") as engine:
        started = time.monotonic()
        engine.generate(prompt, attention_mask=mask, max_new_tokens=200)
        undisturbed_s = time.monotonic() - started

        timer = threading.Timer(undisturbed_s / 2, lambda: os.kill(cluster.pids[1], signal.SIGKILL))
        timer.start()
        started = time.monotonic()
        ids = engine.generate(prompt, attention_mask=mask, max_new_tokens=200)
        elapsed_s = time.monotonic() - started

        assert torch.equal(ids, expected)
        assert elapsed_s < 3 * undisturbed_s + 5
        assert engine.last_trace is not None
        assert any("device 2" in failure for failure in engine.last_trace.failures)


@pytest.mark.parametrize("padding", ["none", "left"])
def test_text_goes_on_exactly_when_the_decoding_device_dies_under_a_lossy_codec(
    cluster: edgeprism.Cluster, padding: str
) -> None:
    """What was decoded with the codec stays; the rest is transformers' own continuation of that, and the trace says
    where one ends and the other begins."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, intermediate_size=512,
        vocab_size=1000, initializer_range=0.3, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    prompt = torch.randint(1, 1000, (2, 24))
    mask = torch.ones_like(prompt)
    if padding == "left":
        mask[1, :9] = 0
    with edgeprism.load(model, cluster=cluster, plan="sequence", codec="means:4") as engine:
        started = time.monotonic()
        lossy = engine.generate(prompt, attention_mask=mask, max_new_tokens=200)
        undisturbed_s = time.monotonic() - started

        timer = threading.Timer(undisturbed_s / 2, lambda: os.kill(cluster.pids[1], signal.SIGKILL))
        timer.start()
        ids = engine.generate(prompt, attention_mask=mask, max_new_tokens=200)
        assert engine.last_trace is not None
        failures = engine.last_trace.failures

    assert any("device 2" in failure for failure in failures)
    said = re.search(r"(\d+) new tokens were decoded with codec means:4, the rest here from exact", failures[-1])
    assert said is not None
    length = 24 + int(said[1])
    assert 24 < length < 224 and torch.equal(ids[:, :length], lossy[:, :length])
    seen = torch.nn.functional.pad(mask, (0, length - 24), value=1)
    rest = model.generate(ids[:, :length], attention_mask=seen, max_new_tokens=224 - length, do_sample=False)
    assert torch.equal(ids, rest) and not torch.equal(ids, lossy)


@pytest.mark.parametrize("forks", [False, True])
def test_children_end_when_their_parent_is_killed(forks: bool) -> None:
    """A coordinator that dies without a word leaves no worker behind, even if a child that it forked lives on and holds
    the pipe."""
    script = (
        "import edgeprism, os, time\n"
        "cluster = edgeprism.Cluster.spawn(2, share_cores=True)\n"
        f"if {forks} and os.fork() == 0:\n"
        "    os.close(1)\n"
        "    time.sleep(20)\n"
        "    os._exit(0)\n"
        "print(*cluster.pids, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids
    parent.kill()
    parent.wait()
    parent.stdout.close()

    deadline = time.monotonic() + 10
    while any(_is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_is_alive(pid) for pid in pids)


def test_a_device_that_was_stopped_while_the_model_was_loaded_is_used_later(cluster: edgeprism.Cluster) -> None:
    """It missed the order to load; asked again when it answers, it takes part."""
    victim = cluster.pids[0]
    timer = threading.Timer(6.0, lambda: os.kill(victim, signal.SIGCONT))
    os.kill(victim, signal.SIGSTOP)
    timer.start()
    with edgeprism.load(make_model(), cluster=cluster, plan="sequence") as engine:
        logits = engine(pixel_values=PIXELS).logits
        assert engine.last_trace is not None
        if timer.is_alive():  # else it came back before the request
            assert [device.device for device in engine.last_trace.devices] == [0, 2]
            assert "device 1" in engine.last_trace.left_out[0]
        timer.join()
        deadline = time.monotonic() + 10
        while engine.devices != (0, 1, 2) and time.monotonic() < deadline:
            time.sleep(0.1)
        torch.testing.assert_close(engine(pixel_values=PIXELS).logits, logits, atol=1e-4, rtol=0)
        assert [device.device for device in engine.last_trace.devices] == [0, 1, 2]
        assert not engine.last_trace.left_out


def test_a_cluster_needs_a_core_for_each_device() -> None:
    """More devices than cores are refused with what there is, unless they may share."""
    num_cores = len(os.sched_getaffinity(0))
    with pytest.raises(edgeprism.errors.PlanError, match=f"may use {num_cores}"):
        edgeprism.Cluster.spawn(num_cores + 1)


def test_close_leaves_no_process_behind() -> None:
    """Closing ends healthy workers and stopped ones, and is fine twice."""
    cluster = edgeprism.Cluster.spawn(3, share_cores=True)
    os.kill(cluster.pids[0], signal.SIGSTOP)
    cluster.close()
    cluster.close()
    assert not any(_is_alive(pid) for pid in cluster.pids)


def test_spawn_says_when_a_child_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that cannot start is a PeerError that names the device, and leaves nothing running."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PeerError, match="device 1"):
        edgeprism.Cluster.spawn(2, share_cores=True)


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
