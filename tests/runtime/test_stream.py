"""Many requests at once: futures, full queues, order, and what an application finds unchanged around an engine."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from torch import Tensor

import edgeprism
from edgeprism.errors import InputError, PlanError, QueueFull
from edgeprism.models.vision import VisionModel
from edgeprism.runtime.answers import Answer
from tests.families import difference, example, expected, make

ARCHITECTURE = "ViTForImageClassification"


@pytest.fixture
def cluster() -> Iterator[edgeprism.Cluster]:
    """Three devices."""
    with edgeprism.Cluster.in_process(3) as cluster:
        yield cluster


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, no device gets beyond the embedding."""
    opened = threading.Event()
    embed = VisionModel.embed

    def embed_later(self: VisionModel, features: dict[str, Tensor]) -> Tensor:
        assert opened.wait(30)
        return embed(self, features)

    monkeypatch.setattr(VisionModel, "embed", embed_later)
    return opened


def pictures(count: int) -> list[dict[str, Tensor]]:
    """Different inputs of one sample each."""
    return [example(ARCHITECTURE, batch=1, seed=seed) for seed in range(count)]


def check(answers: list[Answer], given: list[dict[str, Tensor]], model: Any) -> None:
    """Each answer is that of its own input."""
    for answer, inputs in zip(answers, given, strict=True):
        assert difference(answer.result(30), expected(model, inputs), inputs) <= 1e-4


def devices_of(answers: list[Answer]) -> set[int]:
    """The devices that computed."""
    traces = [answer.trace for answer in answers]
    return {device.device for trace in traces if trace is not None for device in trace.devices if device.work}


def wait_until_begun(answer: Answer) -> None:
    """Until a device has it in hand."""
    deadline = time.monotonic() + 10
    while not answer.running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert answer.running()


def test_single_requests_run_on_all_devices(cluster: edgeprism.Cluster) -> None:
    """Plan replica, one sample each: every device takes some, every future has its own answer and trace."""
    model, given = make(ARCHITECTURE), pictures(40)
    engine = edgeprism.load(model, cluster=cluster, plan="replica")
    answers = [engine.submit(**inputs) for inputs in given]
    check(answers, given, model)
    assert devices_of(answers) == {0, 1, 2}
    for answer in answers:
        assert answer.trace is not None
        assert answer.trace.plan.strategy == "replica"
        assert max(answer.trace.plan.shares) == 1
        assert answer.trace.queued_s >= 0
        assert not answer.trace.failures


@pytest.mark.parametrize("plan", ["local", "sequence", "replica"])
def test_kinds_of_requests_may_be_mixed(cluster: edgeprism.Cluster, plan: str) -> None:
    """Single samples and batches, submitted and called, from several threads and with changing plans."""
    model = make(ARCHITECTURE)
    engine = edgeprism.load(model, cluster=cluster, plan="replica")
    given = [example(ARCHITECTURE, batch=1 + index % 3, seed=index) for index in range(24)]
    answers = []
    for index, inputs in enumerate(given):
        engine.use("replica" if index % 4 else plan)
        answers.append(engine.submit(**inputs))
    assert difference(engine(**given[0]), expected(model, given[0]), given[0]) <= 1e-4
    check(answers, given, model)


def test_a_full_queue_drops_the_oldest(cluster: edgeprism.Cluster, gate: threading.Event) -> None:
    """The newest requests are answered; each of the others gets QueueFull and is counted."""
    model, given = make(ARCHITECTURE), pictures(12)
    engine = edgeprism.load(model, cluster=cluster, plan="local", max_pending=2, when_full="drop_oldest")
    first = engine.submit(**given[0])
    wait_until_begun(first)
    answers = [engine.submit(**inputs) for inputs in given[1:]]
    gate.set()
    check([first, *answers[-2:]], [given[0], *given[-2:]], model)
    for answer in answers[:-2]:
        assert isinstance(answer.exception(10), QueueFull)
    assert engine.num_dropped == 9
    assert engine.num_rejected == 0


def test_a_full_queue_rejects(cluster: edgeprism.Cluster, gate: threading.Event) -> None:
    """What is too much is refused at once, and counted; a call that waits for its answer is not."""
    model, given = make(ARCHITECTURE), pictures(5)
    engine = edgeprism.load(model, cluster=cluster, plan="local", max_pending=2, when_full="reject")
    first = engine.submit(**given[0])
    wait_until_begun(first)
    answers = [engine.submit(**inputs) for inputs in given[1:3]]
    for inputs in given[3:]:
        with pytest.raises(QueueFull, match="max_pending"):
            engine.submit(**inputs)
    assert engine.num_rejected == 2
    threading.Timer(0.2, gate.set).start()
    assert difference(engine(**given[4]), expected(model, given[4]), given[4]) <= 1e-4
    check([first, *answers], given[:3], model)


def test_a_full_queue_blocks(cluster: edgeprism.Cluster, gate: threading.Event) -> None:
    """The caller waits until there is room; nothing is lost."""
    model, given = make(ARCHITECTURE), pictures(6)
    engine = edgeprism.load(model, cluster=cluster, plan="local", max_pending=2)
    threading.Timer(0.5, gate.set).start()
    began = time.monotonic()
    answers = [engine.submit(**inputs) for inputs in given]
    assert time.monotonic() - began > 0.3
    check(answers, given, model)
    assert engine.num_dropped == engine.num_rejected == 0


def test_order_is_kept_on_request(cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Futures are done in the order of their requests, though device 0 is slow and the others are not."""
    model, given = make(ARCHITECTURE), pictures(20)
    embed = VisionModel.embed

    def slow_here(self: VisionModel, features: dict[str, Tensor]) -> Tensor:
        if threading.current_thread().name.startswith("edgeprism-0"):
            time.sleep(0.1)
        return embed(self, features)

    monkeypatch.setattr(VisionModel, "embed", slow_here)
    orders = []
    for keep_order in (False, True):
        engine = edgeprism.load(model, cluster=cluster, plan="replica", keep_order=keep_order)
        done: list[int] = []
        answers = [engine.submit(**inputs) for inputs in given]
        for answer in answers:
            answer.add_done_callback(lambda done_now, done=done, answers=answers: done.append(answers.index(done_now)))
        check(answers, given, model)
        orders.append(done)
    assert sorted(orders[0]) == orders[1] == list(range(20))
    assert orders[0] != orders[1]


def test_a_request_that_waits_can_be_cancelled(cluster: edgeprism.Cluster, gate: threading.Event) -> None:
    """It never runs; those behind it do, also where the order is kept."""
    model, given = make(ARCHITECTURE), pictures(4)
    engine = edgeprism.load(model, cluster=cluster, plan="local", keep_order=True)
    first = engine.submit(**given[0])
    wait_until_begun(first)
    answers = [engine.submit(**inputs) for inputs in given[1:]]
    assert answers[0].cancel()
    assert not first.cancel()
    gate.set()
    check([first, *answers[1:]], [given[0], *given[2:]], model)
    with pytest.raises(CancelledError):
        answers[0].result(1)


def test_bad_input_fails_its_own_request_only(cluster: edgeprism.Cluster) -> None:
    """The future has the error; the others have their answers, and no device is blamed."""
    model, given = make(ARCHITECTURE), pictures(6)
    engine = edgeprism.load(model, cluster=cluster, plan="replica")
    answers = [engine.submit(**inputs) for inputs in given[:3]]
    bad = [
        engine.submit(pixel_values=torch.zeros(1, 3, 20, 20)),
        engine.submit(words=torch.zeros(1, 2)),
        engine.submit(),
    ]
    answers += [engine.submit(**inputs) for inputs in given[3:]]
    for answer in bad:
        with pytest.raises(InputError):
            answer.result(10)
    check(answers, given, model)
    assert engine.devices == (0, 1, 2)


def test_what_a_failing_device_had_in_hand_is_done_by_others(
    cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Device 1 raises in the middle of a stream: every answer is right, the trace says what happened, and later
    requests do without the device."""
    model, given = make(ARCHITECTURE), pictures(30)
    embed = VisionModel.embed

    def fails_on_device_1(self: VisionModel, features: dict[str, Tensor]) -> Tensor:
        if threading.current_thread().name == "edgeprism-1":
            raise MemoryError("no memory for rows")
        return embed(self, features)

    engine = edgeprism.load(model, cluster=cluster, plan="replica")
    monkeypatch.setattr(VisionModel, "embed", fails_on_device_1)
    answers = [engine.submit(**inputs) for inputs in given]
    check(answers, given, model)
    failures = [failure for answer in answers if answer.trace is not None for failure in answer.trace.failures]
    assert failures and all("device 1 failed: MemoryError: no memory for rows" in failure for failure in failures)
    assert devices_of(answers) == {0, 2}
    assert 1 not in engine.devices


def test_a_closed_engine_answers_nobody_and_hangs_nobody(cluster: edgeprism.Cluster, gate: threading.Event) -> None:
    """Requests that wait are refused when the engine is closed, and so are later ones."""
    engine = edgeprism.load(make(ARCHITECTURE), cluster=cluster, plan="local")
    answers = [engine.submit(**inputs) for inputs in pictures(3)]
    wait_until_begun(answers[0])
    threading.Timer(0.2, gate.set).start()
    engine.close()
    for answer in answers[1:]:
        assert isinstance(answer.exception(10), InputError)
    for use in (lambda: engine.submit(**pictures(1)[0]), lambda: engine(**pictures(1)[0]), lambda: engine.devices):
        with pytest.raises(InputError, match="closed"):
            use()


def test_a_callback_cannot_use_the_engine(cluster: edgeprism.Cluster) -> None:
    """It runs on the thread that would have to answer: an error instead of a deadlock."""
    engine = edgeprism.load(make(ARCHITECTURE), cluster=cluster, plan="local")
    errors: list[Exception] = []
    called = threading.Event()

    def call_again(_: object) -> None:
        try:
            engine(**pictures(1)[0])
        except Exception as exc:
            errors.append(exc)
        called.set()

    answer = engine.submit(**pictures(1)[0])
    answer.add_done_callback(call_again)
    answer.result(10)
    assert called.wait(10)
    assert not errors or isinstance(errors[0], InputError)  # none, when it was done before the callback was added


def test_an_event_loop_can_wait_for_answers(cluster: edgeprism.Cluster) -> None:
    """As in a notebook or a server: while a loop runs, with asyncio.wrap_future."""
    model, given = make(ARCHITECTURE), pictures(8)

    async def serve() -> list[Any]:
        engine = edgeprism.load(model, cluster=cluster, plan="replica")
        return await asyncio.gather(*(asyncio.wrap_future(engine.submit(**inputs)) for inputs in given))

    for output, inputs in zip(asyncio.run(serve()), given, strict=True):
        assert difference(output, expected(model, inputs), inputs) <= 1e-4


def test_the_application_finds_everything_as_it_was() -> None:
    """Signal handlers, thread counts (of new threads, too), cores, logging and autograd mode are the application's;
    after close no process, thread or file descriptor is left."""

    def state() -> dict[str, Any]:
        of_new_thread: list[int] = []
        thread = threading.Thread(target=lambda: of_new_thread.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return {
            "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
            "threads": (torch.get_num_threads(), of_new_thread[0]),
            "cores": os.sched_getaffinity(0),
            "logging": (list(logging.root.handlers), logging.root.level, logging.getLogger("edgeprism").handlers[:]),
            "grad": torch.is_grad_enabled(),
            "cwd": os.getcwd(),
        }

    def left() -> tuple[int, set[str]]:
        names = {thread.name for thread in threading.enumerate() if thread.name.startswith("edgeprism")}
        return len(os.listdir("/proc/self/fd")), names

    before_num_threads = torch.get_num_threads()
    torch.set_num_threads(3)  # not what an engine on one core sets
    try:
        model = make(ARCHITECTURE)
        before, before_left = state(), left()
        with edgeprism.Cluster.spawn(2, share_cores=True) as cluster:
            engine = edgeprism.load(model, cluster=cluster, plan="replica")
            check([engine.submit(**inputs) for inputs in pictures(4)], pictures(4), model)
            engine.use("sequence")
            engine(**pictures(1)[0])
            assert state() == before
            pids = cluster.pids
            engine.close()
        assert state() == before
        assert left() == before_left
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    finally:
        torch.set_num_threads(before_num_threads)


def test_an_engine_that_is_forgotten_leaves_no_thread() -> None:
    """Without close: when the last reference goes, its thread ends."""
    engine = edgeprism.load(make(ARCHITECTURE))
    engine(**pictures(1)[0])
    thread = engine._thread._thread
    del engine
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.alone
@pytest.mark.parametrize("interrupt", [False, True])
def test_a_program_may_end_without_closing(interrupt: bool) -> None:
    """In the middle of a stream, by its own end or by Ctrl-C: it ends soon, without a word of ours, and takes its
    worker with it."""
    program = """
import sys, time, edgeprism
from tests.families import example, make
cluster = edgeprism.Cluster.spawn(2, share_cores=True)
engine = edgeprism.load(make("ViTForImageClassification"), cluster=cluster, plan="replica")
answers = [engine.submit(**example("ViTForImageClassification", batch=1)) for _ in range(60)]
answers[0].result()
print(*cluster.pids, flush=True)
if sys.argv[1] == "True":
    try:
        while True:
            engine(**example("ViTForImageClassification"))
    except KeyboardInterrupt:
        sys.exit(130)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(interrupt)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = process.stdout.readline().split()
    assert len(pids) == 1
    if interrupt:
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == (130 if interrupt else 0)
    assert said == ""
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_warming_up_runs_the_plan(cluster: edgeprism.Cluster) -> None:
    """Without inputs it makes some of the usual size, for pictures and for texts."""
    for architecture in (ARCHITECTURE, "BertForSequenceClassification", "GPT2LMHeadModel"):
        engine = edgeprism.load(make(architecture), cluster=cluster, plan="sequence")
        trace = engine.warmup()
        assert [device.device for device in trace.devices] == [0, 1, 2]
    engine = edgeprism.load(make(ARCHITECTURE), cluster=cluster, plan="replica")
    assert engine.warmup(**example(ARCHITECTURE, batch=6)).batch == 6


def test_options_that_do_not_exist() -> None:
    """One line that says which there are."""
    with pytest.raises(InputError, match="at least 1"):
        edgeprism.load(make(ARCHITECTURE), max_pending=0)
    with pytest.raises(PlanError):
        edgeprism.load(make(ARCHITECTURE), plan="nonsense")


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stream_goes_on_when_a_process_dies_or_stops(number: int) -> None:
    """Every request is answered right; the next ones do not wait for the device; one that continues is used again."""
    model, given = make(ARCHITECTURE), pictures(400)
    with edgeprism.Cluster.spawn(3, share_cores=True) as cluster:
        engine = edgeprism.load(model, cluster=cluster, plan="replica", max_pending=8)
        answers = [engine.submit(**inputs) for inputs in given[:100]]
        os.kill(cluster.pids[0], number)
        answers += [engine.submit(**inputs) for inputs in given[100:]]
        check(answers, given, model)
        assert 1 not in engine.devices
        assert devices_of(answers[-50:]) <= {0, 2}
        if number == signal.SIGSTOP:
            os.kill(cluster.pids[0], signal.SIGCONT)
            deadline = time.monotonic() + 10
            while engine.devices != (0, 1, 2) and time.monotonic() < deadline:
                time.sleep(0.05)
            answers = [engine.submit(**inputs) for inputs in given[:60]]
            check(answers, given[:60], model)
            assert 1 in devices_of(answers)
