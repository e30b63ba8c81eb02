"""Generation with compressed context: the ids that a dense reference in one process chooses with the same mask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import edgeprism
from edgeprism.errors import PlanError
from edgeprism.models.registry import adapt
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.sequence.partition import token_bounds
from tests.families import example, make, padded
from tests.strategies.dense import dense_generate

ARCHITECTURES = ("GPT2LMHeadModel", "LlamaForCausalLM")
CODECS = ("means:4", "means:L=2+int8", "int8", "kv:int4", "kv:means:2")
SHARES = {"2": (0.5, 0.5), "3-uneven": (0.35, 0.4, 0.25), "3-coordinator-left-out": (0.0, 0.4, 0.6)}
NEW_TOKENS = 8
CLOSE = 1e-4  # two best logits that are nearer to each other than this may fall out either way


@pytest.fixture(scope="module")
def cluster() -> Iterator[edgeprism.Cluster]:
    """Three devices, threads of this process."""
    with edgeprism.Cluster.in_process(3) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=ARCHITECTURES)
def engine(request: pytest.FixtureRequest, cluster: edgeprism.Cluster) -> edgeprism.Engine:
    """In float64, where rounding to integers falls out alike on both sides."""
    return edgeprism.load(make(request.param).double(), cluster=cluster)


def prompts(engine: edgeprism.Engine, padding: str) -> dict[str, Tensor]:
    """Two texts of 20 tokens, or the second one of 6 with padding on its left."""
    architecture = engine.spec.architecture
    if padding == "plain":
        return example(architecture, batch=2, length=20)
    return padded(architecture, padding, (20, 6), length=20)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("padding", ["plain", "left"])
def test_equals_the_dense_reference(engine: edgeprism.Engine, padding: str, codec: str, shares: str) -> None:
    """Earlier partitions stay what the codec made of them, with their counts; all that is newer stays exact."""
    inputs, plan = (
        prompts(engine, padding),
        Plan(strategy="sequence", shares=SHARES[shares], codec=CodecSpec.parse(codec)),
    )
    engine.use(plan)
    ours = engine.generate(**inputs, max_new_tokens=NEW_TOKENS)
    trace = engine.last_trace
    assert trace is not None and trace.failures == () and trace.plan == plan
    bounds = token_bounds(20, [share for share in plan.shares if share])
    model = adapt(make(engine.spec.architecture).double())
    with torch.no_grad():
        wanted, distance = dense_generate(
            model, inputs["input_ids"], inputs.get("attention_mask"), bounds, codec, NEW_TOKENS
        )
    assert distance.min() > CLOSE, "choose another seed: two logits tie"
    assert ours.tolist() == wanted.tolist()


def test_a_codec_changes_the_text(engine: edgeprism.Engine) -> None:
    """What the codec loses is visible in the text: the comparison above is not with exact generation."""
    inputs = prompts(engine, "left")
    texts = {}
    for codec in ("exact", "means:L=2+int8"):
        engine.use("sequence", codec)
        texts[codec] = engine.generate(**inputs, max_new_tokens=NEW_TOKENS)
    assert not torch.equal(texts["exact"], texts["means:L=2+int8"])


def test_text_ends_at_a_stop(engine: edgeprism.Engine) -> None:
    """A sample that meets a stop is filled with padding, as without a codec; the others go on."""
    inputs = prompts(engine, "left")
    engine.use("sequence", "means:4")
    free = engine.generate(**inputs, max_new_tokens=NEW_TOKENS)
    stop = int(free[1, 22])
    ours = engine.generate(**inputs, max_new_tokens=NEW_TOKENS, eos_token_id=stop)
    assert ours[1, :23].tolist() == free[1, :23].tolist()
    assert set(ours[1, 23:].tolist()) <= {3}


def test_codecs_that_cannot_be_used(engine: edgeprism.Engine) -> None:
    """More means than a partition has tokens, and a batch that is split: refused before anything is sent."""
    inputs = prompts(engine, "plain")
    engine.use("sequence", "means:L=9")
    with pytest.raises(PlanError, match="9 means of a partition of 6 tokens"):
        engine.generate(**inputs)
    engine.use("replica")
    with pytest.raises(PlanError, match="use local, sequence or pipeline"):
        engine.generate(**inputs)
