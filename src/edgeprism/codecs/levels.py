"""Pictures as the few levels that their values take: lossless, a byte a value.

Pixels come from eight bits a channel. Scaled and normalised they are floats of at most 256 levels in each channel, and
equally far apart but for rounding. So a picture travels as the numbers of its levels and a table of them, a quarter of
its bytes in float32. Whether a tensor is such a picture is found out from its values: what does not come back bit by
bit is sent as it is.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edgeprism.specs.cost import NUM_LEVELS

MIN_BYTES = 16 * 2**10
"""Of a tensor that is looked at: a smaller one travels as fast as its table."""
MAX_CHANNELS = 16
SAMPLE = 1024  # values of a channel that show how far levels are apart


def to_levels(
    x: Float[Tensor, "batch channels height width"],
) -> tuple[UInt8[Tensor, "batch channels height width"], Float[Tensor, "channels 256"]] | None:
    """The number of each value's level, and each channel's levels in the dtype of ``x``; None where it has more."""
    if x.nbytes < MIN_BYTES or x.shape[1] > MAX_CHANNELS:
        return None
    channels = x.transpose(0, 1).flatten(1).contiguous()
    numbered = _of_half_floats(channels) if x.itemsize == 2 else _evenly_apart(channels)
    if numbered is None:
        return None
    numbers, table = numbered
    by_channel = (x.shape[1], x.shape[0], *x.shape[2:])
    return numbers.to(torch.uint8).view(by_channel).transpose(0, 1).contiguous(), table


def from_levels(
    numbers: UInt8[Tensor, "batch channels height width"], table: Float[Tensor, "channels 256"]
) -> Float[Tensor, "batch channels height width"]:
    """What ``to_levels`` was given, bit by bit."""
    firsts = torch.arange(0, table.numel(), NUM_LEVELS, dtype=torch.int32, device=numbers.device)
    places = numbers.to(torch.int32) + firsts.view(-1, 1, 1)
    return table.flatten().index_select(0, places.flatten()).view(numbers.shape)


def _evenly_apart(channels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Numbers and table of (channels, values) whose levels are equally far apart but for rounding."""
    distance = _distance(channels)
    if distance is None:
        return None
    numbers = ((channels - channels.amin(1, keepdim=True)) / distance).round_()
    if not bool((numbers <= NUM_LEVELS - 1).all()):  # NaN included
        return None
    places = numbers.long() + torch.arange(0, len(channels) * NUM_LEVELS, NUM_LEVELS).unsqueeze(1)
    table = torch.zeros(len(channels) * NUM_LEVELS, dtype=channels.dtype)
    table[places] = channels
    bits = torch.int32 if channels.itemsize == 4 else torch.int64
    if not torch.equal(table[places].view(bits), channels.view(bits)):
        return None
    return numbers, table.view(-1, NUM_LEVELS)


def _distance(channels: Tensor) -> Tensor | None:
    """Between neighbouring levels of each channel, as far as a sample of its values shows them; None where these are
    too many already."""
    step = max(1, channels.shape[1] // SAMPLE)
    distances = []
    for sample in channels[:, ::step]:
        levels = torch.unique(sample)
        if len(levels) > NUM_LEVELS:
            return None
        distances.append((levels[1:] - levels[:-1]).amin() if len(levels) > 1 else torch.ones(()).to(sample))
    return torch.stack(distances).unsqueeze(1)


def _of_half_floats(channels: Tensor) -> tuple[Tensor, Tensor] | None:
    """The same for 16 bits a value, where rounding makes distances uneven: those of all bit patterns that are there."""
    tables, numbers = [], []
    for bits in channels.view(torch.int16):
        places = bits.long() + 2**15
        is_there = torch.zeros(2**16, dtype=torch.bool)
        is_there[places] = True
        there = is_there.nonzero().squeeze(1)
        if len(there) > NUM_LEVELS:
            return None
        number_of = torch.zeros(2**16, dtype=torch.uint8)
        number_of[there] = torch.arange(len(there), dtype=torch.uint8)
        numbers.append(number_of[places])
        table = torch.zeros(NUM_LEVELS, dtype=torch.int16)
        table[: len(there)] = (there - 2**15).to(torch.int16)
        tables.append(table.view(channels.dtype))
    return torch.stack(numbers), torch.stack(tables)
