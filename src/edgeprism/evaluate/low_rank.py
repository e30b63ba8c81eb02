"""Low-rank adaptors while a model is trained, and none afterwards (LoRA, Hu et al., 2021, equation 3).

A layer computes x W + x A B, where A has ``rank`` columns and B as many rows; W is frozen. B starts at zero, so
training starts from the model as it is. ``merge`` adds A B to W: the result is the model that it was, with other
weights. The optimiser keeps its moments of a few percent of the weights only, and nobody computes gradients of W.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class LowRank(nn.Module):
    """A frozen linear layer with a trainable one of low rank beside it."""

    def __init__(self, base: nn.Linear | Conv1D, rank: int) -> None:
        super().__init__()
        self.base = base
        self.transposed = isinstance(base, nn.Linear)  # Conv1D holds (inputs, outputs)
        num_outputs, num_inputs = base.weight.shape if self.transposed else base.weight.shape[::-1]
        device = base.weight.device
        self.low_a = nn.Parameter(torch.randn(num_inputs, rank).to(device) / num_inputs**0.5)
        self.low_b = nn.Parameter(torch.zeros(rank, num_outputs, device=device))

    def forward(self, rows: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """x W + b + x A B for each row x."""
        low_rank: Tensor = (rows @ self.low_a) @ self.low_b
        return self.base(rows) + low_rank  # type: ignore[no-any-return]

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The linear layer alone, with A B in its weights."""
        change = self.low_a @ self.low_b
        self.base.weight += (change.T if self.transposed else change).to(self.base.weight.dtype)
        return self.base


def adapt(model: PreTrainedModel, rank: int, *, trains_head: bool) -> None:
    """Freezes ``model``, its head too unless asked for, and adapts every linear layer below the head, in place."""
    body = model.base_model
    frozen = body if trains_head else model  # what a language model's head shares with the embedding is in both
    frozen.requires_grad_(False)
    layers = [(name, layer) for name, layer in body.named_modules() if type(layer) in (nn.Linear, Conv1D)]
    for name, layer in layers:
        body.set_submodule(name, LowRank(layer, rank))


def merge(model: PreTrainedModel) -> None:
    """Undoes ``adapt``, keeping what was learned."""
    adaptors = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LowRank)]
    for name, layer in adaptors:
        model.set_submodule(name, layer.merged())
    model.requires_grad_(True)
