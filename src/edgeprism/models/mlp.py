"""The wide half of an MLP, plain and gated."""

from __future__ import annotations

from torch import Tensor

from edgeprism.models.block import Layer


class Up:
    """activation(W x + b)."""

    __slots__ = ("_activation", "_linear")

    def __init__(self, linear: Layer, activation: Layer) -> None:
        self._linear, self._activation = linear, activation

    def __call__(self, x: Tensor) -> Tensor:
        return self._activation(self._linear(x))


class GatedUp:
    """activation(W_gate x) * (W_up x): the SwiGLU of DINOv2-giant, and of Llama-like decoders."""

    __slots__ = ("_activation", "_gate", "_up")

    def __init__(self, gate: Layer, up: Layer, activation: Layer) -> None:
        self._gate, self._up, self._activation = gate, up, activation

    def __call__(self, x: Tensor) -> Tensor:
        return self._activation(self._gate(x)) * self._up(x)
