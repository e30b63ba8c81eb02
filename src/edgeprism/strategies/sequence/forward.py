"""Sequence parallelism with compressed exchange: each device owns a run of tokens and computes the blocks for those.

PRISM's scheme (arXiv 2507.12145), with any codec: in every block a device sends what its tokens become under the codec,
and takes keys and values from its own rows and from what the others sent. The exchange starts as soon as the block's
attention input is known; queries, keys and values of own rows are computed while it travels; only then does the device
wait. With `kv:` codecs keys and values travel instead of rows, so they are computed first.

In the last block only the rows that the head reads are computed, and only their devices are sent to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprism.codecs.calibration import Calibration
from edgeprism.codecs.codec import Codec, make_codec
from edgeprism.models.block import Block, attend, merge_heads, split_heads
from edgeprism.models.model import Model
from edgeprism.models.reads import Part, Reads, pick_rows
from edgeprism.specs.codec import CodecSpec
from edgeprism.strategies.kv_cache import Seen
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.sequence.bias import attention_bias, pick_bias
from edgeprism.strategies.staging import Staging
from edgeprism.wire.frame import Buffer, Frame
from edgeprism.wire.transport import Exchange, Transport

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One device's part of one request.

    ``devices`` are the ranks that take part, in the order of their tokens; ``bounds`` their (start, stop); ``index``
    says which of them this device is. ``calibration`` holds the tables of a codec that needs them. ``features`` are
    those of its own tokens; ``mask`` (batch, num_tokens) and ``positions`` (1 or batch, num_tokens; None: their
    indices) are everybody's.
    """

    devices: tuple[int, ...]
    bounds: tuple[tuple[int, int], ...]
    index: int
    codec: CodecSpec
    calibration: Calibration | None
    features: dict[str, Tensor]
    mask: Tensor | None
    reads: Reads
    epoch: int
    request: int
    positions: Tensor | None = None


class SequenceForward:
    """One request under way on one device. Made anew for each request; ``run`` is called once.

    ``cache`` afterwards holds, block by block, what a token after the last own one sees, if ``keeps_cache`` was asked
    for.
    """

    def __init__(
        self,
        model: Model,
        work: Work,
        transport: Transport,
        staging: Staging,
        *,
        deadline: float,
        meter: Meter,
        keeps_cache: bool = False,
    ) -> None:
        self.cache: list[Seen] = []
        self._model, self._work = model, work
        self._transport, self._staging = transport, staging
        self._deadline, self._meter, self._keeps_cache = deadline, meter, keeps_cache
        self._start, self._stop = work.bounds[work.index]
        self._batch = next(iter(work.features.values())).shape[0]
        self._sends_keys = work.codec.travels == "keys_values"
        self._codecs = [self._codec_of(bounds) for bounds in work.bounds]
        # Causal: nothing comes from later partitions. The own partition is among the visible ones.
        self._visible = range(work.index + 1 if model.is_causal else len(work.devices))
        self._remote = [i for i in self._visible if i != work.index]
        self._own_mask = None if work.mask is None else work.mask[:, self._start : self._stop]
        self._positions = torch.arange(self._start, self._stop)[None]
        if work.positions is not None:
            self._positions = work.positions[:, self._start : self._stop]
        self._remote_positions = self._positions_of_remote()
        self._counts: list[Tensor | None] | None = None
        self._bias: Tensor | None = None
        self._next_bias: Tensor | None = None

    def run(self) -> Part:
        """Computes the own tokens through all blocks; returns this device's part of what the head reads.

        Raises PeerError when a device fails us, RequestAborted when the coordinator gives the request up.
        """
        blocks, reads = self._model.blocks, self._work.reads
        x = self._model.embed(self._work.features)
        for index, block in enumerate(blocks[:-1]):
            x = self._block(index, block, x)
        if not reads.only_rows:
            x = self._block(len(blocks) - 1, blocks[-1], x)
            return reads.take(self._model.finish(x), self._start, self._stop)
        return self._last_block(blocks[-1], x)

    def _last_block(self, block: Block, x: Tensor) -> Part:
        """Only the rows that the head reads; a device that owns none of them just sends."""
        reads, index = self._work.reads, len(self._model.blocks) - 1
        readers = [i for i, bounds in enumerate(self._work.bounds) if reads.owned(*bounds)]
        if self._work.index not in readers:
            self._begin(index, block, x, readers)
            return ()
        picked = reads.local_indices(self._start, self._stop)
        x = self._block(index, block, x, readers=readers, picked=picked)
        return reads.take(self._model.finish(x), self._start, self._stop, picked=True)

    def _block(
        self, index: int, block: Block, x: Tensor, *, readers: list[int] | None = None, picked: Tensor | None = None
    ) -> Tensor:
        """One block for the own rows, or for ``picked`` ones of them; only ``readers`` (default: all) are sent to."""
        exchange, y, own = self._begin(index, block, x, readers)
        if own is None:
            own = block.keys_values(y, self._positions)
        positions = self._positions
        if picked is not None:
            x, y, positions = pick_rows(x, picked), pick_rows(y, picked), _pick_positions(positions, picked)
        queries = block.queries(y, positions)
        keys, values = self._gather(index, own, exchange.wait(self._deadline))
        if self._keeps_cache:
            self.cache.append(Seen(keys, values, self._next_bias))
        bias = self._bias if picked is None else pick_bias(self._bias, picked)
        x = block.attention_output(x, attend(queries, keys, values, bias, block.scale))
        return block.mlp_down(x, block.mlp_up(x))

    def _begin(
        self, index: int, block: Block, x: Tensor, readers: list[int] | None
    ) -> tuple[Exchange, Tensor, KeysValues | None]:
        """Starts the exchange; keys and values come with it where they are what travels."""
        y = block.attention_input(x)
        own = block.keys_values(y, self._positions) if self._sends_keys else None
        receivers = [
            device
            for i, device in enumerate(self._work.devices)
            if i != self._work.index
            and (readers is None or i in readers)
            and (i > self._work.index or not self._model.is_causal)
        ]
        is_reader = readers is None or self._work.index in readers
        senders = [self._work.devices[i] for i in self._remote] if is_reader else []
        buffers = self._encode(y if own is None else _side_by_side(own), index) if receivers else ()
        exchange = self._transport.start(
            buffers,
            send_to=receivers,
            receive_from=senders,
            epoch=self._work.epoch,
            request=self._work.request,
            block=index,
            deadline=self._deadline,
        )
        return exchange, y, own

    def _encode(self, rows: Tensor, block: int) -> tuple[Buffer, ...]:
        with self._meter.codec():
            parts = self._codecs[self._work.index].encode(rows, block)
        return self._staging.to_wire(parts, self._meter)

    def _gather(self, index: int, own: KeysValues, frames: Mapping[int, Frame]) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, keys, head_width) of all visible partitions, in the order of their tokens."""
        if not self._remote:
            self._note_keys([own[0].shape[2]], [self._own_mask])
            return own
        rows, counts = self._decode(frames, index)
        lengths = [row.shape[1] for row in rows]
        num_before = sum(lengths[: self._work.index])
        keys, values = self._remote_keys_values(
            self._model.blocks[index], torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]
        )
        lengths.insert(self._work.index, own[0].shape[2])
        counts.insert(self._work.index, self._own_mask)
        self._note_keys(lengths, counts)
        return _insert(keys, own[0], num_before), _insert(values, own[1], num_before)

    def _decode(self, frames: Mapping[int, Frame], block: int) -> tuple[list[Tensor], list[Tensor | None]]:
        """The rows that each other visible partition sent, and what they stand for."""
        rows: list[Tensor] = []
        counts: list[Tensor | None] = []
        for i in self._remote:
            codec = self._codecs[i]
            parts = self._staging.from_wire(frames[self._work.devices[i]], self._meter, codec.layout(self._batch))
            with self._meter.codec():
                decoded, count = codec.decode(parts, block)
            rows.append(decoded)
            counts.append(count)
        return rows, counts

    def _remote_keys_values(self, block: Block, rows: Tensor) -> KeysValues:
        if self._sends_keys:
            keys, values = rows.chunk(2, dim=-1)
            return split_heads(keys, block.num_key_value_heads), split_heads(values, block.num_key_value_heads)
        return block.keys_values(rows, self._remote_positions)

    def _note_keys(self, num_rows: list[int], counts: list[Tensor | None]) -> None:
        """Makes the bias over these key rows. Most codecs give the same counts in every block: then it is made once."""
        if self._counts is not None and all(new is old for new, old in zip(counts, self._counts, strict=True)):
            return
        self._counts = counts
        self._bias = self._bias_over(counts, num_rows, is_causal=self._model.is_causal)
        if self._keeps_cache:
            self._next_bias = self._bias_over(counts, num_rows, is_causal=False)

    def _bias_over(self, counts: list[Tensor | None], num_rows: list[int], *, is_causal: bool) -> Tensor | None:
        bias = attention_bias(counts, num_rows, self._work.index, is_causal=is_causal, dtype=self._model.dtype)
        return None if bias is None else bias.to(self._model.device)

    def _positions_of_remote(self) -> Tensor:
        """(batch, rows) mean positions of the rows that others send; empty where nobody does."""
        positions = [self._positions_under(self._codecs[i], *self._work.bounds[i]) for i in self._remote]
        return torch.cat(positions, dim=-1) if positions else torch.empty(self._batch, 0)

    def _positions_under(self, codec: Codec, start: int, stop: int) -> Tensor:
        given = self._work.positions
        means = codec.positions(start) if given is None else codec.mean_positions(given[:, start:stop])
        return means.expand(self._batch, -1)

    def _codec_of(self, bounds: tuple[int, int]) -> Codec:
        start, stop = bounds
        spec = self._model.spec
        return make_codec(
            self._work.codec,
            num_tokens=stop - start,
            mask=None if self._work.mask is None else self._work.mask[:, start:stop],
            width=2 * spec.key_value_width if self._sends_keys else spec.hidden_size,
            dtype=self._model.dtype,
            device=self._model.device,
            calibration=self._work.calibration,
        )


def _side_by_side(own: KeysValues) -> Tensor:
    """Keys and values of a partition as rows."""
    return torch.cat([merge_heads(own[0]), merge_heads(own[1])], dim=-1)


def _pick_positions(positions: Tensor, picked: Tensor) -> Tensor:
    """Positions (1 or batch, reads) of the rows ``picked``."""
    batch = max(positions.shape[0], picked.shape[0])
    return positions.expand(batch, -1).gather(1, picked.to(positions.device).expand(batch, -1))


def _insert(remote: Tensor, own: Tensor, num_before: int) -> Tensor:
    """Own keys (or values) between those of the partitions before and after."""
    return torch.cat([remote[:, :, :num_before], own, remote[:, :, num_before:]], dim=2)
