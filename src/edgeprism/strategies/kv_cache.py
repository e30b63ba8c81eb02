"""Keys and values of a text, block by block, for the tokens that come after it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Seen(NamedTuple):
    """What a token attends to in one block: keys and values (batch, key_value_heads, rows, head_width), and the bias
    (1 or batch, 1, 1, rows) of its logits; None is no bias."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None


class KeyValueCache:
    """Room for ``room`` rows in every block of a model, or of a stage: those of a prompt, and one for each token after
    it."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._blocks: dict[int, Seen] = {}
        self._lengths: dict[int, int] = {}
        self._bias: tuple[Tensor | None, Tensor | None] = (None, None)  # the last one that was given, and grown

    def holds(self, block: int) -> bool:
        """Whether the prompt has come through that block."""
        return block in self._blocks

    def keep(self, block: int, seen: Seen) -> None:
        """What a token after the prompt sees of it. Blocks mostly have one bias, and share it here as well."""
        if seen.bias is not self._bias[0]:
            self._bias = seen.bias, _grown_bias(seen.bias, self._room)
        self._lengths[block] = seen.keys.shape[2]
        self._blocks[block] = Seen(_grown(seen.keys, self._room), _grown(seen.values, self._room), self._bias[1])

    def append(self, block: int, keys: Tensor, values: Tensor) -> Seen:
        """All that the token with these may see, itself included. ValueError where there is no room for it."""
        seen, length = self._blocks[block], self._lengths[block] + 1
        if length > self._room:
            raise ValueError(f"a text of {length} tokens, and its cache has room for {self._room}")
        seen.keys[:, :, length - 1 : length] = keys
        seen.values[:, :, length - 1 : length] = values
        self._lengths[block] = length
        bias = None if seen.bias is None else seen.bias[..., :length]
        return Seen(seen.keys[:, :, :length], seen.values[:, :, :length], bias)


def _grown(tensor: Tensor, room: int) -> Tensor:
    batch, heads, length, width = tensor.shape
    grown = tensor.new_empty(batch, heads, room, width)
    grown[:, :, :length] = tensor
    return grown


def _grown_bias(bias: Tensor | None, room: int) -> Tensor | None:
    """New tokens are real ones."""
    return None if bias is None else torch.nn.functional.pad(bias, (0, room - bias.shape[-1]))
