"""What copies between an accelerator and its host take: measured once, for the performance map.

Requests tell what staging costs in all; these figures tell why: by direction, by size, and whether the host's buffer is
pinned (page-locked), as those of `strategies.staging` are.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SIZES_BYTES = (4096, 65536, 2**20, 2**22)
NUM_COPIES = 7  # of each kind, after one that is not counted


def measure_staging(computes_on: str) -> list[dict[str, Any]]:
    """Seconds of copies by direction, size and kind of buffer; none where the host itself computes."""
    if computes_on in ("", "cpu"):
        return []
    import torch

    try:
        return copies(torch.device(computes_on))
    except RuntimeError as exc:  # no memory to pin, most likely: these figures are not needed to go on
        log.warning("staging is not measured: %s", exc)
        return []


def copies(device: torch.device) -> list[dict[str, Any]]:
    """The same for any device of torch; buffers are pinned only where that means something."""
    import torch

    found = []
    for num_bytes in SIZES_BYTES:
        there = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        for is_pinned in (False, True) if device.type == "cuda" else (False,):
            here = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)
            for direction, source, target in (("to device", here, there), ("to host", there, here)):
                seconds = [_copy_s(source, target, device) for _ in range(NUM_COPIES + 1)][1:]
                found.append(
                    {
                        "direction": direction,
                        "is_pinned": is_pinned,
                        "num_bytes": num_bytes,
                        "seconds": statistics.median(seconds),
                    }
                )
    return found


def _copy_s(source: torch.Tensor, target: torch.Tensor, device: torch.device) -> float:
    import torch

    began_s = time.perf_counter()
    target.copy_(source)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began_s
