"""A wrapped transformers model computes what devices compute, with gradients, and can be unwrapped again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import edgeprism
from edgeprism.errors import InputError, PlanError, UnsupportedModel
from edgeprism.evaluate.trainable import with_codec, without_codec
from edgeprism.models.registry import ADAPTORS
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from tests.codecs.calibrated import calibration_of
from tests.families import difference, example, expected, is_text, make, padded

CODECS = ("exact", "means:4", "means:L=2+int8", "kv:int4", "kv:means:2")
SHARES = {"even": (1 / 2, 1 / 2), "uneven": (0.4, 0.28, 0.32)}
TOLERANCE = 1e-5  # float64, of outputs of order one; log counts are float32


@pytest.fixture(scope="module")
def cluster() -> Iterator[edgeprism.Cluster]:
    """Three devices, threads of this process, and patience for a machine that has other things to do."""
    with pytest.MonkeyPatch.context() as patch, edgeprism.Cluster.in_process(3) as cluster:
        patch.setenv("EDGEPRISM_DEADLINE_S", "60")
        yield cluster


def inputs_of(architecture: str) -> list[dict[str, Tensor]]:
    """With padding on either side, where there is padding."""
    if not is_text(architecture):
        return [{"pixel_values": example(architecture)["pixel_values"].double()}]
    return [example(architecture), padded(architecture, "left"), padded(architecture, "right")]


def llama(name: str, *, num_layers: int = 3, **changes: Any) -> PreTrainedModel:
    """A tiny decoder with rotary positions, grouped heads and wide weights."""
    settings = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = getattr(transformers, f"{name}Config")(
        **{**settings, "num_hidden_layers": num_layers, "vocab_size": 97, "initializer_range": 0.25, **changes}
    )
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config)
    return model.double().eval()


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("architecture", ADAPTORS)
def test_equals_devices(cluster: edgeprism.Cluster, architecture: str, shares: tuple[float, ...]) -> None:
    """The wrapped model's outputs are the engine's, whatever travels, for even and uneven shares and padded texts."""
    model = make(architecture).double()
    split = shares + (0.0,) * (3 - len(shares))
    with edgeprism.load(model, cluster=cluster) as engine:
        for codec in CODECS:
            engine.use(Plan(strategy="sequence", shares=split, codec=CodecSpec.parse(codec)))
            for inputs in inputs_of(architecture):
                wanted = {name: value for name, value in engine(**inputs).items() if isinstance(value, Tensor)}
                assert engine.last_trace is not None and engine.last_trace.plan.codec == CodecSpec.parse(codec)
                got = expected(with_codec(model, codec, len(shares), shares), inputs)
                assert difference(got, wanted, inputs) < TOLERANCE, codec
                without_codec(model)


@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
@pytest.mark.parametrize("codec", ["exact", "kv:exact", "means:1", "kv:means:1"])
def test_rotary_decoders_lose_nothing_with_an_exact_codec(name: str, codec: str) -> None:
    """Rotary positions and grouped heads: one device's outputs, padded or not, with positions of any origin."""
    model = llama(name)
    ids = torch.randint(4, 97, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask, "position_ids": positions}):
        wanted = expected(model, inputs)
        got = expected(with_codec(model, codec, 3), inputs)
        assert difference(got, wanted, {"attention_mask": inputs.get("attention_mask", torch.ones_like(ids))}) < 1e-5
        without_codec(model)


def test_a_mean_is_rotated_to_its_mean_position() -> None:
    """One Llama block against the same written out: the second partition sees two means of the first."""
    model = llama("Llama", num_layers=1)
    block, rotary = model.model.layers[0], model.model.rotary_emb
    captured: list[Tensor] = []
    block.self_attn.o_proj.register_forward_pre_hook(lambda _, args: captured.append(args[0][:, :10]))
    ids = torch.randint(4, 97, (1, 10))
    expected(with_codec(model, "means:L=2", 2), {"input_ids": ids})

    y = block.input_layernorm(model.model.embed_tokens(ids))
    means = torch.stack([y[0, 0:2].mean(0), y[0, 2:5].mean(0)])[None]
    rows, positions = torch.cat([means, y[:, 5:]], dim=1), torch.tensor([[0.5, 3, 5, 6, 7, 8, 9]])
    heads = {"q": 4, "k": 2, "v": 2}
    q, k, v = (getattr(block.self_attn, f"{n}_proj")(rows)[0].unflatten(-1, (h, 8)) for n, h in heads.items())
    cos, sin = (x[0][:, None] for x in rotary(rows, position_ids=positions))
    q, k = (x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin for x in (q, k))
    for query in range(2, 7):
        logits = torch.stack([k[: query + 1, head // 2] @ q[query, head] for head in range(4)]) / 8**0.5
        logits[:, :2] += torch.tensor([2, 3]).log()
        context = torch.cat([logits.softmax(-1)[head] @ v[: query + 1, head // 2] for head in range(4)])
        torch.testing.assert_close(captured[0][0, query + 3], context, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("codec", ["means:4", "kv:means:2"])
def test_gradients_are_those_of_the_outputs(codec: str) -> None:
    """Where nothing is rounded: the gradient times a small step is the change of the loss."""
    model = with_codec(make("Dinov2ForImageClassification").double(), codec, 2)
    pixels = example("Dinov2Model")["pixel_values"].double()
    parameters = list(model.parameters())

    def loss() -> Tensor:
        return model(pixel_values=pixels, labels=torch.tensor([0, 1, 2])).loss  # type: ignore[no-any-return]

    steps = [torch.randn_like(parameter) * 1e-6 for parameter in parameters]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    foreseen = sum((g * s).sum() for g, s in zip(gradients, steps, strict=True) if g is not None)
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, step in zip(parameters, steps, strict=True):
                parameter += sign * step
            values.append(loss())
    assert float(values[0] - values[1]) / 2 == pytest.approx(float(foreseen), rel=1e-4)


@pytest.mark.parametrize("codec", ["int4", "kv:int4", "means:L=2+int8"])
@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "GPT2ForSequenceClassification", "ViTModel"])
def test_gradients_pass_through_rounding(architecture: str, codec: str) -> None:
    """Straight through: finite everywhere, padding included, and close to those of the codec without rounding."""
    model = make(architecture)
    inputs = padded(architecture, "left") if is_text(architecture) else example(architecture)

    def gradient(codec: str) -> Tensor:
        model.zero_grad()
        output = with_codec(model, codec, 3)(**inputs)
        (output["logits"] if "logits" in output else output["last_hidden_state"]).square().mean().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        assert len(gradients) > 30
        return torch.cat(gradients)

    rounded = gradient(codec)
    smooth = gradient({"int4": "exact", "kv:int4": "kv:exact", "means:L=2+int8": "means:L=2"}[codec])
    assert rounded.isfinite().all()
    assert torch.cosine_similarity(rounded, smooth, dim=0) > (0.999 if "int8" in codec else 0.6)


def test_training_lowers_the_loss() -> None:
    """A tiny ViT learns four pictures through four-bit means."""
    model = with_codec(make("ViTForImageClassification", num_labels=4), "means:4+int4", 2).train()
    pixels = example("ViTModel", batch=4)["pixel_values"]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        loss = model(pixel_values=pixels, labels=torch.arange(4)).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("architecture", ["DeiTModel", "GPT2LMHeadModel"])
def test_checkpointed_gradients_and_autocast(architecture: str) -> None:
    """Blocks computed again in the backward pass give the same gradients; bfloat16 autocast stays close."""
    model = with_codec(make(architecture), "means:3+int8", 2)
    inputs = example(architecture)

    def gradient(dtype: torch.dtype | None = None) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            output = model(**inputs)
        (output["logits"] if "logits" in output else output["last_hidden_state"]).float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    with torch.inference_mode():
        model(**inputs)  # what it keeps from here must not be used in training
    plain = gradient()
    assert torch.cosine_similarity(gradient(torch.bfloat16), plain, dim=0) > 0.98
    name = "activation_checkpointing_enable"  # since 5.21
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
    torch.testing.assert_close(gradient(), plain)


def test_a_difference_is_not_computed_backwards() -> None:
    """Checkpointing that is turned on after wrapping would predict from a later block: refused, not wrong."""
    model = make("ViTModel")
    width = model.config.hidden_size
    calibration = calibration_of(CodecSpec.parse("delta+rot+int2"), width)
    model = with_codec(model, "delta+rot+int2", 2, calibration=calibration).train()
    name = "activation_checkpointing_enable"  # since 5.21
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
    with pytest.raises(InputError, match="turn gradient checkpointing off"):
        model(**example("ViTModel")).last_hidden_state.sum().backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tables_follow_a_model_to_its_device() -> None:
    """A model that was wrapped on the CPU and then moved computes there as it did."""
    model, inputs = make("ViTModel"), example("ViTModel")
    spec = CodecSpec.parse("delta+rot+int4")
    with_codec(model, spec, 2, calibration=calibration_of(spec, model.config.hidden_size))
    wanted = expected(model, inputs)["last_hidden_state"]
    moved = expected(model.to("cuda"), {name: tensor.to("cuda") for name, tensor in inputs.items()})
    torch.testing.assert_close(moved["last_hidden_state"].cpu(), wanted, rtol=1e-2, atol=1e-2)


def test_undone_without_a_trace() -> None:
    """Wrapped twice and unwrapped, a model computes, is configured and is hooked as before."""
    model = make("BertForSequenceClassification")
    inputs = padded("BertModel", "right")
    before, config = expected(model, inputs), model.config.to_dict()
    attention = model.config._attn_implementation
    wrapped = expected(with_codec(with_codec(model, "means:4", 2), "int4", 3), inputs)
    assert difference(wrapped, before, inputs) > 1e-3
    assert without_codec(model) is model
    assert difference(expected(model, inputs), before, inputs) == 0
    assert model.config._attn_implementation == attention and model.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    without_codec(model)  # once more does no harm


def test_a_saved_wrapped_model_is_an_ordinary_one(tmp_path: Path) -> None:
    """Its directory names nothing of edgeprism, and transformers loads from it the model as it was before."""
    model = make("ViTForImageClassification")
    inputs = example("ViTModel")
    before = expected(model, inputs)
    with_codec(model, "means:4", 2).save_pretrained(tmp_path)
    assert "edgeprism" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    assert difference(expected(loaded, inputs), before, inputs) == 0


def _t5() -> PreTrainedModel:
    return transformers.T5Model(transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "codec": (lambda: with_codec(make("ViTModel"), "means", 2), PlanError, "accepted: exact"),
    "shares": (lambda: with_codec(make("ViTModel"), "int8", 2, (0.2, 0.3, 0.5)), InputError, "3 shares for 2 devices"),
    "encoder-decoder": (lambda: with_codec(_t5(), "int8", 2), UnsupportedModel, "cross-attention"),
    "devices": (
        lambda: with_codec(make("ViTModel"), "int8", 20, (0.05,) * 20)(**example("ViTModel")),
        PlanError,
        "more devices than tokens|1 to 16",
    ),
    "cache": (
        lambda: with_codec(make("GPT2LMHeadModel"), "exact", 2).generate(**example("GPT2Model"), max_new_tokens=2),
        InputError,
        "use_cache=False",
    ),
    "mask for each pair": (
        lambda: with_codec(make("BertModel"), "int8", 2)(
            **example("BertModel"), attention_mask=torch.ones(3, 1, 13, 13)
        ),
        InputError,
        "of the form",
    ),
    "packed texts": (
        lambda: with_codec(make("GPT2Model"), "int8", 2)(
            **example("GPT2Model"),
            use_cache=False,
            position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5]]),
        ),
        InputError,
        "one text a row",
    ),
    "attention elsewhere": (
        lambda: transformers.ViTModel(with_codec(make("ViTModel"), "int8", 2).config)(**example("ViTModel")),
        InputError,
        "nowhere else",
    ),
}


@pytest.mark.parametrize(("act", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_used_is_refused(act: Callable[[], object], error: type[Exception], message: str) -> None:
    """In words, before anything is computed wrongly."""
    with pytest.raises(error, match=message):
        act()
