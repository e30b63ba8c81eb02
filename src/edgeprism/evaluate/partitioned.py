"""What every device of `sequence` sees in one block, laid out for one process: each token's keys, in one matrix.

The keys of a block are the N tokens' own and, behind them, the M rows that the partitions' codecs made of them. A
token attends to the exact ones of its own partition and to the decoded ones of the others; in causal models, to those
before it. The bias (N, N + M) says so: log counts where a key is seen, the lowest number where it is not.

This is the computation of `strategies.sequence.forward` without its exchange, so that gradients run through it. Tests
hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprism.codecs.calibration import Calibration
from edgeprism.codecs.codec import Codec, make_codec
from edgeprism.errors import InputError
from edgeprism.evaluate.straight_through import straight_through
from edgeprism.specs.codec import CodecSpec
from edgeprism.strategies.sequence.partition import token_bounds

Counts = list[Tensor]


class Partitioned:
    """Inputs of ``num_tokens`` tokens, divided over devices by ``shares``; ``mask`` is True at real tokens."""

    def __init__(
        self,
        spec: CodecSpec,
        shares: Sequence[float],
        calibration: Calibration | None = None,
        *,
        num_tokens: int,
        mask: Bool[Tensor, "batch tokens"] | None,
        is_causal: bool,
        device: torch.device,
    ) -> None:
        bounds = token_bounds(num_tokens, shares)
        self.num_tokens = num_tokens
        self._bounds = tuple((start, stop) for start, stop in bounds if stop > start)
        self._spec, self._calibration = spec, calibration
        self._mask, self._is_causal, self._device = mask, is_causal, device
        self._codecs: dict[tuple[int, torch.dtype], list[Codec]] = {}
        self._bias: tuple[Counts, Tensor] | None = None
        self._next_block = 0
        self._ones: dict[int, Tensor] = {}
        self._token_owner = torch.empty(num_tokens, dtype=torch.long, device=device)
        for index, (start, stop) in enumerate(self._bounds):
            self._token_owner[start:stop] = index

    def received(
        self, rows: Float[Tensor, "batch tokens width"], block: int
    ) -> tuple[Float[Tensor, "batch rows width"], Counts]:
        """What the others see of a block's ``rows``, by partition, and the tokens that each row stands for.

        InputError where the codec predicts from the block before and that was another one.
        """
        if self._spec.is_delta and block not in (0, self._next_block):
            raise InputError(
                f"codec {self._spec} predicts from block to block, and block {block} came out of order; "
                "turn gradient checkpointing off, or take a codec without delta"
            )
        self._next_block = block + 1
        decoded: list[Tensor] = []
        counts: Counts = []
        for codec, (start, stop) in zip(self._codecs_for(rows), self._bounds, strict=True):
            part, count = straight_through(codec, rows[:, start:stop], block)
            decoded.append(part)
            counts.append(self._one_each(part.shape[1]) if count is None else count)
        return torch.cat(decoded, dim=1), counts

    def positions(self, rows: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "one_or_batch rows"]:
        """Mean token index of what each decoded row stands for."""
        starts = (start for start, _ in self._bounds)
        parts = [codec.positions(start) for codec, start in zip(self._codecs_for(rows), starts, strict=True)]
        batch = max(part.shape[0] for part in parts)
        return torch.cat([part.to(self._device).expand(batch, -1) for part in parts], dim=1)

    def bias(self, counts: Counts, dtype: torch.dtype) -> Float[Tensor, "one_or_batch 1 tokens keys"]:
        """What is added to the logits of the tokens (N) over their keys (N + M). Made once while ``counts`` are the
        same tensors, which for most codecs is for all blocks."""
        known = self._bias
        if known is None or known[1].dtype != dtype or any(a is not b for a, b in zip(counts, known[0], strict=True)):
            known = self._bias = (counts, self._make_bias(counts, dtype))
        return known[1]

    def _make_bias(self, counts: Counts, dtype: torch.dtype) -> Tensor:
        own = self._one_each(self.num_tokens) if self._mask is None else self._mask
        batch = max(count.shape[0] for count in [own, *counts])
        all_counts = torch.cat([c.to(self._device).float().expand(batch, -1) for c in [own, *counts]], dim=1)
        visible = self._visible([count.shape[1] for count in counts]) & (all_counts > 0)[:, None, None]
        logs = all_counts.clamp(min=1).log().to(dtype)[:, None, None]
        return torch.where(visible, logs, torch.finfo(dtype).min)

    def _visible(self, num_rows: Sequence[int]) -> Bool[Tensor, "tokens keys"]:
        """Which keys each token sees, padding aside."""
        tokens = torch.arange(self.num_tokens, device=self._device)
        owner = self._token_owner[:, None]
        sender = torch.repeat_interleave(torch.tensor(num_rows, device=self._device))[None]
        own, others = owner == self._token_owner[None], owner != sender
        if self._is_causal:
            own, others = own & (tokens[None] <= tokens[:, None]), sender < owner
        return torch.cat([own, others], dim=1)

    def _one_each(self, num_rows: int) -> Tensor:
        """The same tensor every time, which is how ``bias`` knows that it has not changed."""
        return self._ones.setdefault(num_rows, torch.ones(1, num_rows))

    def _codecs_for(self, rows: Tensor) -> list[Codec]:
        key = (rows.shape[2], rows.dtype)
        if key not in self._codecs:
            self._codecs[key] = [
                make_codec(
                    self._spec,
                    num_tokens=stop - start,
                    mask=None if self._mask is None else self._mask[:, start:stop],
                    width=rows.shape[2],
                    dtype=rows.dtype,
                    device=self._device,
                    calibration=self._calibration,
                )
                for start, stop in self._bounds
            ]
        return self._codecs[key]
