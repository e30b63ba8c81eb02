"""Requests under plan pipeline, over threads and over processes that hold their own stage only."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeprism
from edgeprism.errors import FrameError, InputError, PlanError
from edgeprism.models.registry import adapt
from edgeprism.runtime.messages import Handover
from edgeprism.runtime.stage import QUEUE_LENGTH, Caches, WorkerStages
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan, parse_stages
from edgeprism.strategies.kv_cache import KeyValueCache
from edgeprism.strategies.pipeline.partition import TEXTS_A_STAGE
from edgeprism.wire.memory import MemoryTransport
from tests.families import difference, example, expected, make, padded

ARCHITECTURE = "ViTForImageClassification"


@pytest.fixture
def cluster() -> Iterator[edgeprism.Cluster]:
    """Three devices, threads of this process."""
    with edgeprism.Cluster.in_process(3) as cluster:
        yield cluster


@pytest.mark.parametrize(
    "architecture",
    ["ViTForImageClassification", "Dinov2ForImageClassification", "BertForSequenceClassification", "GPT2LMHeadModel",
     "LlamaForCausalLM"],
)  # fmt: skip
def test_stages_wherever_they_are(cluster: edgeprism.Cluster, architecture: str) -> None:
    """First, last or nothing here; cut inside of blocks; a relay; alone; in one micro-batch or one a sample."""
    model, inputs = make(architecture), example(architecture)
    reference = expected(model, inputs)
    engine = edgeprism.load(model, cluster=cluster, plan="local")
    for text in ("0:0-4,1:4-8,2:8-12", "1:0-5,0:5-7,2:7-12", "2:0-3,1:3-12", "1:0-0,2:0-9,0:9-12", "0:0-12"):
        for micro_batch in (1, 2, 8):
            engine.use(Plan.pipeline(parse_stages(text), 3, micro_batch=micro_batch))
            output = engine(**inputs)
            assert difference(output, reference, inputs) <= 1e-4, text
            trace = engine.last_trace
            assert trace is not None and not trace.failures and not trace.left_out
            assert {part.device for part in trace.devices} == {0, *(stage.device for stage in trace.plan.stages)}
            assert sum(part.work for part in trace.devices) == 12
            assert str(trace.plan.stages[0]) == text.split(",")[0]


def test_requests_go_in_one_behind_the_other_and_come_out_right(cluster: edgeprism.Cluster) -> None:
    """More than queues hold, each with its own answer, in their order."""
    model = make(ARCHITECTURE)
    plan = Plan.pipeline(parse_stages("0:0-4,1:4-8,2:8-12"), 3)
    inputs = [example(ARCHITECTURE, batch=1, seed=seed) for seed in range(40)]
    references = [expected(model, one) for one in inputs]
    done: list[int] = []
    with edgeprism.load(model, cluster=cluster, plan=plan, keep_order=True) as engine:
        answers = [engine.submit(**one) for one in inputs]
        for index, answer in enumerate(answers):
            answer.add_done_callback(lambda _, index=index: done.append(index))
        outputs = [answer.result(60) for answer in answers]
    assert all(
        difference(output, reference, one) <= 1e-4
        for output, reference, one in zip(outputs, references, inputs, strict=True)
    )
    assert done == sorted(done)
    assert all(answer.trace is not None and not answer.trace.failures for answer in answers)


@pytest.mark.alone
def test_nobody_is_given_more_than_its_queue(cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the last stage stands still, the others come to stand, too: what is under way is bounded."""
    goes_on, begun = threading.Event(), [0, 0, 0]
    take = WorkerStages.take

    def slow(self: WorkerStages, frame: object, model: object, staging: object) -> None:
        rank = self._transport.rank
        begun[rank] += 1
        if rank == 2:
            assert goes_on.wait(60)
        take(self, frame, model, staging)  # type: ignore[arg-type]

    monkeypatch.setattr(WorkerStages, "take", slow)
    model, inputs = make(ARCHITECTURE), example(ARCHITECTURE, batch=1)
    plan = Plan.pipeline(parse_stages("1:0-6,2:6-12"), 3)
    with edgeprism.load(model, cluster=cluster, plan=plan, max_pending=200) as engine:
        answers = [engine.submit(**inputs) for _ in range(30)]
        threading.Event().wait(0.4)  # shorter than the first deadline
        assert begun[2] == 1
        assert begun[1] <= 1 + QUEUE_LENGTH + 1
        goes_on.set()
        assert all(difference(answer.result(60), expected(model, inputs), inputs) <= 1e-4 for answer in answers)


@pytest.mark.parametrize("text", ["1:0-6,2:6-12", "0:0-6,1:6-12", "1:0-6,0:6-12"])
def test_what_the_model_refuses_ends_that_request_alone(cluster: edgeprism.Cluster, text: str) -> None:
    """Pictures of the wrong size in the middle of others, several micro-batches of them, wherever stages are."""
    model = make(ARCHITECTURE)
    inputs = [example(ARCHITECTURE, batch=2, seed=seed) for seed in range(8)]
    references = [expected(model, one) for one in inputs]
    with edgeprism.load(model, cluster=cluster, plan=Plan.pipeline(parse_stages(text), 3)) as engine:
        good = [engine.submit(**one) for one in inputs[:4]]
        wrong = engine.submit(pixel_values=torch.zeros(3, 3, 64, 16))  # as many patches
        good += [engine.submit(**one) for one in inputs[4:]]
        with pytest.raises(InputError, match="64"):
            wrong.result(60)
        for answer, one, reference in zip(good, inputs, references, strict=True):
            assert difference(answer.result(60), reference, one) <= 1e-4
            assert answer.trace is not None and not answer.trace.failures
        with pytest.raises(InputError, match="takes pixel_values"):
            engine(input_ids=torch.zeros(1, 4, dtype=torch.int64))
        with pytest.raises(InputError, match="at least one sample"):
            engine(pixel_values=torch.zeros(0, 3, 32, 32))
        assert difference(engine(**inputs[0]), references[0], inputs[0]) <= 1e-4


def test_handovers_that_do_not_fit_are_refused() -> None:
    """For another device, from another, to nobody, for pieces that are not held here."""
    model = adapt(make(ARCHITECTURE))
    one = MemoryTransport.mesh(3)[1]
    stages = WorkerStages(one)
    order = Handover(
        stages=parse_stages("0:0-4,1:4-8,2:8-12"), index=1, codec=CodecSpec(), codecs=(CodecSpec(),), batch=1,
        num_tokens=17, timeout_s=1.0, tensors=(),
    )  # fmt: skip
    stages._check(order, model, 0)
    model.held = (4, 8)
    stages._check(order, model, 0)
    for wrong, sender in (
        (order, 2),
        (replace(order, index=2), 1),
        (replace(order, stages=parse_stages("0:0-4,1:4-8,7:8-12")), 0),
        (replace(order, stages=parse_stages("0:0-4,1:4-9,2:9-12")), 0),
        (replace(order, stages=parse_stages("0:0-3,1:3-8,2:8-12")), 0),
        (replace(order, stages=parse_stages("0:0-4,1:4-999999")), 0),
    ):
        with pytest.raises(FrameError, match="a handover"):
            stages._check(wrong, model, sender)


def test_a_handover_of_unknown_width_is_refused() -> None:
    """Of none, or of one that no stage sends: by whoever gets it, before anything is computed."""
    order = Handover(
        stages=parse_stages("1:0-6,0:6-12"), index=1, codec=CodecSpec(), codecs=(CodecSpec(),), batch=1, num_tokens=17,
        timeout_s=1.0, tensors=(),
    )  # fmt: skip
    assert Handover.from_json(order.to_json()) == order
    for codecs in ([], ["means:4"]):
        with pytest.raises(FrameError, match="between stages travel"):
            Handover.from_json({**order.to_json(), "codecs": codecs})


def test_a_refused_request_gives_its_credits_back(cluster: edgeprism.Cluster) -> None:
    """One sample of many is wrong, and those before it are laid in line for the stage here: others go on at once."""
    model = make("GPT2LMHeadModel")
    good = {"input_ids": torch.arange(12).reshape(1, 12)}
    reference = expected(model, good)
    wrong = torch.arange(12).repeat(8, 1)
    wrong[5, 3] = 10**6
    with edgeprism.load(model, cluster=cluster, plan=Plan.pipeline(parse_stages("1:0-6,0:6-12"), 3)) as engine:
        engine(**good)
        for _ in range(5):
            refused = engine.submit(input_ids=wrong)
            answers = [engine.submit(**good) for _ in range(4)]
            with pytest.raises(InputError, match="1000000"):
                refused.result(60)
            for answer in answers:
                assert difference(answer.result(60), reference, good) <= 1e-4
                assert answer.trace is not None and not answer.trace.failures


def test_a_stage_that_becomes_slow_is_given_time(cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower than the devices before it wait for room: deadlines grow until outputs come, and come right."""
    is_slow = threading.Event()
    take = WorkerStages.take

    def slow(self: WorkerStages, frame: object, model: object, staging: object) -> None:
        if self._transport.rank == 2 and is_slow.is_set():
            threading.Event().wait(0.6)
        take(self, frame, model, staging)  # type: ignore[arg-type]

    monkeypatch.setattr(WorkerStages, "take", slow)
    monkeypatch.setenv("EDGEPRISM_DEADLINE_S", "0.5")
    model, inputs = make(ARCHITECTURE), example(ARCHITECTURE, batch=1)
    reference = expected(model, inputs)
    with edgeprism.load(model, cluster=cluster, plan=Plan.pipeline(parse_stages("1:0-6,2:6-12"), 3)) as engine:
        for _ in range(4):
            engine(**inputs)
        is_slow.set()
        answers = [engine.submit(**inputs) for _ in range(6)]
        for answer in answers:
            assert difference(answer.result(100), reference, inputs) <= 1e-4


def test_texts_that_cannot_be_continued_leave_nothing_behind(
    cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask for other prompts, or more at once than a device keeps: refused, and the next ones are continued."""
    model, inputs = make("LlamaForCausalLM"), padded("LlamaForCausalLM", "left")
    wanted = model.generate(**inputs, do_sample=False, max_new_tokens=5)
    with edgeprism.load(model, cluster=cluster, plan=Plan.pipeline(parse_stages("0:0-6,1:6-12"), 3)) as engine:
        for mask in (inputs["attention_mask"][:1], inputs["attention_mask"].repeat(2, 1)):
            with pytest.raises(InputError, match="attention_mask"):
                engine.generate(inputs["input_ids"], attention_mask=mask, max_new_tokens=5)
        with monkeypatch.context() as patch:
            patch.setattr("edgeprism.runtime.lateness.MAX_KEPT_BYTES", 1000)
            with pytest.raises(InputError, match="use a smaller micro-batch"):
                engine.generate(**inputs, max_new_tokens=5)
        assert engine.generate(**inputs, max_new_tokens=5).tolist() == wanted.tolist()
        assert engine.last_trace is not None and not engine.last_trace.failures


def test_answers_are_given_out_while_a_text_is_continued(cluster: edgeprism.Cluster) -> None:
    """Those that were submitted before it are not held back until its end."""
    model, inputs = make("GPT2LMHeadModel"), example("GPT2LMHeadModel", batch=32)
    order: list[str] = []
    with edgeprism.load(model, cluster=cluster, plan=Plan.pipeline(parse_stages("0:0-6,1:6-12"), 3)) as engine:
        answer = engine.submit(**inputs)
        answer.add_done_callback(lambda _: order.append("answer"))
        while answer._began_s is None:
            time.sleep(0.001)
        engine.generate(torch.arange(4, 10)[None], max_new_tokens=24)
        order.append("text")
        assert order == ["answer", "text"]


def test_rounded_activations_travel_in_fewer_bytes(cluster: edgeprism.Cluster) -> None:
    """A half, a quarter and an eighth, and answers that are near."""
    model, inputs = make(ARCHITECTURE), example(ARCHITECTURE)
    engine, num_bytes = edgeprism.load(model, cluster=cluster, plan="local"), {}
    for codec in ("exact", "bfloat16", "int8", "int4"):
        engine.use(Plan.pipeline(parse_stages("0:0-4,1:4-12"), 3, CodecSpec.parse(codec), micro_batch=8))
        output = engine(**inputs)
        assert difference(output, expected(model, inputs), inputs) <= {"exact": 1e-4, "int4": 3.0}.get(codec, 0.3)
        assert engine.last_trace is not None
        num_bytes[codec] = engine.last_trace.devices[0].bytes_sent
    assert num_bytes["bfloat16"] == num_bytes["exact"] / 2
    assert num_bytes["int8"] < 0.28 * num_bytes["exact"] and num_bytes["int4"] < 0.16 * num_bytes["exact"]


def test_stages_that_were_not_used_are_said() -> None:
    """Those that were asked for need a device that is not there."""
    model, inputs = make(ARCHITECTURE), example(ARCHITECTURE)
    with edgeprism.Cluster.in_process(2) as cluster:
        engine = edgeprism.load(model, cluster=cluster, plan=Plan.pipeline("0:0-4,1:4-12", 2))
        assert difference(engine(**inputs), expected(model, inputs), inputs) <= 1e-4
        assert engine.last_trace is not None and not engine.last_trace.note
        engine._thread.call(lambda: engine._scheduler._members.suspect(1, "device 1 failed"))
        assert difference(engine(**inputs), expected(model, inputs), inputs) <= 1e-4
        assert engine.last_trace.note == "stages were 0:0-12, not those of the plan"


def children() -> list[int]:
    """The workers that this process has started."""
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False).stdout
    pids = [int(pid) for pid in found.split()]
    return [pid for pid in pids if b"edgeprism.runtime.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.alone
def test_a_stage_that_dies_in_mid_stream_is_made_up_for(tmp_path: Path) -> None:
    """Its pieces are loaded by those that are left, busy as they are, and nothing is lost or comes twice; until one
    device has all."""
    model = make(ARCHITECTURE, num_hidden_layers=8, hidden_size=256, intermediate_size=1024, image_size=96)
    inputs = [example(ARCHITECTURE, batch=1, seed=seed, height=96, width=96) for seed in range(24)]
    references = [expected(model, one) for one in inputs]
    model.save_pretrained(tmp_path)
    with (
        edgeprism.Cluster.spawn(3, share_cores=True) as cluster,
        edgeprism.load(str(tmp_path), cluster=cluster, plan="pipeline", keep_order=True) as engine,
    ):
        engine(**inputs[0])
        assert engine.last_trace is not None and len(engine.last_trace.plan.stages) == 3
        with pytest.raises(PlanError, match="make a new engine for another plan"):
            engine.use("local")
        workers = children()
        assert len(workers) == 2
        for pid, num_left in zip(workers, (2, 1), strict=True):
            answers = [engine.submit(**one) for one in inputs]
            answers[2].result(60)
            os.kill(pid, signal.SIGKILL)
            for answer, one, reference in zip(answers, inputs, references, strict=True):
                assert difference(answer.result(60), reference, one) <= 1e-3 * float(reference["logits"].abs().max())
            said = [text for one in answers if one.trace for text in (*one.trace.failures, *one.trace.left_out)]
            assert any("connection" in text for text in said)
            assert all(one.trace is not None and not one.trace.note for one in answers)  # no stages were asked for
            engine(**inputs[0])
            assert len(engine.last_trace.plan.stages) == num_left
            assert engine.last_trace.plan.stages[-1].stop == 32


@pytest.mark.alone
def test_where_nothing_fits_any_more_requests_fail_with_what_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This device cannot hold the whole model: so once the other is gone nobody can."""
    model, inputs = make(ARCHITECTURE, num_hidden_layers=6, hidden_size=256), example(ARCHITECTURE, batch=1)
    model.save_pretrained(tmp_path)
    room = 0.7 * sum(one.nbytes for one in model.parameters())  # so each has one half, and nobody all
    monkeypatch.setattr("edgeprism.runtime.holders.memory_available_bytes", lambda: int(room))
    with edgeprism.Cluster.spawn(2) as cluster:
        with pytest.raises(
            InputError, match=r"MB of memory are missing: ViTForImageClassification has .*--plan pipeline"
        ):
            edgeprism.load(str(tmp_path), cluster=cluster, plan="local")
        with edgeprism.load(str(tmp_path), cluster=cluster, plan="pipeline") as engine:
            assert difference(engine(**inputs), expected(model, inputs), inputs) <= 1e-4
            (worker,) = children()
            answers = [engine.submit(**inputs) for _ in range(60)]
            answers[0].result(60)
            os.kill(worker, signal.SIGKILL)
            killed_s = time.monotonic()
            failed = [answer.exception(30) for answer in answers]
            assert time.monotonic() - killed_s < 5
            assert failed[-1] is not None and "device 0: " in str(failed[-1]) and "device 1" in str(failed[-1])
            assert "MB of memory are missing: pieces 0 to 24" in str(failed[-1])


def test_a_device_without_a_part_helps_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices hold the model, and this one has no memory for all of it: when the other dies the third takes over,
    for the requests under way, too."""
    model = make(ARCHITECTURE, num_hidden_layers=6, hidden_size=256)
    inputs = [example(ARCHITECTURE, batch=1, seed=seed) for seed in range(20)]
    references = [expected(model, one) for one in inputs]
    model.save_pretrained(tmp_path)
    weights = sum(one.nbytes for one in model.parameters())
    monkeypatch.setattr("edgeprism.runtime.holders.memory_available_bytes", lambda: int(0.8 * weights))
    monkeypatch.setattr("edgeprism.runtime.restage.memory_available_bytes", lambda: int(0.3 * weights))  # besides half
    plan = Plan.pipeline(parse_stages("0:0-12,1:12-24"), 3)
    with (
        edgeprism.Cluster.spawn(3, share_cores=True) as cluster,
        edgeprism.load(str(tmp_path), cluster=cluster, plan=plan) as engine,
    ):
        answers = [engine.submit(**one) for one in inputs]
        answers[1].result(60)
        os.kill(children()[0], signal.SIGKILL)
        for answer, one, reference in zip(answers, inputs, references, strict=True):
            assert difference(answer.result(60), reference, one) <= 1e-4
        engine(**inputs[0])
        assert engine.last_trace is not None
        assert [stage.device for stage in engine.last_trace.plan.stages] == [0, 2]


def test_a_device_without_memory_is_not_asked_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers and was to have a stage, but what is left of the model goes to others; requests go on overlapping."""
    model, inputs = make(ARCHITECTURE, num_hidden_layers=4), example(ARCHITECTURE, batch=1)
    model.save_pretrained(tmp_path)
    num_asked = 0

    def free_bytes(*_: object) -> dict[int, float]:
        nonlocal num_asked
        num_asked += 1
        return {1: 1e12, 2: 0.0}

    monkeypatch.setattr("edgeprism.runtime.restage.free_bytes", free_bytes)
    with (
        edgeprism.Cluster.spawn(4, share_cores=True) as cluster,
        edgeprism.load(str(tmp_path), cluster=cluster, plan="pipeline") as engine,
    ):
        engine(**inputs)
        os.kill(children()[2], signal.SIGKILL)
        engine(**inputs)
        assert engine.last_trace is not None
        assert [stage.device for stage in engine.last_trace.plan.stages] == [0, 1]
        asked_before = num_asked
        for answer in [engine.submit(**inputs) for _ in range(20)]:
            assert difference(answer.result(60), expected(model, inputs), inputs) <= 1e-4
        assert num_asked == asked_before


def test_texts_that_have_ended_are_kept_no_more(cluster: edgeprism.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of forty prompts a stage keeps the keys and values of a few at a time, and of none in the end; the texts are
    transformers' own."""
    model, num_texts = make("LlamaForCausalLM"), 40
    ids = torch.randint(5, 90, (num_texts, 9), generator=torch.Generator().manual_seed(0))
    wanted = model.generate(ids, do_sample=False, max_new_tokens=4, eos_token_id=None)
    stages, num_kept, take_in = parse_stages("0:0-4,1:4-8,2:8-12"), list[int](), Caches.of

    def watched(caches: Caches, *args: Any) -> KeyValueCache | None:
        found = take_in(caches, *args)
        num_kept.append(len(caches))
        return found

    monkeypatch.setattr(Caches, "of", watched)
    with edgeprism.load(model, cluster=cluster, plan=Plan.pipeline(stages, 3)) as engine:
        assert engine.generate(ids, max_new_tokens=4, eos_token_id=[]).tolist() == wanted.tolist()
        assert 1 < max(num_kept) <= TEXTS_A_STAGE * len(stages)
        deadline = time.monotonic() + 5.0
        while kept := [one for one in gc.get_objects() if type(one) is KeyValueCache]:
            assert time.monotonic() < deadline, len(kept)
            del kept
            gc.collect()


def test_a_long_prompt_of_many_words(cluster: edgeprism.Cluster) -> None:
    """What travels last is a token, not logits: those of this prompt would be half a gigabyte."""
    words, length = 50_000, 800
    model = make("GPT2LMHeadModel", vocab_size=words, n_positions=1024, n_embd=16, n_inner=16, num_hidden_layers=1)
    ids = torch.randint(5, words, (1, length), generator=torch.Generator().manual_seed(0))
    wanted = model.generate(ids, do_sample=False, max_new_tokens=3, eos_token_id=None)
    with edgeprism.load(model, cluster=cluster, plan=Plan.pipeline(parse_stages("0:0-2,1:2-4"), 3)) as engine:
        assert engine.generate(ids, max_new_tokens=3, eos_token_id=[]).tolist() == wanted.tolist()
        with pytest.raises(InputError, match="use a smaller micro-batch"):
            engine(input_ids=ids)


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_texts_go_on_when_a_stage_dies(architecture: str, tmp_path: Path) -> None:
    """Several in flight, keys and values of each spread over stages that hold their own pieces only: what was lost is
    computed anew, and the texts are transformers' own."""
    model, inputs = make(architecture, num_hidden_layers=4), padded(architecture, "left")
    model.save_pretrained(tmp_path)
    wanted = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    with (
        edgeprism.Cluster.spawn(3, share_cores=True) as cluster,
        edgeprism.load(str(tmp_path), cluster=cluster, plan="pipeline") as engine,
    ):
        assert engine.generate(**inputs, max_new_tokens=24).tolist() == wanted.tolist()
        assert engine.last_trace is not None and len(engine.last_trace.devices) == 3
        timer = threading.Timer(0.02, os.kill, (children()[1], signal.SIGKILL))
        timer.start()
        for _ in range(3):
            assert engine.generate(**inputs, max_new_tokens=24).tolist() == wanted.tolist()
        timer.join()
        assert len(engine.last_trace.plan.stages) == 2
