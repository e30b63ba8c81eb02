"""What a plan costs, counted: multiply-accumulates and bytes as plain integers, no seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprism.specs.model import ModelSpec

PIXEL_BYTES = 1  # of one value of a picture that comes from eight bits a channel
NUM_LEVELS = 256  # of a channel of such a picture
OUTPUT_BYTES = 4  # of one number of an output, in float32
TEXT_TOKEN_BYTES = 8
"""A token of a text as it is handed out: id and position in int32 (sequence), or the id in int64 (replica)."""


def patch_rows(start: int, stop: int, special_tokens: int, patches_a_row: int) -> tuple[int, int]:
    """(first, end) of the rows of patches that the tokens [start, stop) of a picture lie in; one, if in none.

    >>> patch_rows(98, 197, 1, 14)
    (6, 14)
    """
    first, last = (max(0, token - special_tokens) for token in (start, stop))
    row = first // patches_a_row
    return row, max(row + 1, -(-last // patches_a_row))


def handed_out(
    model: ModelSpec, start: int, stop: int, *, num_tokens: int, batch: int, element_bytes: int
) -> HandedOut:
    """What a device gets for the tokens [start, stop) under `sequence`: of a text ids; of pictures their strips, a byte
    a value and a table of what these mean, or embedded rows where that is less. (Values of more than 256 levels travel
    as they are; a grid of patches that is no square is counted as one long row.)"""
    count = stop - start
    if not model.is_vision:
        return HandedOut(num_bytes=batch * count * TEXT_TOKEN_BYTES, embeds=False)
    num_patches = num_tokens - model.special_tokens
    side = math.isqrt(num_patches)
    a_row = side if side * side == num_patches else 1
    first, last = patch_rows(start, stop, model.special_tokens, a_row)
    table = NUM_LEVELS * model.num_channels * element_bytes
    strip = batch * (last - first) * a_row * model.values_per_patch * PIXEL_BYTES + table
    rows = batch * count * model.hidden_size * element_bytes
    return HandedOut(num_bytes=min(strip, rows), embeds=strip < rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOut:
    """Bytes, and whether it takes an embedding to make rows of them."""

    num_bytes: int
    embeds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCost:
    """One device's part of one request."""

    num_samples: int
    """Samples of the batch that the device works on."""
    num_tokens: int
    """Own rows of each of those samples (the papers' Nq)."""
    key_rows: int
    """Rows that its attention reads in a block, own and received (the papers' Nk)."""
    macs: int
    """Multiply-accumulates of all blocks and, on the device that embeds, of the embedding."""
    bytes_sent: int
    """Bytes to other devices in the request: inputs (device 0) and the exchanges of all blocks."""

    @property
    def gflop(self) -> float:
        """Two floating-point operations for each multiply-accumulate, in 1e9."""
        return 2 * self.macs / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One request's cost, by device in the plan's order. The head and the results it gathers are not counted."""

    devices: tuple[DeviceCost, ...]
    input_bytes: int = 0
    """Bytes of inputs that the coordinator hands out when the request starts."""
    bytes_per_block: int = 0
    """The most that one device sends in one block, to all its peers together."""
    exchange_bytes_per_block: int = 0
    """What all devices send in one block."""
    full_bytes_per_block: int = 0
    """The same, had every row travelled as it is (the full-tensor exchange of Voltage)."""
    num_exchanges: int = 0
    """Blocks in which devices exchange."""

    @property
    def saved(self) -> float | None:
        """Fraction of the full-tensor exchange that is not sent; negative where more is; None without an exchange."""
        if self.full_bytes_per_block == 0:
            return None
        return 1 - self.exchange_bytes_per_block / self.full_bytes_per_block

    @property
    def busiest(self) -> DeviceCost:
        """The device with the most multiply-accumulates."""
        return max(self.devices, key=lambda device: device.macs)


def block_macs(model: ModelSpec, *, own_rows: int, key_rows: int, projected_rows: int) -> int:
    """Multiply-accumulates of one block, for one sample on one device; biases, norms and softmax are not counted.

    ``own_rows`` (Nq) pass the query and output projections and the MLP, ``projected_rows`` become keys and values,
    ``key_rows`` (Nk) are read by attention. With an MLP four times as wide as D and every key row projected here, this
    is the papers' 10 Nq D^2 + 2 Nk D^2 + 2 Nq Nk D. ViT-B/16, one device, by hand: Nq = Nk = 197 and D = 768, so
    12 * 197 * 589,824 + 2 * 197 * 197 * 768 = 1,394,343,936 + 59,610,624 = 1,453,954,560; twelve blocks and the
    115,605,504 of the patch embedding, times two, are 35.13 GFLOP.
    """
    width = model.hidden_size
    projections = 2 * own_rows * width * width  # query and attention output
    keys_values = 2 * projected_rows * width * model.key_value_width
    attention = 2 * own_rows * key_rows * width
    mlp = model.mlp_matrices * own_rows * width * model.intermediate_size
    return projections + keys_values + attention + mlp


def whole_model_macs(model: ModelSpec, num_tokens: int) -> int:
    """Multiply-accumulates of one sample on one device: the embedding and every block, without the head."""
    block = block_macs(model, own_rows=num_tokens, key_rows=num_tokens, projected_rows=num_tokens)
    return model.embedding_macs(num_tokens) + model.num_layers * block


def rows_read(model: ModelSpec, start: int, stop: int, num_tokens: int) -> int:
    """Rows that the head wants of the tokens [start, stop) of one sample; the last block computes no others."""
    if model.head_reads == "all":
        return stop - start
    first = 0 if model.head_reads == "first" else num_tokens - 1
    return max(0, min(stop, first + model.num_rows_read) - max(start, first))


def head_macs(model: ModelSpec, num_tokens: int) -> int:
    """Of one sample's head, where it makes a number for each word of a vocabulary; any other is small."""
    if model.architecture.endswith("ForMaskedLM"):  # a layer of its own comes first
        return num_tokens * model.hidden_size * (model.hidden_size + model.vocab_size)
    return num_tokens * model.hidden_size * model.vocab_size if model.generates else 0


def output_bytes(model: ModelSpec, num_tokens: int) -> int:
    """Of one sample's output."""
    if model.generates or model.architecture.endswith("ForMaskedLM"):
        return OUTPUT_BYTES * num_tokens * model.vocab_size
    return OUTPUT_BYTES * (model.num_labels or num_tokens * model.hidden_size)
