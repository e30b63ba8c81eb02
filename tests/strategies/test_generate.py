"""Generation: the greedy text is transformers' own, token for token, on any number of devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import edgeprism
from edgeprism.errors import InputError
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan, parse_stages
from tests.families import VOCABULARY, example, make, padded

ARCHITECTURE = "GPT2LMHeadModel"
MAX_DEVICES = 4
CLOSE = 1e-4  # two best logits that are nearer to each other than this may fall out either way

PLANS = {
    "local": Plan.local(),
    "2": Plan.even("sequence", 2),
    "2-kv": Plan.even("sequence", 2, CodecSpec.parse("kv:exact")),
    "3-uneven": Plan(strategy="sequence", shares=(0.6, 0.05, 0.35)),
    "3-last-one-token": Plan(strategy="sequence", shares=(0.5, 0.49, 0.01)),
    "3-last-left-out": Plan(strategy="sequence", shares=(0.5, 0.5, 0.0)),
    "3-coordinator-left-out": Plan(strategy="sequence", shares=(0.0, 0.5, 0.5)),
    "4-kv": Plan.even("sequence", 4, CodecSpec.parse("kv:exact")),
    "pipeline": Plan.pipeline(parse_stages("0:0-4,1:4-8,2:8-12"), 4),
    "pipeline-inside-of-blocks": Plan.pipeline(parse_stages("1:0-1,0:1-6,3:6-9,2:9-12"), 4, micro_batch=2),
    "pipeline-of-others": Plan.pipeline(parse_stages("2:0-9,1:9-12"), 4, micro_batch=8),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[edgeprism.Cluster]:
    """Four devices, threads of this process."""
    with edgeprism.Cluster.in_process(MAX_DEVICES) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=[ARCHITECTURE, "LlamaForCausalLM"])
def reference(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model whose greedy text depends on the whole prompt. Both have the same vocabulary and padding."""
    return make(request.param)


@pytest.fixture(scope="module")
def engine(cluster: edgeprism.Cluster, reference: PreTrainedModel) -> edgeprism.Engine:
    """The same model on the cluster."""
    return edgeprism.load(reference, cluster=cluster)


def theirs(reference: PreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """transformers' greedy ids, and for each new token the distance of its two best logits."""
    result = reference.generate(
        **inputs, do_sample=False, num_beams=1, return_dict_in_generate=True, output_logits=True, **options
    )
    best = torch.stack(result.logits, dim=1).topk(2, dim=-1).values
    return result.sequences, best[..., 0] - best[..., 1]


def check(
    engine: edgeprism.Engine, reference: PreTrainedModel, plan: Plan, inputs: dict[str, Tensor], **options: Any
) -> Tensor:
    """Asserts that the ids are the same up to the first close decision of each sample; returns transformers'."""
    engine.use(plan)
    ours = engine.generate(**inputs, **options)
    trace = engine.last_trace
    assert trace is not None and trace.failures == () and trace.plan.strategy == plan.strategy
    wanted, distance = theirs(reference, inputs, **options)
    length = inputs["input_ids"].shape[1]
    for sample in range(wanted.shape[0]):
        close = (distance[sample] < CLOSE).nonzero()
        if not len(close):
            assert ours.shape == wanted.shape and ours.dtype == wanted.dtype
        stop = length + int(close[0]) if len(close) else wanted.shape[1]
        assert ours[sample, :stop].tolist() == wanted[sample, :stop].tolist()
    return wanted


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("prompt", ["plain", "one", "left", "left-long", "no-mask"])
def test_greedy_ids(engine: edgeprism.Engine, reference: PreTrainedModel, prompt: str, plan: str) -> None:
    """Prompts of one length, a single one, padded on the left with a mask, and with padding ids but no mask."""
    inputs = {
        "plain": lambda: example(ARCHITECTURE),
        "one": lambda: example(ARCHITECTURE, batch=1, length=5),
        "left": lambda: padded(ARCHITECTURE, "left"),
        "left-long": lambda: padded(ARCHITECTURE, "left", (20, 3, 1), length=20),
        "no-mask": lambda: {"input_ids": padded(ARCHITECTURE, "left")["input_ids"]},
    }[prompt]()
    wanted = check(engine, reference, PLANS[plan], inputs, max_new_tokens=16)
    new = wanted[:, inputs["input_ids"].shape[1] :]
    assert len(set(new.flatten().tolist())) > 4, "a text that repeats one token proves little"


@pytest.mark.parametrize("plan", ["local", "2-kv", "3-uneven"])
def test_padding_elsewhere(engine: edgeprism.Engine, reference: PreTrainedModel, plan: str) -> None:
    """Padding on the right or in the middle, unusual for GPT-2, counts positions as transformers does."""
    check(engine, reference, PLANS[plan], padded(ARCHITECTURE, "right"), max_new_tokens=6)
    inputs = {**example(ARCHITECTURE), "attention_mask": torch.ones(3, 13, dtype=torch.long)}
    inputs["attention_mask"][1, 4:9] = 0
    check(engine, reference, PLANS[plan], inputs, max_new_tokens=6)


@pytest.mark.parametrize("plan", ["local", "2", "3-uneven", "4-kv"])
def test_stops(engine: edgeprism.Engine, reference: PreTrainedModel, plan: str) -> None:
    """A sample that meets a stop early is filled with padding while the others go on; when all have, decoding ends."""
    inputs = padded(ARCHITECTURE, "left")
    free, _ = theirs(reference, inputs, max_new_tokens=12)
    new = free[:, 13:]
    early = int(new[1, 2])
    wanted = check(engine, reference, PLANS[plan], inputs, max_new_tokens=12, eos_token_id=early)
    assert wanted[1, 16:].tolist() == [3] * (wanted.shape[1] - 16) and wanted.shape[1] > 16
    stops = [int(new[sample, 3]) for sample in range(3)]
    wanted = check(engine, reference, PLANS[plan], inputs, max_new_tokens=12, eos_token_id=stops)
    assert wanted.shape[1] <= 13 + 4
    wanted = check(engine, reference, PLANS[plan], inputs, max_new_tokens=12, eos_token_id=early, pad_token_id=7)
    assert 7 in wanted[1, 16:].tolist()


@pytest.mark.parametrize("plan", ["local", "2", "3-uneven"])
def test_first_token_ends_everything(engine: edgeprism.Engine, reference: PreTrainedModel, plan: str) -> None:
    """The stop may be the very first token of a text."""
    inputs = example(ARCHITECTURE, batch=1)
    free, _ = theirs(reference, inputs, max_new_tokens=1)
    wanted = check(engine, reference, PLANS[plan], inputs, max_new_tokens=9, eos_token_id=int(free[0, -1]))
    assert wanted.shape[1] == 14


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("max_new_tokens", [1, 2, 28])
def test_lengths(engine: edgeprism.Engine, reference: PreTrainedModel, plan: str, max_new_tokens: int) -> None:
    """One new token needs no cache; 13 + 28 fill the 40 positions of the model, for the last token is never read."""
    wanted = check(engine, reference, PLANS[plan], example(ARCHITECTURE), max_new_tokens=max_new_tokens)
    assert wanted.shape[1] == 13 + max_new_tokens


@pytest.mark.parametrize("padding_id", [None, 2])
def test_padding_id_that_is_none_or_the_stop(cluster: edgeprism.Cluster, padding_id: int | None) -> None:
    """Without a padding id of its own, as GPT-2 is published, nothing is taken for padding unless a mask says so."""
    reference = make(ARCHITECTURE, pad_token_id=padding_id)
    engine = edgeprism.load(reference, cluster=cluster)
    ids = example(ARCHITECTURE)["input_ids"]
    ids[0, :4] = 2  # the stop's id, which may be padding or not
    check(engine, reference, PLANS["2"], {"input_ids": ids}, max_new_tokens=8)
    check(engine, reference, PLANS["2"], {"input_ids": ids, "attention_mask": ids.ne(2).long()}, max_new_tokens=8)


def test_calls_do_not_disturb_each_other(cluster: edgeprism.Cluster, reference: PreTrainedModel) -> None:
    """Forward passes and generations alternate; each gives what it gives alone."""
    engine = edgeprism.load(reference, cluster=cluster, plan="sequence")
    inputs = padded(ARCHITECTURE, "left")
    logits = engine(**inputs).logits
    ids = engine.generate(**inputs, max_new_tokens=5)
    assert torch.equal(engine(**inputs).logits, logits)
    assert torch.equal(engine.generate(**inputs, max_new_tokens=5), ids)


@pytest.mark.parametrize("architecture", ["GPT2Model", "LlamaModel", "BertForMaskedLM", "ViTModel"])
def test_models_that_do_not_generate(architecture: str) -> None:
    """Refused by name."""
    with edgeprism.load(make(architecture)) as engine, pytest.raises(InputError, match=f"{architecture} does not gen"):
        engine.generate(torch.tensor([[4, 5]]))


@pytest.mark.parametrize(
    ("length", "max_new_tokens", "words"),
    [
        (13, 29, "13 tokens and 29 new ones need 41 positions; this model has 40"),
        (13, 0, "max_new_tokens must be at least 1"),
        (13, -1, "max_new_tokens must be at least 1"),
        (41, 1, "this model has 40"),
    ],
)
def test_lengths_that_cannot_be(
    cluster: edgeprism.Cluster, reference: PreTrainedModel, length: int, max_new_tokens: int, words: str
) -> None:
    """Too long for the table of positions, or nothing to do."""
    engine = edgeprism.load(reference, cluster=cluster, plan="sequence")
    with pytest.raises(InputError, match=words):
        engine.generate(**example(ARCHITECTURE, length=length), max_new_tokens=max_new_tokens)


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": torch.tensor([[4, VOCABULARY]])},
        {"input_ids": torch.tensor([4, 5])},
        {"input_ids": torch.empty(1, 0, dtype=torch.long)},
        {"input_ids": torch.tensor([[4, 5]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)},
    ],
)
def test_bad_prompts(cluster: edgeprism.Cluster, reference: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    """Ids outside the vocabulary, a missing axis, no token at all, a mask of another shape."""
    engine = edgeprism.load(reference, cluster=cluster, plan="sequence")
    with pytest.raises(InputError):
        engine.generate(**inputs, max_new_tokens=2)
    assert engine.generate(torch.tensor([[4, 5, 6, 7]]), max_new_tokens=2).shape == (1, 6)
