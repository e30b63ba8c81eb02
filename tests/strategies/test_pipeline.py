"""Stages of a pipeline: at every cut what one device computes, what travels counted, cuts where the work is even."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeprism.errors import PlanError
from edgeprism.models.registry import ADAPTORS, adapt
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.cost import whole_model_macs
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan, Stage, parse_stages
from edgeprism.strategies.pipeline.forward import Passage, enter, run, run_stages
from edgeprism.strategies.pipeline.partition import AS_EVEN, cut_bytes, even, piece_macs, piece_values, piece_work
from edgeprism.strategies.registry import count
from tests.families import NUM_LAYERS, difference, example, expected, is_text, make, padded

NUM_PIECES = 4 * NUM_LAYERS
WIDTH = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
VIT = ModelSpec.from_config(
    {"architectures": ["ViTForImageClassification"], "model_type": "vit", **WIDTH, "image_size": 224, "patch_size": 16,
     "num_channels": 3, "num_labels": 10}
)  # fmt: skip


def two_stages(cut: int) -> tuple[Stage, ...]:
    """One cut."""
    return Stage(device=0, start=0, stop=cut), Stage(device=1, start=cut, stop=NUM_PIECES)


@pytest.mark.parametrize("padding", ["plain", "left"])
@pytest.mark.parametrize("architecture", sorted(ADAPTORS))
def test_every_cut_gives_the_models_answers(architecture: str, padding: str) -> None:
    """The first law at each of four cut points of each block, nothing rounded."""
    is_padded = padding == "left" and is_text(architecture)
    model, inputs = make(architecture), padded(architecture, "left") if is_padded else example(architecture)
    reference, adapted = expected(model, inputs), adapt(model)
    with torch.no_grad():
        for cut in range(1, NUM_PIECES):
            output = run_stages(adapted, inputs, two_stages(cut), EXACT)
            assert difference(output, reference, inputs) <= 1e-4, cut


@pytest.mark.parametrize(("codec", "most"), [("bfloat16", 0.03), ("int8", 0.2), ("int4", 3.0)])
@pytest.mark.parametrize(
    "architecture", ["ViTForImageClassification", "BertForSequenceClassification", "GPT2LMHeadModel"]
)
def test_rounded_rows_change_answers_little(architecture: str, codec: str, most: float) -> None:
    """At every cut, though these weights are drawn wide; and they do change them, so they were rounded."""
    model, inputs = make(architecture), example(architecture)
    reference, adapted = expected(model, inputs), adapt(model)
    worst = 0.0
    with torch.no_grad():
        for cut in range(1, NUM_PIECES):
            output = run_stages(adapted, inputs, two_stages(cut), CodecSpec.parse(codec))
            worst = max(worst, difference(output, reference, inputs))
    assert 1e-5 < worst <= most


@pytest.mark.parametrize(("codec", "part"), [("bfloat16", 1 / 256), ("int8", 1 / 254), ("int4", 1 / 14)])
def test_what_travels_is_off_by_no_more_than_is_said(codec: str, part: float) -> None:
    """bfloat16: of each value; integers: of the largest value of its row, half a step."""
    model, inputs = make("BertForSequenceClassification"), example("BertForSequenceClassification")
    adapted = adapt(model)
    with torch.no_grad():
        flow = run(adapted, enter(adapted, inputs), 0, 7)
        assert flow.side is not None
        passage = Passage(
            adapted, CodecSpec.parse(codec), 7, batch=flow.rows.shape[0], num_tokens=flow.num_tokens, reads=flow.reads
        )
        for got, was in zip(passage.unpack(passage.pack(flow)), (flow.rows, flow.side), strict=True):
            assert got is not None
            largest = was.abs() if codec == "bfloat16" else was.abs().amax(-1, keepdim=True)
            assert bool(((got - was).abs() <= part * largest * (1 + 1e-3)).all())


@pytest.mark.parametrize("codec", ["exact", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("architecture", sorted(ADAPTORS))
def test_bytes_at_each_cut_are_those_that_travel(architecture: str, codec: str) -> None:
    """Counted without torch, and as they are packed; behind the last attention only of the rows that the head reads."""
    model, inputs = make(architecture), example(architecture)
    adapted = adapt(model)
    with torch.no_grad():
        flow = enter(adapted, inputs)
        batch = flow.rows.shape[0]
        spec = CodecSpec.parse(codec)
        counted = cut_bytes(adapted.spec, spec, num_tokens=flow.num_tokens, batch=batch, element_bytes=4)
        for cut in range(1, NUM_PIECES):
            flow = run(adapted, flow, cut - 1, cut)
            passage = Passage(adapted, spec, cut, batch=batch, num_tokens=flow.num_tokens, reads=flow.reads)
            packed = passage.pack(flow)
            assert tuple((one.dtype, tuple(one.shape)) for one in packed) == passage.layout
            num_bytes = sum(one.nbytes for one in packed)
            assert num_bytes == counted[cut]


@pytest.mark.parametrize("architecture", sorted(ADAPTORS))
def test_pieces_add_up_to_the_model(architecture: str) -> None:
    """Multiply-accumulates exactly; weights nearly, poolers aside, which weigh much in so small a model."""
    model = make(architecture)
    spec = adapt(model).spec
    num_tokens = spec.max_tokens
    assert sum(piece_macs(spec, num_tokens)) == whole_model_macs(spec, num_tokens)
    assert sum(piece_values(spec)) == pytest.approx(sum(one.numel() for one in model.parameters()), rel=0.12)


def test_two_halves_by_hand() -> None:
    """ViT-B/16 cut in the middle: see `strategies.pipeline.cost`."""
    plan = Plan.pipeline(parse_stages("0:0-24,1:24-48"), 2)
    cost = count(VIT, plan, num_tokens=197, batch=2, element_bytes=4)
    half = 6 * 1_453_954_560
    assert [device.macs for device in cost.devices] == [2 * (half + 115_605_504), 2 * half]
    assert [device.bytes_sent for device in cost.devices] == [2 * 605_184, 2 * 10 * 4]
    assert piece_values(VIT)[0] > piece_values(VIT)[4]


def test_stages_that_end_elsewhere_are_refused() -> None:
    """A pipeline of another model."""
    with pytest.raises(PlanError, match="end at piece 40, and ViTForImageClassification has 48"):
        count(VIT, Plan.pipeline(parse_stages("0:0-24,1:24-40"), 2), num_tokens=197, batch=1, element_bytes=4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0:0-4,1:6-12", "skips pieces: the next one is 4"),
        ("0:0-4,1:3-12", "repeats pieces"),
        ("0:0-4,1:9-4", "skips pieces"),
        ("0:0-4,0:4-12", "a device has two stages"),
        ("0:0-4,5:4-12", "on device 5, and there are 2"),
        ("0:0-0", "hold no piece"),
        ("1:0-12,0:12-12", "is not the last"),
        ("0:0-0,1:0-12", "nor here first"),
    ],
)
def test_stages_that_cannot_be_are_refused(text: str, words: str) -> None:
    """In words."""
    with pytest.raises(PlanError, match=words):
        Plan.pipeline(parse_stages(text), 2)


@pytest.mark.parametrize("text", ["", "0:0-4;1:4-8", "0:0", "a:0-4", "0:-1-4"])
def test_text_that_is_no_stages(text: str) -> None:
    """Says how they are written."""
    with pytest.raises(PlanError, match="0:0-24,1:24-48"):
        parse_stages(text)


@pytest.mark.parametrize("codec", ["means:4", "kv:exact", "pq:8", "delta+rot+int4"])
def test_codecs_of_shared_tokens_are_refused(codec: str) -> None:
    """Between stages every row travels."""
    with pytest.raises(PlanError, match="between stages travel"):
        Plan.pipeline(parse_stages("0:0-24,1:24-48"), 2, CodecSpec.parse(codec))


def test_a_pipeline_plan_survives_json() -> None:
    """With its stages and micro-batches; other plans say nothing of them."""
    plan = Plan.pipeline(parse_stages("1:0-24,0:24-24,2:24-48"), 3, CodecSpec.parse("bfloat16"), micro_batch=8)
    assert Plan.from_json(plan.to_json()) == plan
    assert "stages" not in Plan.local().to_json()
    with pytest.raises(PlanError, match="stages must be a list"):
        Plan.from_json({**plan.to_json(), "stages": "0:0-4"})
    with pytest.raises(PlanError, match="micro_batch must be a count"):
        Plan.from_json({**plan.to_json(), "micro_batch": 1.5})
    with pytest.raises(PlanError, match="at least one sample"):
        Plan.from_json({**plan.to_json(), "micro_batch": 0})


@given(
    st.sampled_from(sorted(ADAPTORS)),
    st.integers(2, 60),
    st.lists(st.floats(0.01, 4.0), min_size=1, max_size=3),
)
def test_no_cut_is_better(architecture: str, num_tokens: int, shares: list[float]) -> None:
    """Every device has a piece, and the one that takes longest for its share takes hardly longer than with any other
    cuts."""
    spec = adapt(make(architecture)).spec
    macs = piece_work(spec, num_tokens)
    stages = even(spec, num_tokens, list(range(len(shares))), shares)
    assert [stage.start for stage in stages] == [0, *(stage.stop for stage in stages[:-1])]
    assert stages[-1].stop == len(macs) and all(stage.stop > stage.start for stage in stages)

    def longest(cuts: Sequence[int]) -> float:
        bounds = [0, *cuts, len(macs)]
        return max(sum(macs[a:b]) / share for a, b, share in zip(bounds, bounds[1:], shares, strict=False))

    least = min(map(longest, itertools.combinations(range(1, len(macs)), len(shares) - 1)))
    assert longest([stage.stop for stage in stages[:-1]]) <= least * (1 + AS_EVEN) ** 2


def test_a_share_that_is_less_than_a_piece_empties_nobody_else() -> None:
    """Of ViT-B/16: the first has one piece, three hundredths of the work; the two others have halves of the rest."""
    work = piece_work(VIT, 197)
    stages = even(VIT, 197, [0, 1, 2], [1.0, 50.0, 50.0])
    parts = [sum(work[stage.start : stage.stop]) / sum(work) for stage in stages]
    assert parts[0] < 0.05 and parts[1:] == pytest.approx([0.48, 0.48], abs=0.03)


def test_the_last_block_and_the_head_by_hand() -> None:
    """ViT-B/16: keys and values of 197 rows, the rest of 32, for reading the weights. GPT-2: every row, and
    for each a number for each of its words."""
    d = 768
    attention = 2 * 197 * d * d + 32 * d * d + 2 * 32 * 197 * d
    assert piece_work(VIT, 197)[-4:] == (attention, 32 * d * d, 32 * 4 * d * d, 32 * 4 * d * d)
    gpt2 = adapt(make("GPT2LMHeadModel")).spec
    head = 10 * gpt2.hidden_size * gpt2.vocab_size
    assert piece_work(gpt2, 10) == (*piece_macs(gpt2, 10)[:-1], piece_macs(gpt2, 10)[-1] + head)


def test_an_mlp_is_not_cut_for_next_to_nothing() -> None:
    """ViT-B/16 over two: 22 and 23 are nearly as even, and five times as much travels at 23."""
    assert [stage.stop for stage in even(VIT, 197, [0, 1])] == [22, 48]
