"""The first law: any strategy, on any family, on any split, equals the model on one device, as transformers runs it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import edgeprism
from edgeprism.models.registry import ADAPTORS
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from tests.families import WIDTH, difference, example, expected, is_text, make, padded

TOLERANCE = 1e-4  # float32; the outputs are of order one
MAX_DEVICES = 5

ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5},
    {
        "rope_type": "llama3",
        "rope_theta": 100.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 20,
    },
    {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 10},
]

# Configurations of a family that change what a block or a head computes.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTModel-no-biases": ("ViTModel", {"qkv_bias": False}),
    "ViTForImageClassification-relu": ("ViTForImageClassification", {"hidden_act": "relu"}),
    "Dinov2Model-swiglu": ("Dinov2Model", {"use_swiglu_ffn": True, "qkv_bias": False}),
    "BertModel-tanh-gelu": ("BertModel", {"hidden_act": "gelu_new"}),
    "DistilBertModel-sinusoidal": ("DistilBertModel", {"sinusoidal_pos_embds": True}),
    "GPT2Model-scaled-by-layer": ("GPT2Model", {"scale_attn_by_inverse_layer_idx": True}),
    "GPT2LMHeadModel-unscaled": ("GPT2LMHeadModel", {"scale_attn_weights": False, "initializer_range": 0.1}),
    "LlamaModel-no-groups": ("LlamaModel", {"num_key_value_heads": None, "hidden_act": "gelu"}),
    "LlamaForCausalLM-one-key-head": ("LlamaForCausalLM", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "LlamaModel-biases": ("LlamaModel", {"attention_bias": True, "mlp_bias": True}),
    **{f"LlamaModel-rope-{rope['rope_type']}": ("LlamaModel", {"rope_parameters": rope}) for rope in ROPES},
}
MODELS = {**{architecture: (architecture, {}) for architecture in ADAPTORS}, **VARIANTS}

# (strategy, shares, codec). A share of 0.01 is one token; a share of 0 leaves a device out.
PLANS: dict[str, tuple[str, tuple[float, ...], str]] = {
    "local": ("local", (1.0,), "exact"),
    "sequence-1": ("sequence", (1.0,), "exact"),
    "sequence-2": ("sequence", (1 / 2,) * 2, "exact"),
    "sequence-2-kv": ("sequence", (1 / 2,) * 2, "kv:exact"),
    "sequence-2-one-token-first": ("sequence", (0.01, 0.99), "exact"),
    "sequence-2-one-token-last": ("sequence", (0.99, 0.01), "kv:exact"),
    "sequence-2-uneven": ("sequence", (0.7, 0.3), "exact"),
    "sequence-3": ("sequence", (1 / 3,) * 3, "exact"),
    "sequence-3-one-left-out": ("sequence", (0.4, 0.0, 0.6), "exact"),
    "sequence-3-coordinator-left-out": ("sequence", (0.0, 0.4, 0.6), "kv:exact"),
    "sequence-3-one-token-between": ("sequence", (0.5, 0.01, 0.49), "kv:exact"),
    "sequence-3-uneven": ("sequence", (0.2, 0.5, 0.3), "kv:exact"),
    "sequence-4": ("sequence", (1 / 4,) * 4, "kv:exact"),
    "sequence-5": ("sequence", (1 / 5,) * 5, "exact"),
    "sequence-5-uneven": ("sequence", (0.1, 0.35, 0.05, 0.3, 0.2), "exact"),
    "sequence-5-means-of-one-token": ("sequence", (0.1, 0.35, 0.05, 0.3, 0.2), "means:1"),
    "sequence-3-kv-means-of-one-token": ("sequence", (0.2, 0.5, 0.3), "kv:means:1"),
    "replica-2": ("replica", (1 / 2,) * 2, "exact"),
    "replica-3-uneven": ("replica", (0.6, 0.0, 0.4), "exact"),
    "replica-5-more-than-samples": ("replica", (1 / 5,) * 5, "exact"),
    "replica-2-all-elsewhere": ("replica", (0.0, 0.6, 0.4), "exact"),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[edgeprism.Cluster]:
    """Five devices, threads of this process."""
    with edgeprism.Cluster.in_process(MAX_DEVICES) as cluster:
        yield cluster


class Subject:
    """One model: transformers' own, and ours on the cluster."""

    def __init__(self, cluster: edgeprism.Cluster, reference: PreTrainedModel) -> None:
        self.reference, self.cluster = reference, cluster
        self.engine = edgeprism.load(reference, cluster=cluster)

    def gap(self, plan: Plan, inputs: dict[str, Any]) -> float:
        """Largest difference at real tokens between ours under ``plan`` and transformers'."""
        wanted = expected(self.reference, inputs)
        assert max(float(value.abs().max()) for value in wanted.values()) > 0.5, "outputs of order one"
        return difference(self.run(plan, inputs), wanted, inputs)

    def run(self, plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
        """Ours; it fails unless the plan was carried out as given, on all of its devices."""
        if self.engine.is_closed:  # another test had the cluster in between
            self.engine = edgeprism.load(self.reference, cluster=self.cluster)
        self.engine.use(plan)
        output = self.engine(**inputs)
        trace = self.engine.last_trace
        assert trace is not None and trace.failures == ()
        took_part = [device.device for device in trace.devices]
        if sum(share > 0 for share in plan.shares) > 1:
            assert trace.plan.strategy == plan.strategy and trace.plan.codec == plan.codec
            if plan.strategy == "sequence":
                assert took_part == [device for device, share in enumerate(plan.shares) if share > 0 or device == 0]
        else:
            assert trace.plan.strategy == "local" and took_part == [0]
        return dict(output)


class Subjects:
    """The subject that was asked for last: tests of one model follow each other, and making it takes longer than they
    do. (A fixture that is one of several parameters is made anew for each test, whatever its scope.)"""

    def __init__(self, cluster: edgeprism.Cluster) -> None:
        self._cluster, self._name = cluster, ""
        self._subject: Subject | None = None

    def named(self, name: str) -> Subject:
        """That of a model of MODELS."""
        if self._subject is None or name != self._name:
            architecture, changes = MODELS[name]
            self._name, self._subject = name, Subject(self._cluster, make(architecture, **changes))
        return self._subject


@pytest.fixture(scope="module")
def subjects(cluster: edgeprism.Cluster) -> Subjects:
    """For all tests here."""
    return Subjects(cluster)


@pytest.fixture
def subject(subjects: Subjects, request: pytest.FixtureRequest) -> Subject:
    """The model named by the test's parameter."""
    return subjects.named(request.param)


def plan_of(name: str) -> Plan:
    """One of PLANS."""
    strategy, shares, codec = PLANS[name]
    return Plan(strategy=strategy, shares=shares, codec=CodecSpec.parse(codec))


FEW_PLANS = ("local", "sequence-2-kv", "sequence-3-uneven", "sequence-5-means-of-one-token")


def _cases() -> list[Any]:
    """Every architecture under every plan, text also padded on either side; the variants under a few plans."""
    cases = []
    for name, (architecture, _) in MODELS.items():
        for plan in FEW_PLANS if name in VARIANTS else PLANS:
            for padding in ("plain", "left", "right") if is_text(architecture) else ("plain",):
                cases.append(pytest.param(name, plan, padding, id=f"{name}-{plan}-{padding}"))
    return cases


@pytest.mark.parametrize(("subject", "plan", "padding"), _cases(), indirect=["subject"])
def test_equals_one_device(subject: Subject, plan: str, padding: str) -> None:
    """Every field of the output is within 1e-4 of transformers' own, at real tokens."""
    architecture = type(subject.reference).__name__
    inputs = example(architecture) if padding == "plain" else padded(architecture, padding)
    assert subject.gap(plan_of(plan), inputs) <= TOLERANCE


INPUT_PLANS = ("local", "sequence-3-uneven", "sequence-2", "replica-2")


@pytest.mark.parametrize("plan", INPUT_PLANS)
@pytest.mark.parametrize(
    "subject",
    [
        *("BertModel", "RobertaForSequenceClassification", "DistilBertModel", "GPT2LMHeadModel"),
        *("LlamaModel", "Qwen2ForCausalLM"),
    ],
    indirect=True,
)
def test_given_positions(subject: Subject, plan: str) -> None:
    """Given position_ids are used, per sample or one row for all samples."""
    architecture = type(subject.reference).__name__
    generator = torch.Generator().manual_seed(3)
    for rows in (3, 1):
        positions = torch.randint(2, 40, (rows, 13), generator=generator)
        inputs = {**padded(architecture, "left"), "position_ids": positions}
        assert subject.gap(plan_of(plan), inputs) <= TOLERANCE


@pytest.mark.parametrize("plan", INPUT_PLANS)
@pytest.mark.parametrize("subject", ["BertForMaskedLM", "RobertaModel", "GPT2Model"], indirect=True)
def test_given_token_types(subject: Subject, plan: str) -> None:
    """Given token_type_ids are used."""
    architecture = type(subject.reference).__name__
    types = torch.randint(0, 2, (3, 13), generator=torch.Generator().manual_seed(3))
    inputs = {**padded(architecture, "right"), "token_type_ids": types}
    plain = {name: value for name, value in inputs.items() if name != "token_type_ids"}
    assert subject.gap(plan_of(plan), inputs) <= TOLERANCE
    assert difference(expected(subject.reference, plain), expected(subject.reference, inputs), inputs) > 0.1


@pytest.mark.parametrize("plan", INPUT_PLANS)
@pytest.mark.parametrize(
    "subject",
    ["RobertaModel", "BertModel", "GPT2ForSequenceClassification", "LlamaForSequenceClassification"],
    indirect=True,
)
def test_padding_id_without_a_mask(subject: Subject, plan: str) -> None:
    """Without a mask every token is attended to; RoBERTa's positions and GPT-2's last token still go by the id."""
    ids = padded(type(subject.reference).__name__, "right")["input_ids"]
    assert subject.gap(plan_of(plan), {"input_ids": ids}) <= TOLERANCE


@pytest.mark.parametrize("plan", INPUT_PLANS)
@pytest.mark.parametrize("subject", ["RobertaModel", "GPT2Model", "LlamaModel"], indirect=True)
def test_mask_that_disagrees_with_the_ids(subject: Subject, plan: str) -> None:
    """Tokens in the middle may be masked, whatever their ids are."""
    inputs = example(type(subject.reference).__name__)
    mask = torch.ones(3, 13, dtype=torch.long)
    mask[0, 3:9] = 0
    mask[2, 6:] = 0
    assert subject.gap(plan_of(plan), {**inputs, "attention_mask": mask}) <= TOLERANCE


@pytest.mark.parametrize("plan", INPUT_PLANS)
@pytest.mark.parametrize("subject", ["Dinov2Model", "Dinov2ForImageClassification"], indirect=True)
@pytest.mark.parametrize("size", [(48, 48), (16, 40), (37, 24)])
def test_dinov2_takes_other_image_sizes(subject: Subject, plan: str, size: tuple[int, int]) -> None:
    """Positions are interpolated to the image that is given; pixels beyond the last whole patch are left out."""
    inputs = example(type(subject.reference).__name__, height=size[0], width=size[1])
    assert subject.gap(plan_of(plan), inputs) <= TOLERANCE


@pytest.mark.parametrize("plan", INPUT_PLANS)
@pytest.mark.parametrize("subject", ["ViTModel", "DeiTForImageClassificationWithTeacher"], indirect=True)
@pytest.mark.parametrize("size", [(48, 48), (24, 40)])
def test_vit_interpolates_positions_when_asked(subject: Subject, plan: str, size: tuple[int, int]) -> None:
    """`interpolate_pos_encoding` lets ViT and DeiT take images of another size."""
    inputs = example(type(subject.reference).__name__, height=size[0], width=size[1])
    assert subject.gap(plan_of(plan), {**inputs, "interpolate_pos_encoding": True}) <= TOLERANCE


@pytest.mark.parametrize("plan", INPUT_PLANS)
@pytest.mark.parametrize(
    ("architecture", "batch", "length"),
    [("BertModel", 1, 40), ("GPT2LMHeadModel", 1, 3), ("LlamaForCausalLM", 1, 40)],
)
def test_other_shapes(cluster: edgeprism.Cluster, architecture: str, batch: int, length: int, plan: str) -> None:
    """A batch of one, the longest text that the model takes, and as many tokens as devices."""
    subject = Subject(cluster, make(architecture))
    assert subject.gap(plan_of(plan), example(architecture, batch=batch, length=length)) <= TOLERANCE


@pytest.mark.parametrize("plan", INPUT_PLANS)
def test_pixels_of_any_kind(cluster: edgeprism.Cluster, plan: str) -> None:
    """Pixels in float64, on strides, or with a gradient give the same output."""
    subject = Subject(cluster, make("ViTModel"))
    inputs = example("ViTModel", batch=4)
    wanted = expected(subject.reference, inputs)
    pixels = inputs["pixel_values"]
    strided = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for given in (pixels.double(), strided, pixels.clone().requires_grad_()):
        assert difference(subject.run(plan_of(plan), {"pixel_values": given}), wanted, inputs) <= TOLERANCE


@pytest.mark.parametrize("architecture", ["ViTModel", "BertModel", "DeiTModel"])
def test_model_without_a_pooler(cluster: edgeprism.Cluster, architecture: str) -> None:
    """A bare model that was made without its pooler gives no pooled output."""
    reference = make(architecture)
    without = type(reference)(reference.config, add_pooling_layer=False).eval()
    without.load_state_dict({n: v for n, v in reference.state_dict().items() if not n.startswith("pooler.")})
    subject = Subject(cluster, without)
    output = subject.run(plan_of("sequence-2"), example(architecture))
    assert output.get("pooler_output") is None
    assert subject.gap(plan_of("sequence-2"), example(architecture)) <= TOLERANCE


@pytest.mark.parametrize(
    "architecture",
    ["ViTModel", "Dinov2ForImageClassification", "BertForMaskedLM", "GPT2Model", "Qwen2Model"],
)
def test_means_of_one_token_in_equal_partitions(cluster: edgeprism.Cluster, architecture: str) -> None:
    """Where the number of means is the number of tokens of a partition, nothing is lost."""
    subject = Subject(cluster, make(architecture))
    if is_text(architecture):
        inputs, num_tokens = padded(architecture, "left", (12, 3, 8), length=12), 12
    elif architecture == "ViTModel":  # 5 x 3 patches and CLS
        inputs, num_tokens = example(architecture, height=40, width=24), 16
        inputs["interpolate_pos_encoding"] = True  # type: ignore[assignment]
    else:
        inputs, num_tokens = example(architecture, height=40, width=24), 16
    for num_devices in (2, 4):
        codec = CodecSpec.parse(f"means:L={num_tokens // num_devices}")
        assert subject.gap(Plan.even("sequence", num_devices, codec), inputs) <= TOLERANCE


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("architecture", "padding"),
    [
        ("ViTForImageClassification", "plain"),
        ("Dinov2Model", "plain"),
        ("BertModel", "plain"),
        ("BertModel", "left"),
        ("RobertaForMaskedLM", "right"),
        ("GPT2Model", "plain"),
        ("GPT2Model", "left"),
        ("LlamaModel", "left"),
        ("Qwen2ForCausalLM", "plain"),
    ],
)
def test_half_precision(cluster: edgeprism.Cluster, architecture: str, padding: str, kind: str) -> None:
    """In 16 bits ours is as near to the float32 model as transformers' own 16-bit model is: the root of the mean
    squared error is at most 1.25 times as large, the largest error at most 1.75 times."""
    inputs = example(architecture) if padding == "plain" else padded(architecture, padding)
    dtype = getattr(torch, kind)
    rounded = make(architecture).to(dtype)
    single = expected(make_float32(rounded, architecture), inputs)
    theirs = expected(rounded, inputs)
    subject = Subject(cluster, rounded)
    for plan in ("local", "sequence-3-uneven", "sequence-5", "sequence-5-means-of-one-token", "replica-2"):
        ours = subject.run(plan_of(plan), inputs)
        for name, exact in single.items():
            assert ours[name].dtype == dtype
            own, other = (error(value[name], exact, inputs) for value in (ours, theirs))
            assert own.square().mean().sqrt() <= 1.25 * other.square().mean().sqrt() + 1e-3, (plan, name)
            assert own.max() <= 1.75 * other.max() + 1e-3, (plan, name)


def make_float32(rounded: PreTrainedModel, architecture: str) -> PreTrainedModel:
    """A float32 model with the weights of the 16-bit one, so that only the arithmetic differs."""
    model = make(architecture)
    model.load_state_dict({name: value.float() for name, value in rounded.state_dict().items()})
    return model


def error(value: Tensor, exact: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Absolute differences at real tokens."""
    gap = (value.float() - exact).abs()
    mask = inputs.get("attention_mask")
    return gap if mask is None or gap.ndim != 3 else gap[mask.bool()]


def test_eager_attention_is_the_same_model(cluster: edgeprism.Cluster) -> None:
    """A model that was loaded with eager attention, GPT-2's upcast one included, has the same outputs."""
    reference = make("GPT2LMHeadModel", reorder_and_upcast_attn=True)
    reference.set_attn_implementation("eager")
    assert Subject(cluster, reference).gap(plan_of("sequence-3"), padded("GPT2LMHeadModel", "right")) <= TOLERANCE


# What the law is worth: each of these mistakes, made on purpose, breaks it.


@pytest.mark.parametrize(
    "mistake",
    ["order", "causal", "padding", "log counts", "layer scale", "attention scale", "positions", "rotation", "groups"],
)
def test_mistakes_break_the_law(cluster: edgeprism.Cluster, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixing up the order of partitions or of heads, forgetting a mask, a scale or a rotation, or counting others'
    positions from their own start is at least 100 times too far off."""
    from edgeprism.codecs.codec import PartitionCodec
    from edgeprism.models import rotary, vision
    from edgeprism.models.linear import linear
    from edgeprism.strategies.sequence import bias, forward

    architecture, padding = "GPT2LMHeadModel", "left"
    plan = plan_of("sequence-3-uneven")
    if mistake == "order":
        plan = plan_of("sequence-3")
        monkeypatch.setattr(forward, "_insert", lambda remote, own, before: torch.cat([own, remote], dim=2))
    elif mistake == "causal":
        honest = bias.attention_bias
        monkeypatch.setattr(
            forward, "attention_bias", lambda *args, is_causal, dtype: honest(*args, is_causal=False, dtype=dtype)
        )
    elif mistake == "padding":
        architecture = "BertModel"
        monkeypatch.setattr(forward, "attention_bias", lambda *args, is_causal, dtype: None)
    elif mistake == "log counts":
        architecture = "BertModel"
        honest_log = bias._log_counts
        monkeypatch.setattr(
            bias,
            "_log_counts",
            lambda count, rows, dtype: honest_log(None if count is None else count + 1, rows, dtype),
        )
    elif mistake == "layer scale":
        architecture, padding = "Dinov2Model", "plain"
        monkeypatch.setattr(vision, "scaled_linear", lambda layer, scale: linear(layer))
    elif mistake == "positions":
        architecture, plan = "LlamaModel", plan_of("sequence-3")
        honest_positions = PartitionCodec.positions
        monkeypatch.setattr(PartitionCodec, "positions", lambda codec, start: honest_positions(codec, 0))
    elif mistake == "rotation":
        architecture = "Qwen2Model"
        monkeypatch.setattr(rotary, "turned", lambda x, turn: x)
    elif mistake == "groups":
        architecture = "LlamaModel"
        neighbour_attend = forward.attend
        monkeypatch.setattr(
            forward, "attend", lambda q, k, v, bias, scale: neighbour_attend(q, k.flip(1), v.flip(1), bias, scale)
        )
    else:
        architecture, padding = "ViTModel", "plain"
        honest_attend = forward.attend
        monkeypatch.setattr(forward, "attend", lambda q, k, v, bias, scale: honest_attend(q, k, v, bias, scale * 1.1))
    inputs = example(architecture) if padding == "plain" else padded(architecture, padding)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Subject(cluster, make(architecture)).gap(plan, inputs) > 100 * TOLERANCE


def test_the_tiny_models_attend_unevenly() -> None:
    """Attention in the models of these tests is far from uniform: otherwise most mistakes would pass."""
    reference = make("BertModel")
    reference.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = reference(**example("BertModel"), output_attentions=True).attentions
    for weights in attentions:
        assert weights.amax(-1).mean() > 3 / weights.shape[-1]
    assert reference.config.hidden_size == WIDTH
