"""Linear layers: the packed kernel, the joined layer and the folded scale compute what torch's layers do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeprism.errors import InputError
from edgeprism.models import linear as module
from edgeprism.models.linear import Linear, joined, linear, packing_pays, scaled_linear

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def _packs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kernels, whichever would be faster here; the packed one where this machine has it."""
    if request.param:
        try:
            packed = module._reorder(torch.ones(8, 8))
            torch.ops.mkldnn._linear_pointwise(torch.ones(1, 8), packed, None, "none", [], "")
        except (AttributeError, RuntimeError, NotImplementedError) as exc:
            pytest.skip(f"this build of torch has no packed kernel: {exc}")
    monkeypatch.setattr(module, "packing_pays", lambda dtype: request.param and dtype in module._PACKED_DTYPES)


def gap(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference relative to the largest output."""
    assert ours.shape == wanted.shape and ours.dtype == wanted.dtype
    return float((ours - wanted).abs().max() / wanted.abs().max())


@pytest.mark.usefixtures("_packs")
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 0, 64), (3, 7, 64), (2, 197, 64)])
@torch.no_grad()
def test_equals_the_plain_kernel(shape: tuple[int, ...], dtype: torch.dtype, has_bias: bool) -> None:
    """y = x W^T + b at any number of rows, none and one included."""
    weight, bias, x = torch.randn(48, 64), torch.randn(48) if has_bias else None, torch.randn(shape)
    weight, x, bias = weight.to(dtype), x.to(dtype), None if bias is None else bias.to(dtype)
    ours = Linear(weight, bias)(x)
    wanted = F.linear(x, weight, bias)
    assert ours.shape == wanted.shape
    if x.numel():
        assert gap(ours, wanted) <= TOLERANCE[dtype]


@pytest.mark.usefixtures("_packs")
@torch.no_grad()
def test_takes_strided_inputs_and_weights() -> None:
    """Slices and transposes, as GPT-2's joint matrix gives them, need not be contiguous."""
    weight, x = torch.randn(64, 96).t()[32:], torch.randn(5, 3, 64).transpose(0, 1)
    assert not weight.is_contiguous() and not x.is_contiguous()
    assert gap(Linear(weight, None)(x), F.linear(x, weight)) <= 1e-5
    assert gap(Linear(weight, None)(x[:, ::2]), F.linear(x[:, ::2], weight)) <= 1e-5


@pytest.mark.usefixtures("_packs")
@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
@torch.no_grad()
def test_joined_layers_stand_side_by_side(biases: tuple[bool, bool]) -> None:
    """One call computes several layers of the same input; a layer without a bias gets zeros."""
    layers = [nn.Linear(64, width, bias=has_bias) for width, has_bias in zip((32, 48), biases, strict=True)]
    x = torch.randn(2, 5, 64)
    assert gap(joined(*layers)(x), torch.cat([layer(x) for layer in layers], dim=-1)) <= 1e-5


@pytest.mark.usefixtures("_packs")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_scale_multiplies_the_output(has_bias: bool, dtype: torch.dtype) -> None:
    """DINOv2's layer scale, negative and zero factors too; the module that was given keeps its weight."""
    layer, x = nn.Linear(64, 48, bias=has_bias).to(dtype), torch.randn(3, 64).to(dtype)
    scale = torch.linspace(-2, 2, 48).to(dtype)
    scale[5] = 0
    before = layer.weight.clone()
    assert gap(scaled_linear(layer, scale)(x), layer(x) * scale) <= TOLERANCE[dtype]
    assert torch.equal(layer.weight, before)


@torch.no_grad()
def test_half_precision_rounds_no_weight_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the scaled layer gives what transformers' two steps give, bit for bit with the plain kernel."""
    monkeypatch.setattr(module, "packing_pays", lambda dtype: False)
    layer, x, scale = nn.Linear(64, 48).bfloat16(), torch.randn(3, 64).bfloat16(), torch.rand(48).bfloat16()
    assert torch.equal(scaled_linear(layer, scale)(x), layer(x) * scale)


def test_a_wrong_or_missing_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that this build lacks, or that gives wrong numbers, is left alone; the decision costs no error."""
    packing_pays.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_reorder", lambda weight: weight.flip(0))
            assert packing_pays(torch.float32) is False
        packing_pays.cache_clear()

        def missing(weight: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("no such operator")

        with monkeypatch.context() as patch:
            patch.setattr(module, "_reorder", missing)
            assert packing_pays(torch.float32) is False
        assert packing_pays(torch.float16) is False
    finally:
        packing_pays.cache_clear()


def test_layers_are_frozen() -> None:
    """What a layer computes carries no gradient back into the transformers module."""
    layer = nn.Linear(8, 8)
    assert not linear(layer)(torch.randn(2, 8)).requires_grad
    assert not joined(layer, layer)(torch.randn(2, 8)).requires_grad


class _Adapted(nn.Linear):
    """A layer that computes more than its weight says, as adaptors do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_layers_that_compute_more_than_their_weight_are_refused() -> None:
    """Subclasses and hooks would be left out of the answer without a word."""
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    for layer in (_Adapted(4, 4), hooked):
        for make in (linear, joined, lambda layer: scaled_linear(layer, torch.ones(4))):
            with pytest.raises(InputError, match="merge adaptors"):
                make(layer)
