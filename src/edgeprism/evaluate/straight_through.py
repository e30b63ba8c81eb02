"""A codec with gradients: what receivers see, differentiable with respect to the sender's rows.

Rounding has a gradient of zero nearly everywhere. The straight-through estimator (Bengio et al., 2013) takes the
decoded rows forward and, backward, the gradient of the rows that decoding approximates: the rows themselves or, where
the codec averages, their means. Means are linear, so with an exact packing the gradient is the true one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprism.codecs.codec import Codec


def straight_through(
    codec: Codec, rows: Float[Tensor, "batch tokens width"], block: int
) -> tuple[Float[Tensor, "batch rows width"], Tensor | None]:
    """What arrives of ``rows`` in a block, to the last bit, with the gradient of ``reduced``; and the counts."""
    with torch.autocast(rows.device.type, enabled=False):  # what travels is computed in the dtype of the rows
        with torch.no_grad():
            decoded, counts = codec.decode(codec.encode(rows, block), block)
        if not (torch.is_grad_enabled() and rows.requires_grad):
            return decoded, counts
        soft = codec.reduced(rows)
        return decoded + (soft - soft.detach()), counts  # the difference is zero, exactly
