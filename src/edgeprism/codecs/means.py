"""Segment Means (PRISM, arXiv 2507.12145): contiguous segments of a partition, each sent as the mean of its rows."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprism.codecs.segments import segment_bounds
from edgeprism.errors import PlanError

MAX_WEIGHTS = 2**24  # 64 MiB: 4,096 tokens at rate 1, or 12,800 at rate 9.9


class SegmentMeans:
    """Means of ``num_segments`` (the paper's L) segments of ``num_tokens`` tokens; lengths differ by at most one.

    Padding takes part in no mean, so the weights and ``counts`` (1 or batch, segments) are per sample where there is a
    ``mask``; a segment without a real token has count 0 and a mean of zeros, which the logits mask.
    """

    def __init__(self, num_tokens: int, num_segments: int, mask: Bool[Tensor, "batch tokens"] | None) -> None:
        if num_tokens * num_segments > MAX_WEIGHTS:
            raise PlanError(
                f"{num_segments} means of a partition of {num_tokens} tokens take a matrix of "
                f"{num_tokens * num_segments:.2g} numbers, and {MAX_WEIGHTS:.2g} are the most; take fewer means"
            )
        self.num_segments = num_segments
        membership = torch.zeros(1, num_segments, num_tokens)
        for index, (start, stop) in enumerate(segment_bounds(num_tokens, num_segments)):
            membership[0, index, start:stop] = 1
        if mask is not None:
            membership = membership.to(mask.device) * mask[:, None, :]
        self._padding = None if mask is None else ~mask[..., None]
        self.counts = membership.sum(-1)
        self._weights = membership / self.counts.clamp(min=1)[..., None]
        self._cast = self._weights  # as the rows need them; positions need float32

    def reduce(self, rows: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch segments width"]:
        """Rows of padding are zeroed first: zero times NaN would poison a mean."""
        if self._padding is not None:
            rows = rows.masked_fill(self._padding, 0)
        if self._cast.dtype != rows.dtype or self._cast.device != rows.device:
            self._cast = self._weights.to(rows.device, rows.dtype)
        return self._cast @ rows
