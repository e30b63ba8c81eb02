"""Which tokens belong to which device.

The partitions are contiguous runs in device order, as in PRISM (arXiv 2507.12145): a causal model then needs only the
partitions before its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeprism.errors import PlanError
from edgeprism.specs.apportion import apportion, bounds_of, quotas


def token_bounds(num_tokens: int, shares: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each device's tokens, in proportion to ``shares``.

    The bounds cover 0 to ``num_tokens`` without gaps. A device with a positive share gets at least one token, one with
    share 0 none. The odd token goes to the later device: device 0 also has the head. PlanError when there
    are more devices than tokens.

    >>> token_bounds(197, (0.5, 0.5))
    ((0, 98), (98, 197))
    """
    num_active = sum(share > 0 for share in shares)
    if num_active > num_tokens:
        raise PlanError(
            f"more devices than tokens: {num_active} devices cannot share {num_tokens} tokens; "
            f"use at most {num_tokens} devices, or a longer input"
        )
    counts = list(apportion(num_tokens, shares, ties_to_later=True))
    exact_quotas = quotas(num_tokens, shares)
    for i, share in enumerate(shares):
        if share > 0 and counts[i] == 0:
            donor = max((j for j in range(len(shares)) if counts[j] > 1), key=lambda j: counts[j] - exact_quotas[j])
            counts[donor] -= 1
            counts[i] = 1
    return bounds_of(counts)
