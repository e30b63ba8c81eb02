"""What `finetune` minimises, and the dtype that it is computed in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel


def products_in(dtype: str, model: PreTrainedModel) -> torch.autocast:
    """Within it, products of the model's float32 tensors are computed in ``dtype``."""
    return torch.autocast(model.device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32")


def divergence(
    logits: Float[Tensor, "rows outputs"], wanted: Float[Tensor, "rows outputs"], temperature: float
) -> Float[Tensor, ""]:
    """Kullback-Leibler, in nats a row, of the student's distribution from the teacher's, both softened (Hinton et al.,
    2015): the square keeps its gradients as large at any temperature."""
    student, teacher = (F.log_softmax(x / temperature, dim=-1) for x in (logits, wanted))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
