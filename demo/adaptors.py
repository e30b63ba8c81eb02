"""Low-rank adaptors for the Linear layers of a Dinov2 encoder (LoRA, Hu et al., 2021, equation 3).

A layer with weight W computes W x + B A x, where A has `RANK` rows and B `RANK` columns; only A and B are trained. B
starts at zero, so the adapted model starts as the pretrained one. `merge` adds B A to W, after which the model is an
ordinary one of the same size and speed, and nothing of this module is needed to run it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from demo.backbone import LINEARS

RANK = 16


class AdaptedLinear(nn.Module):
    """A frozen Linear plus a trainable low-rank one. A and B stay float32; they compute in the dtype of the input."""

    def __init__(self, base: nn.Linear, rank: int = RANK) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, rows: Tensor) -> Tensor:
        """W x + b + B A x for each row x."""
        low_rank = (rows @ self.lora_a.T.to(rows.dtype)) @ self.lora_b.T.to(rows.dtype)
        return self.base(rows) + low_rank


def adapt(model: nn.Module) -> None:
    """Puts an adaptor on every projection of every block of `model` (a `Dinov2ForImageClassification`), in place."""
    for name, linear in list(block_linears(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, AdaptedLinear(linear))


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The adaptors and the head of an adapted `model`: what training changes, and all that is stored."""
    state = model.state_dict()
    return {name: state[name] for name in state if "lora_" in name or name.startswith("classifier.")}


def merge(weights: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the plain model: `weights` with B A added to each adapted matrix, and the head put in."""
    merged = dict(weights)
    for name, tensor in trained.items():
        if name.startswith("classifier."):
            merged[name] = tensor.float()
        elif name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            product = trained[f"{layer}.lora_b"].float() @ tensor.float()
            merged[f"{layer}.weight"] = weights[f"{layer}.weight"] + product
    return merged


def block_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(name, layer) of every projection inside the encoder blocks."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tuple(LINEARS.values())):
            yield name, module
