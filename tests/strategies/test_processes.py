"""The first law on real worker processes, over encrypted loopback sockets: a subset that covers families and codecs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import edgeprism
from edgeprism.models.registry import adapt
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.sequence.partition import token_bounds
from tests.families import at_real_tokens, difference, example, expected, is_text, make, padded
from tests.strategies.dense import dense_generate, dense_rows

TOLERANCE = 1e-4
FAMILIES = (
    "ViTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "Dinov2ForImageClassification",
    "BertModel",
    "RobertaForSequenceClassification",
    "DistilBertForMaskedLM",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
)
SHARES = {2: ((0.5, 0.5), (0.02, 0.98)), 3: ((1 / 3,) * 3, (0.2, 0.5, 0.3))}


@pytest.fixture(scope="module", params=[2, 3])
def cluster(request: pytest.FixtureRequest) -> Iterator[edgeprism.Cluster]:
    """This process and one or two children, on as many cores as there are."""
    with edgeprism.Cluster.spawn(request.param, share_cores=True) as cluster:
        assert len(cluster.pids) == request.param - 1
        yield cluster


def run(engine: edgeprism.Engine, plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
    """One request; it fails unless every device of the plan took part."""
    engine.use(plan)
    output = engine(**inputs)
    trace = engine.last_trace
    assert trace is not None and trace.failures == () and trace.plan == plan
    assert [device.device for device in trace.devices] == list(range(plan.num_devices))
    return dict(output)


def batches(architecture: str) -> list[dict[str, Any]]:
    """Unpadded, and padded on either side where that can be."""
    texts = [padded(architecture, "left"), padded(architecture, "right")] if is_text(architecture) else []
    return [example(architecture), *texts]


def directory_of(architecture: str, path: Path) -> tuple[PreTrainedModel, str]:
    """A model and where it is saved."""
    model = make(architecture)
    model.save_pretrained(path)
    return model, str(path)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_exact_plans(cluster: edgeprism.Cluster, architecture: str, tmp_path: Path) -> None:
    """Rows or keys and values, even and uneven partitions, and the batch split: transformers' own output."""
    reference, directory = directory_of(architecture, tmp_path)
    with edgeprism.load(directory, cluster=cluster) as engine:
        assert engine.devices == tuple(range(cluster.num_devices))
        plans = [
            Plan(strategy=strategy, shares=shares, codec=CodecSpec.parse(codec))
            for shares in SHARES[cluster.num_devices]
            for strategy, codec in (("sequence", "exact"), ("sequence", "kv:exact"), ("sequence", "means:1"))
        ]
        for plan in [*plans, Plan.even("replica", cluster.num_devices)]:
            for inputs in batches(architecture):
                gap = difference(run(engine, plan, inputs), expected(reference, inputs), inputs)
                assert gap <= TOLERANCE, (plan, sorted(inputs))


@pytest.mark.parametrize("codec", ["kv:int8", "means:2+int4"])
@pytest.mark.parametrize(
    "architecture", ["ViTForImageClassification", "BertModel", "GPT2LMHeadModel", "LlamaForCausalLM"]
)
def test_lossy_codecs(cluster: edgeprism.Cluster, architecture: str, codec: str, tmp_path: Path) -> None:
    """What arrives over the wire is what the dense reference computes with; a value on the edge between two codes may
    fall out either way, so a twentieth of the codec's own loss is allowed."""
    reference, directory = directory_of(architecture, tmp_path)
    shares = SHARES[cluster.num_devices][0]
    model = adapt(reference)
    with edgeprism.load(directory, cluster=cluster) as engine:
        for inputs in batches(architecture):
            output = run(engine, Plan(strategy="sequence", shares=shares, codec=CodecSpec.parse(codec)), inputs)
            tokens = model.tokens(inputs)
            with torch.no_grad():
                dense = dense_rows(model, tokens, token_bounds(tokens.num_tokens, shares), codec)
                whole = [(0, tokens.num_tokens)]
                wanted = model.head(tokens.reads.join([tokens.reads.take(dense, *whole[0])], whole))
            field = "last_hidden_state" if architecture == "BertModel" else "logits"
            ours, theirs = (at_real_tokens(value[field], inputs) for value in (output, wanted))
            loss = (ours - at_real_tokens(expected(reference, inputs)[field], inputs)).abs().mean()
            assert loss > 10 * TOLERANCE and (ours - theirs).abs().mean() <= loss / 20


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "Qwen2ForCausalLM"])
def test_generation(cluster: edgeprism.Cluster, architecture: str, tmp_path: Path) -> None:
    """A prompt prefilled by all processes and decoded by the last one gives transformers' greedy text."""
    reference, directory = directory_of(architecture, tmp_path)
    with edgeprism.load(directory, cluster=cluster) as engine:
        for codec in ("exact", "kv:exact"):
            for inputs in (example(architecture), padded(architecture, "left")):
                engine.use("sequence", codec)
                ours = engine.generate(**inputs, max_new_tokens=10)
                trace = engine.last_trace
                assert trace is not None and trace.failures == () and trace.plan.num_devices == cluster.num_devices
                result = reference.generate(  # type: ignore[operator]
                    **inputs, max_new_tokens=10, do_sample=False, return_dict_in_generate=True, output_logits=True
                )
                best = torch.stack(result.logits).topk(2).values
                assert float((best[..., 0] - best[..., 1]).min()) > TOLERANCE, "choose another seed: two logits tie"
                assert torch.equal(ours, result.sequences)


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_generation_with_compressed_context(cluster: edgeprism.Cluster, architecture: str, tmp_path: Path) -> None:
    """Over the wire, too, the text is the dense reference's."""
    reference, directory = directory_of(architecture, tmp_path)
    inputs = padded(architecture, "left", (20, 6), length=20)
    bounds = token_bounds(20, (1 / cluster.num_devices,) * cluster.num_devices)
    with torch.no_grad():
        wanted, distance = dense_generate(
            adapt(reference), inputs["input_ids"], inputs["attention_mask"], bounds, "means:4", 8
        )
    assert distance.min() > TOLERANCE, "choose another seed: two logits tie"
    with edgeprism.load(directory, cluster=cluster, plan="sequence", codec="means:4") as engine:
        ours = engine.generate(**inputs, max_new_tokens=8)
        assert engine.last_trace is not None and engine.last_trace.failures == ()
    assert ours.tolist() == wanted.tolist()


def test_a_loaded_model_in_bfloat16(cluster: edgeprism.Cluster) -> None:
    """A model that was given loaded reaches the processes too, in its own dtype, and is no worse than transformers'."""
    rounded = make("BertForSequenceClassification").to(torch.bfloat16)
    single = make("BertForSequenceClassification")
    single.load_state_dict({name: value.float() for name, value in rounded.state_dict().items()})
    inputs = padded("BertForSequenceClassification", "right")
    exact, theirs = expected(single, inputs)["logits"], expected(rounded, inputs)["logits"]
    with edgeprism.load(rounded, cluster=cluster) as engine:
        for plan in (Plan.even("sequence", cluster.num_devices), Plan.even("replica", cluster.num_devices)):
            ours = run(engine, plan, inputs)["logits"]
            assert ours.dtype == torch.bfloat16
            own, other = ((value.float() - exact).square().mean().sqrt() for value in (ours, theirs))
            assert own <= 1.5 * other + 5e-3
        assert engine.last_trace is not None and engine.last_trace.dtype == "bfloat16"


def test_children_end_with_the_cluster() -> None:
    """Closing the cluster leaves no process behind."""
    with edgeprism.Cluster.spawn(2, share_cores=True) as cluster:
        pids = cluster.pids
        os.kill(pids[0], 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
