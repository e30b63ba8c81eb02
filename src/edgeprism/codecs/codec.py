"""The Codec seam: rows of one partition -> the tensors that travel -> the rows that others compute with.

A codec is made for one partition of one request, on the sender and on each receiver alike, from what all of them know:
the number of tokens, and which of them are real. In every block the sender calls ``encode``, the receivers ``decode``.

    sender:    codec.encode(rows, block) -> parts
    receiver:  codec.decode(parts, block) -> rows, counts

Blocks come in order: what was sent in one may tell of the next.

``counts`` (1 or batch, rows) says how many real tokens each decoded row stands for: its logits get log(count) added,
which is exactly the softmax over that many equal keys (PRISM's scaling-aware softmax, arXiv 2507.12145; ToMe's
proportional attention, arXiv 2210.09461). None means one token each. A codec whose counts do not depend on the rows
gives the same tensor in every block, and no counts travel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprism.codecs.calibration import Calibration, missing
from edgeprism.codecs.means import SegmentMeans
from edgeprism.codecs.pack import Exact, Layout, Pack, Rounded
from edgeprism.codecs.predict import Difference
from edgeprism.codecs.product import ProductQuantised
from edgeprism.codecs.quantise import Quantised, RotatedQuantised
from edgeprism.codecs.rotated_difference import RotatedDifference
from edgeprism.specs.codec import CodecSpec

Parts = tuple[Tensor, ...]


class Codec(ABC):
    """One partition's codec for one request."""

    @abstractmethod
    def encode(self, rows: Float[Tensor, "batch tokens width"], block: int) -> Parts:
        """The tensors that travel, contiguous."""

    @abstractmethod
    def reduced(self, rows: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch rows width"]:
        """What ``decode`` gives but for what bits lose; gradients flow through it."""

    @abstractmethod
    def decode(self, parts: Parts, block: int) -> tuple[Float[Tensor, "batch rows width"], Tensor | None]:
        """Rows as the receivers see them, in the dtype of the model, and their counts."""

    @abstractmethod
    def layout(self, batch: int) -> tuple[Layout, ...]:
        """Dtype and shape of each tensor that travels: what a receiver insists on."""

    @abstractmethod
    def positions(self, start: int) -> Float[Tensor, "one_or_batch rows"]:
        """Mean position of the tokens that each decoded row stands for; the partition begins at token ``start``."""

    @abstractmethod
    def mean_positions(self, own: Tensor) -> Float[Tensor, "one_or_batch rows"]:
        """The same where the partition's tokens stand at the positions ``own`` (1 or batch, tokens)."""


class PartitionCodec(Codec):
    """Means first (fewer rows), then a packing (fewer bits); either may be absent."""

    def __init__(self, means: SegmentMeans | None, pack: Pack, num_tokens: int, mask: Tensor | None) -> None:
        self._means, self._pack = means, pack
        self._num_tokens = num_tokens
        self._counts = means.counts if means is not None else mask

    def encode(self, rows: Float[Tensor, "batch tokens width"], block: int) -> Parts:
        return self._pack.pack(self.reduced(rows), block)

    def reduced(self, rows: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch rows width"]:
        return rows if self._means is None else self._means.reduce(rows)

    def decode(self, parts: Parts, block: int) -> tuple[Float[Tensor, "batch rows width"], Tensor | None]:
        return self._pack.unpack(parts, block), self._counts

    def layout(self, batch: int) -> tuple[Layout, ...]:
        return self._pack.layout(batch, self._num_tokens if self._means is None else self._means.num_segments)

    def positions(self, start: int) -> Float[Tensor, "one_or_batch rows"]:
        return self.mean_positions(torch.arange(start, start + self._num_tokens)[None])

    def mean_positions(self, own: Tensor) -> Float[Tensor, "one_or_batch rows"]:
        own = own.float()
        if self._means is None:
            return own
        counts = self._means.counts
        own = own.to(counts.device).expand(max(own.shape[0], counts.shape[0]), -1)
        return self._means.reduce(own[..., None])[..., 0]


def make_codec(
    spec: CodecSpec,
    *,
    num_tokens: int,
    mask: Bool[Tensor, "batch tokens"] | None,
    width: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
    calibration: Calibration | None = None,
) -> Codec:
    """The codec of ``spec`` for a partition of ``num_tokens`` tokens. ``mask`` is True at real tokens (None: all are);
    ``width`` is what one token sends: D for rows, keys and values side by side otherwise. PlanError without the
    ``calibration`` of a codec that needs one."""
    means = SegmentMeans(num_tokens, spec.num_rows(num_tokens), mask) if spec.has_means else None
    pack = make_pack(spec, width, dtype, device or torch.device("cpu"), calibration)
    return PartitionCodec(means, pack, num_tokens, mask)


def make_pack(
    spec: CodecSpec, width: int, dtype: torch.dtype, device: torch.device, calibration: Calibration | None
) -> Pack:
    """How rows of ``width`` are written, whatever they stand for; see ``make_codec``."""
    if spec.bits == 32 and spec.group is None:
        return Exact(width=width, dtype=dtype)
    if spec.bits == 16:
        return Rounded(width=width, dtype=dtype)
    if spec.needs_calibration and calibration is None:
        raise missing(spec)
    num_groups = 2 if spec.travels == "keys_values" else 1
    tables = {} if calibration is None else calibration.ready
    if spec.is_delta and spec.is_rotated:
        return RotatedDifference(
            bits=spec.bits, dtype=dtype, **{name: tables[name] for name in ("turn", "back", "gains", "offsets")}
        )
    inner_dtype = torch.float32 if spec.is_delta else dtype
    pack: Pack
    if spec.group is not None:
        pack = ProductQuantised(
            width=width,
            dtype=inner_dtype,
            basis=tables["basis"],
            inverse=tables["inverse"],
            codebooks=tables["codebooks"],
        )
    elif spec.is_rotated:
        pack = RotatedQuantised(bits=spec.bits, num_groups=num_groups, width=width, dtype=dtype, device=device)
    else:
        pack = Quantised(bits=spec.bits, num_groups=num_groups, width=width, dtype=inner_dtype)
    if spec.is_delta:
        return Difference(pack, gains=tables["gain"], offsets=tables["offset"], dtype=dtype)
    return pack
