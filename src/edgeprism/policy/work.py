"""What each device does in one request, as numbers that seconds are fitted to and predicted from.

`strategies.*.cost` counts a request as papers do, every block whole. A run does less in the last block, where only the
rows that the head reads are computed; here that is counted, because seconds are compared with what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from edgeprism.codecs.size import payload_bytes
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.cost import (
    PIXEL_BYTES,
    TEXT_TOKEN_BYTES,
    block_macs,
    handed_out,
    head_macs,
    output_bytes,
    rows_read,
)
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.replica.partition import sample_bounds
from edgeprism.strategies.sequence.partition import token_bounds

ROW_KNOTS = (96, 384)
"""A matrix product of few rows takes longer for each row than one of many: seconds a row may change at these."""
LINEAR_FEATURES = range(1, 2 + len(ROW_KNOTS))
"""Those of `DeviceWork.compute_features` that count multiply-accumulates of linear layers."""
SUM_BYTES = 4  # of one value of a sum of rows, in float32
FRAME_BYTES = 400  # of a RESULT frame without tensors: its trace


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWork:
    """One device's part. Multiply-accumulates are of all samples and blocks."""

    takes_part: bool
    rows: int = 0
    """Of the matrix products: samples times own tokens."""
    linear_macs: int = 0
    attention_macs: int = 0
    embedding_macs: int = 0
    """Before the first block; among ``linear_macs``."""
    head_macs: int = 0
    """After everything is gathered; among ``linear_macs``."""
    sends_first: float = 0.0
    """Of a block's work, the part before its exchange is sent."""
    overlaps: float = 0.0
    """The part that is done while the exchange travels."""
    num_exchanges: int = 0
    num_payloads: int = 0
    """Sent and received in one block."""
    block_bytes: int = 0
    """Of the payload that goes to each peer in a block."""
    encoded_values: int = 0
    """Values that the codec is given in one block."""
    decoded_values: int = 0
    """Values that it makes in one block."""
    input_bytes: int = 0
    """That the coordinator sends it when the request begins."""
    result_bytes: int = 0
    """That it sends the coordinator at the end."""

    def compute_features(self) -> tuple[float, ...]:
        """What seconds of computing are a sum of, each times a cost of the device: a constant, 1e9 multiply-accumulates
        of linear layers by how many rows they have, those of attention, exchanges, and megabytes through the sockets,
        which the same cores encrypt."""
        starts, stops = (0, *ROW_KNOTS), (*ROW_KNOTS, max(self.rows, ROW_KNOTS[-1]))
        gmacs_a_row = self.linear_macs / 1e9 / max(1, self.rows)
        linear = (gmacs_a_row * max(0, min(self.rows, stop) - start) for start, stop in zip(starts, stops, strict=True))
        num_messages = self.num_exchanges * self.num_payloads
        megabytes = (self.input_bytes + self.result_bytes + num_messages * self.block_bytes) / 1e6
        return 1.0, *linear, self.attention_macs / 1e9, float(num_messages), megabytes

    def wire_features(self) -> tuple[float, float]:
        """The same for laying out and parsing messages: how many, and megabytes."""
        num_messages = self.num_exchanges * self.num_payloads
        megabytes = (self.input_bytes + self.result_bytes + num_messages * self.block_bytes) / 1e6
        return num_messages + 2.0, megabytes

    def codec_features(self) -> tuple[float, float]:
        """The same for encoding and decoding: how many payloads, and millions of values."""
        num_values = self.num_exchanges * (self.encoded_values + self.decoded_values)
        return float(self.num_exchanges * self.num_payloads), num_values / 1e6


@lru_cache(maxsize=4096)
def work_of(model: ModelSpec, plan: Plan, *, batch: int, num_tokens: int, element_bytes: int) -> tuple[DeviceWork, ...]:
    """Of every device that has a place in the plan. PlanError when the plan cannot be carried out."""
    if plan.strategy == "sequence":
        return _sequence(model, plan, batch, num_tokens, element_bytes)
    counts: tuple[int, ...] = (batch,)
    if plan.strategy == "replica":
        counts = tuple(stop - start for start, stop in sample_bounds(batch, plan.shares))
    sample_bytes = model.input_values(num_tokens) * (PIXEL_BYTES if model.is_vision else TEXT_TOKEN_BYTES)
    return tuple(
        _whole(model, count, num_tokens, sample_bytes if index else 0) if count else DeviceWork(takes_part=False)
        for index, count in enumerate(counts)
    )


def _whole(model: ModelSpec, num_samples: int, num_tokens: int, sample_bytes: int) -> DeviceWork:
    """Whole samples, on the coordinator where they need not travel (``sample_bytes`` 0)."""
    reads = rows_read(model, 0, num_tokens, num_tokens)
    linear, attention = _macs(model, num_tokens, num_tokens, num_tokens, reads)
    embedding = model.embedding_macs(num_tokens)
    return DeviceWork(
        takes_part=True,
        rows=num_samples * num_tokens,
        linear_macs=num_samples * (linear + embedding + head_macs(model, num_tokens)),
        attention_macs=num_samples * attention,
        input_bytes=num_samples * sample_bytes,
        result_bytes=num_samples * output_bytes(model, num_tokens) + FRAME_BYTES if sample_bytes else 0,
    )


def _sequence(model: ModelSpec, plan: Plan, batch: int, num_tokens: int, element_bytes: int) -> tuple[DeviceWork, ...]:
    bounds = token_bounds(num_tokens, plan.shares)
    codec = plan.codec
    width = model.hidden_size if codec.travels == "rows" else 2 * model.key_value_width
    active = [index for index, (start, stop) in enumerate(bounds) if stop > start]
    works: list[DeviceWork] = []
    for index, (start, stop) in enumerate(bounds):
        count = stop - start
        if not count:
            works.append(DeviceWork(takes_part=False))
            continue
        peers = [peer for peer in active if peer != index]
        heard = [peer for peer in peers if peer < index or not model.is_causal]
        told = [peer for peer in peers if peer > index or not model.is_causal]
        received = [codec.num_rows(bounds[peer][1] - bounds[peer][0]) for peer in heard]
        key_rows = count + sum(received)
        projected = key_rows if codec.travels == "rows" else count
        reads = rows_read(model, start, stop, num_tokens)
        linear, attention = _macs(model, count, key_rows, projected, reads)
        given = handed_out(
            model, start, stop, num_tokens=num_tokens, batch=batch, element_bytes=element_bytes
        )  # fmt: skip
        embedding = model.embedding_macs(num_tokens) if index == 0 or given.embeds else 0
        head = head_macs(model, num_tokens) if index == 0 else 0
        first, overlaps = _parts(model, codec, count, key_rows, projected)
        works.append(
            DeviceWork(
                takes_part=True,
                rows=batch * count,
                linear_macs=batch * (linear + embedding + head),
                attention_macs=batch * attention,
                embedding_macs=batch * embedding,
                head_macs=batch * head,
                sends_first=first,
                overlaps=overlaps,
                num_exchanges=model.num_layers if peers else 0,
                num_payloads=len(told) + len(heard),
                block_bytes=payload_bytes(
                    codec, num_tokens=count, width=width, batch=batch, element_bytes=element_bytes
                ),
                encoded_values=0 if codec.is_exact or not told else batch * count * width,
                decoded_values=0 if codec.is_exact else batch * sum(received) * width,
                input_bytes=given.num_bytes if index else 0,
                result_bytes=batch * _part_bytes(model, start, reads, element_bytes) + FRAME_BYTES if index else 0,
            )
        )
    return tuple(works)


def _macs(model: ModelSpec, own_rows: int, key_rows: int, projected_rows: int, reads: int) -> tuple[int, int]:
    """Multiply-accumulates of one sample on one device, of linear layers and of attention: all blocks but the last as
    they are, the last one for the ``reads`` rows that the head wants of this device."""
    whole = block_macs(model, own_rows=own_rows, key_rows=key_rows, projected_rows=projected_rows)
    last = 0
    if reads:
        last = block_macs(model, own_rows=reads, key_rows=key_rows, projected_rows=projected_rows)
    attention = 2 * key_rows * model.hidden_size * ((model.num_layers - 1) * own_rows + reads)
    return (model.num_layers - 1) * whole + last - attention, attention


def _parts(
    model: ModelSpec, codec: CodecSpec, own_rows: int, key_rows: int, projected_rows: int
) -> tuple[float, float]:
    """Of a block's multiply-accumulates, the parts before the exchange is sent and while it travels."""
    whole = block_macs(model, own_rows=own_rows, key_rows=key_rows, projected_rows=projected_rows)
    keys_values = 2 * own_rows * model.hidden_size * model.key_value_width / whole
    queries = own_rows * model.hidden_size**2 / whole
    return (keys_values, queries) if codec.travels == "keys_values" else (0.0, keys_values + queries)


def _part_bytes(model: ModelSpec, start: int, reads: int, element_bytes: int) -> int:
    """Of what a device sends of one sample for the head, from ``reads`` rows of which the first is token ``start``."""
    if model.head_averages:
        return model.hidden_size * (SUM_BYTES + (element_bytes if start == 0 else 0))
    return reads * model.hidden_size * element_bytes
