"""What is added to the logits: log counts of rows that stand for several tokens, padding, and the causal mask.

Causal models (PRISM's partition-aware mask): a token sees the tokens before it in its own partition, everything that
earlier partitions sent, and nothing of later ones, which do not even send to it.

Masked logits get the lowest finite number, not minus infinity: a row whose keys are all masked (padding on the left
of a causal model) then stays finite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_bias(
    counts: Sequence[Tensor | None], num_rows: Sequence[int], own: int, *, is_causal: bool, dtype: torch.dtype
) -> Tensor | None:
    """The bias (1 or batch, 1, 1 or rows, keys) over the key rows of all partitions, in order; None when it is zero.

    ``counts[i]`` (1 or batch, num_rows[i]) are the tokens that each key row of partition i stands for, None for one
    each. ``own`` is the index of the device's own partition.
    """
    num_queries = num_rows[own]
    if not is_causal and all(count is None for count in counts):
        return None
    parts = [_log_counts(count, rows, dtype)[:, None, None] for count, rows in zip(counts, num_rows, strict=True)]
    if is_causal and num_queries > 1:
        lowest = torch.finfo(dtype).min
        later = torch.full((num_queries, num_queries), lowest, dtype=dtype, device=parts[own].device).triu(1)
        parts[own] = torch.maximum(parts[own] + later, parts[own].new_tensor(lowest))
    batch, queries = max(part.shape[0] for part in parts), max(part.shape[2] for part in parts)
    return torch.cat([part.expand(batch, 1, queries, -1) for part in parts], dim=-1)


def pick_bias(bias: Tensor | None, picked: Tensor) -> Tensor | None:
    """The bias of only the own rows ``picked`` (1 or batch, reads)."""
    if bias is None or bias.shape[2] == 1:
        return bias
    return torch.take_along_dim(bias, picked[:, None, :, None].to(bias.device), dim=2)


def _log_counts(count: Tensor | None, num_rows: int, dtype: torch.dtype) -> Tensor:
    if count is None:
        return torch.zeros(1, num_rows, dtype=dtype)
    logs = count.float().clamp(min=1).log().to(dtype)
    return torch.where(count > 0, logs, torch.finfo(dtype).min)
