"""A frozen linear layer, y = x W^T + b, with its weight laid out once for the kernel that runs it fastest.

``torch.nn.functional.linear`` reorders the weight inside every call. At the few rows of a partition that reordering is
a large part of the time, and the BLAS behind it may not be the best one for the machine (MKL runs AVX2 code on AMD
cores). oneDNN takes a weight that was reordered beforehand; the operators are those that torch.compile's frozen graphs
use. They are private to torch, so they are used only after a check on this machine that they exist, that they agree
with the plain kernel, and that they are faster; otherwise the plain kernel runs.
"""

from __future__ import annotations

import functools
import time

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprism.errors import InputError

_PACKED_DTYPES = (torch.float32, torch.bfloat16)
# Largest difference to the plain kernel, relative to the largest output: rounding order differs, nothing else may.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Linear:
    """y = x W^T + b for inference, with ``weight`` (out, in) and ``bias`` (out) of some module."""

    __slots__ = ("_bias", "_packed", "_weight", "out_width")

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> None:
        weight = weight.detach()
        self.out_width = weight.shape[0]
        self._bias = None if bias is None else bias.detach().to(weight.dtype)
        self._packed = weight.device.type == "cpu" and packing_pays(weight.dtype)
        self._weight = _reorder(weight) if self._packed else weight.contiguous()

    def __call__(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if not self._packed:
            return F.linear(x, self._weight, self._bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # type: ignore[no-any-return]


class ScaledLinear:
    """y = (x W^T + b) * scale, rounded after the product and after the scale."""

    __slots__ = ("_linear", "_scale")

    def __init__(self, linear: Linear, scale: Float[Tensor, " out"]) -> None:
        self._linear, self._scale = linear, scale

    def __call__(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return self._linear(x) * self._scale


def joined(*layers: nn.Linear) -> Linear:
    """One layer that computes several layers of the same input side by side (keys and values)."""
    for layer in layers:
        check_plain(layer)
    weights = torch.cat([layer.weight.detach() for layer in layers])
    if all(layer.bias is None for layer in layers):
        return Linear(weights, None)
    biases = [layer.bias if layer.bias is not None else weights.new_zeros(layer.out_features) for layer in layers]
    return Linear(weights, torch.cat([bias.detach() for bias in biases]))


def linear(layer: nn.Linear) -> Linear:
    """The layer as it is, with its weight laid out for this machine."""
    check_plain(layer)
    return Linear(layer.weight, layer.bias)


def scaled_linear(layer: nn.Linear, scale: Float[Tensor, " out"]) -> Linear | ScaledLinear:
    """The layer with each output multiplied by ``scale``: DINOv2's layer scale.

    In float32 the scale is folded into weight and bias. In half precision it stays apart, as in transformers: a folded
    weight would be rounded a second time, which costs more accuracy than the multiplication costs time.
    """
    check_plain(layer)
    weight, bias, scale = layer.weight.detach(), layer.bias, scale.detach()
    if weight.dtype != torch.float32:
        return ScaledLinear(linear(layer), scale)
    return Linear(weight * scale[:, None], None if bias is None else bias.detach() * scale)


def check_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> None:
    """InputError when ``layer`` computes anything besides its own weight and bias, which alone are taken over."""
    if type(layer) is not kind or layer._forward_hooks or layer._forward_pre_hooks:
        raise InputError(
            f"a layer of the model is a {type(layer).__name__} or has hooks; a plain {kind.__name__} was expected: "
            "merge adaptors (LoRA and the like) into the weights, and remove hooks and quantisation first"
        )


@functools.cache
def packing_pays(dtype: torch.dtype) -> bool:
    """Whether the reordered kernel exists here, is right and is faster for ``dtype``: decided once by a measurement."""
    if dtype not in _PACKED_DTYPES or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1024, 512, generator=generator).to(dtype)
    x = torch.randn(96, 512, generator=generator).to(dtype)
    with torch.inference_mode():
        try:
            packed = _reorder(weight)
            result = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        except (AttributeError, RuntimeError, NotImplementedError):  # this build of torch has no such kernel
            return False
        plain = F.linear(x, weight)
        if (result - plain).abs().max() > _TOLERANCE[dtype] * plain.abs().max():
            return False
        return _seconds(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")) < _seconds(
            lambda: F.linear(x, weight)
        )


def _reorder(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())  # type: ignore[no-any-return]


def _seconds(call: object, repeats: int = 7) -> float:
    """The shortest of a few runs: what the kernel takes when nothing else disturbs it."""
    assert callable(call)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
