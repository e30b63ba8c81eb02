"""Which hardware a device computes on, and whether its results are those of the others.

A driver that is listed is not a kernel that runs: a vendor's board may have a build of torch without kernels for its
own GPU. So the choice is made by running one. And a kernel that runs may be a less exact one, so every device computes
the same seeded rows through the model's first block, and the coordinator compares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprism.errors import InputError
from edgeprism.models.block import run_block
from edgeprism.models.model import Model

NUM_CHECK_ROWS = 16

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""How far a block of another device may be off, as a fraction of its largest value. Rounding and the order of sums stay
well below; float32 matrices multiplied in tf32 are off by about 1e-3."""


def choose_device(name: str | torch.device | None) -> torch.device:
    """The hardware asked for; without a name CUDA if a kernel runs there, else the CPU. InputError where none runs.

    On CUDA tf32 is switched off; to have it, switch it on afterwards (torch.backends), on every device.
    """
    if name is None:
        return choose_device("cuda") if torch.cuda.is_available() and _why_not(torch.device("cuda")) == "" else _CPU
    try:
        device = torch.device(name)
        why_not = _why_not(device)
    except (RuntimeError, TypeError) as exc:
        why_not = str(exc).splitlines()[0]
    if why_not:
        raise InputError(f"device {str(name)!r} cannot be used here ({why_not}); use cpu, or cuda where it works")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device


def block_rows(model: Model) -> Tensor:
    """What the model's first block makes of seeded rows, in float64 on the CPU: (NUM_CHECK_ROWS, hidden size). Where a
    device may hold no whole block, the product of the rows with each other, which shows a kernel that rounds as well.
    """
    count = NUM_CHECK_ROWS * model.spec.hidden_size
    mixed = (torch.arange(count, dtype=torch.int64) * 2654435761) % 2**32  # the same numbers in every version of torch
    x = (mixed.double() / 2**31 - 1).reshape(1, NUM_CHECK_ROWS, -1).to(model.device, model.dtype)
    positions = torch.arange(NUM_CHECK_ROWS)[None]
    if model.held is not None:
        return (x[0] @ (x[0].T @ x[0])).double().cpu()
    with torch.no_grad():
        return run_block(model.blocks[0], x, positions)[0].double().cpu()


def difference(rows: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the largest value of the reference; infinite where the rows are not numbers."""
    if rows.shape != reference.shape or not bool(torch.isfinite(rows).all()):
        return float("inf")
    return float((rows - reference).abs().max() / reference.abs().max().clamp_min(1e-30))


_CPU = torch.device("cpu")


def _why_not(device: torch.device) -> str:
    """Why no kernel runs there; empty if one does."""
    try:
        one = torch.ones(4, 4, device=device)
        return "" if float((one @ one).sum()) == 64 else "a product of matrices of ones is wrong there"
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        return str(exc).splitlines()[0]
