"""Differences over depth of rotated values, quantised: `delta+rot+int4` and its like.

As in `predict`, but what is predicted are the values after the rotation, so that a sender need not turn back what it
sends to predict the next block. With S the random signs, H the Hadamard matrix (H H = 1), d the steps between levels
and everything in units of d, in each block

    zero  = gain * (decoded of the block before) + offset           what a row of zero codes stands for
    codes = round(x S H / d - zero), clipped to 0 ... 2^bits - 1
    decoded = zero + codes                                          rows: decoded d H S

In a block of ViT-B it is not the multiplications that cost, but how many operations find their code and their data out
of the caches: this takes 14 on both sides together, where `predict` around `quantise` took 45. Predicting rotated
values or those of the channels, and runs of 32 values or of 128, made no difference on the demo model: a divergence of
0.00014 to 0.00018 at four bits, 0.0026 to 0.0027 at two.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edgeprism.codecs.bits import pack_bits, unpack_bits
from edgeprism.codecs.pack import Layout, Pack
from edgeprism.codecs.quantise import STEPS
from edgeprism.codecs.rotation import hadamard, random_signs
from edgeprism.codecs.size import packed_width

MAX_RUN = 32


def rotated(rows: Float[Tensor, "vectors width"]) -> Float[Tensor, "vectors width"]:
    """What calibration predicts, and of whose differences it takes the spread."""
    turn = _turn(rows.shape[1], rows.device)
    runs = rows.unflatten(-1, (-1, turn.shape[-1])).transpose(0, 1)
    turned: Tensor = runs @ turn
    return turned.transpose(0, 1).flatten(1)


def quantised(
    differences: Float[Tensor, "vectors width"], spread: Float[Tensor, "1 width"], bits: int
) -> Float[Tensor, "vectors width"]:
    """Differences of rotated values as they will be decoded."""
    step, middle = STEPS[bits] * spread, (2**bits - 1) / 2
    codes = (differences / step + middle).round().clamp(0, 2 * middle)
    decoded: Tensor = (codes - middle) * step
    return decoded


def linear_tables(
    bits: int,
    *,
    gains: Float[Tensor, "blocks width"],
    offsets: Float[Tensor, "blocks width"],
    spreads: Float[Tensor, "blocks 1 width"],
) -> dict[str, Tensor]:
    """What the packing computes with, from what calibration found: in units of steps, (blocks, runs, 32 or 1, 32)."""
    width = gains.shape[1]
    turn = _turn(width, spreads.device)
    run = turn.shape[-1]
    steps = (STEPS[bits] * spreads).unflatten(-1, (-1, run)).transpose(1, 2)  # (blocks, runs, 1, run)
    gains, offsets = (table.unflatten(-1, (-1, 1, run)) for table in (gains, offsets))
    steps_before = torch.cat([steps[:1], steps[:-1]])
    return {
        "turn": turn / steps,
        "back": steps.mT * turn.mT,
        "gains": gains * steps_before / steps,
        "offsets": offsets / steps - (2**bits - 1) / 2,
    }


class RotatedDifference(Pack):
    """Made for one request, from ``linear_tables``; what was sent and what was received are remembered apart, as
    (runs, vectors, 32). Blocks come in order, the first one from its offsets alone."""

    def __init__(
        self,
        *,
        bits: int,
        dtype: torch.dtype,
        turn: Float[Tensor, "blocks runs run run"],
        back: Float[Tensor, "blocks runs run run"],
        gains: Float[Tensor, "blocks runs 1 run"],
        offsets: Float[Tensor, "blocks runs 1 run"],
    ) -> None:
        self._bits, self._top, self._dtype = bits, 2**bits - 1, dtype
        self._num_runs, self._run = turn.shape[1:3]
        self._width = self._num_runs * self._run
        self._turn, self._back, self._gains, self._offsets = (x.unbind() for x in (turn, back, gains, offsets))
        self._sent: Tensor | None = None
        self._received: Tensor | None = None

    def pack(self, rows: Float[Tensor, "batch rows width"], block: int) -> tuple[Tensor, ...]:
        runs = rows.float().reshape(-1, self._num_runs, self._run).transpose(0, 1)
        zero = self._zero(self._sent, block)
        codes = torch.bmm(runs, self._turn[block]).sub_(zero).round_().clamp_(0, self._top)
        self._sent = zero + codes
        return (self._packed(codes).view(rows.shape[0], rows.shape[1], -1),)

    def unpack(self, parts: tuple[Tensor, ...], block: int) -> Float[Tensor, "batch rows width"]:
        batch, num_rows, _ = parts[0].shape
        self._received = self._codes(parts[0].flatten(0, 1)).add_(self._zero(self._received, block))
        runs = torch.bmm(self._received, self._back[block])
        return runs.transpose(0, 1).reshape(batch, num_rows, self._width).to(self._dtype)

    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        return ((torch.uint8, (batch, num_rows, packed_width(self._width, self._bits))),)

    def _zero(self, before: Tensor | None, block: int) -> Tensor:
        if block == 0:
            return self._offsets[0]
        assert before is not None  # blocks come in order
        return torch.addcmul(self._offsets[block], self._gains[block], before)

    def _packed(self, codes: Float[Tensor, "runs vectors run"]) -> Tensor:
        """All of them at once, where no byte is left partly empty; otherwise vector by vector."""
        packed: Tensor = pack_bits(
            codes.flatten() if self._width % 8 == 0 else codes.transpose(0, 1).flatten(1), self._bits
        )
        return packed

    def _codes(self, packed: UInt8[Tensor, "vectors packed"]) -> Tensor:
        shape = (self._num_runs, len(packed), self._run)
        if self._width % 8 == 0:
            return unpack_bits(packed.flatten(), self._bits, math.prod(shape)).view(shape)
        codes: Tensor = unpack_bits(packed, self._bits, self._width).unflatten(-1, (-1, self._run)).transpose(0, 1)
        return codes.contiguous()


def _turn(width: int, device: torch.device) -> Float[Tensor, "runs run run"]:
    """S H of each run."""
    run = min(width & -width, MAX_RUN)
    signs, matrix = random_signs(width), hadamard(run)
    turn: Tensor = signs.view(-1, run, 1) * matrix / math.sqrt(run)
    return turn.to(device)
