"""What the text families share: checking ids, masks and positions, and cutting them into tokens.

Ids travel to the devices as int32, four bytes a token; every device embeds its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from edgeprism.errors import InputError
from edgeprism.models.block import Layer, Rows
from edgeprism.models.model import Model, Tokens, only
from edgeprism.models.reads import HeadInput, Reads

CLS = Reads(rows=((0,),))
EVERY_ROW = Reads(every_row=True)


class TextModel(Model):
    """A model over token ids. Subclasses say which positions transformers would use, and how rows are embedded."""

    takes_token_types: bool = True
    is_rotary: bool = False  # queries and keys are turned by their positions, in every block
    vocab_size: int
    max_positions: int  # size of the position table

    @property
    def input_names(self) -> tuple[str, ...]:
        names = ("input_ids", "attention_mask", "position_ids")
        return (*names, "token_type_ids") if self.takes_token_types else names

    def tokens(self, inputs: dict[str, Any]) -> Tokens:
        given = only(inputs, *self.input_names)
        ids = given["input_ids"]
        check_ids(ids, self.vocab_size)
        mask = real_tokens(given.get("attention_mask"), ids)
        mask = None if mask is None else mask.to(self.device)
        positions = given.get("position_ids")
        positions = self.default_positions(ids) if positions is None else _like_ids("position_ids", positions, ids)
        self._check_positions(positions, ids)
        features = {"ids": ids, "positions": positions.expand_as(ids)}
        if (types := given.get("token_type_ids")) is not None:
            features["types"] = _like_ids("token_type_ids", types, ids)
            check_ids(types, self.num_types, "token_type_ids")
        features = {name: feature.to(self.device, torch.int32) for name, feature in features.items()}
        turns = positions.to(self.device, torch.int32) if self.is_rotary and not _are_indices(positions) else None
        return Tokens(features=features, mask=mask, reads=self.reads(ids), positions=turns)

    def num_tokens(self, inputs: dict[str, Any]) -> int:
        return int(inputs["input_ids"].shape[-1])

    @property
    def num_types(self) -> int:
        """Number of token types."""
        return int(self.config.type_vocab_size)

    def default_positions(self, ids: Tensor) -> Tensor:
        """Position ids (1 or batch, tokens) that transformers uses when none are given."""
        return torch.arange(ids.shape[1])[None]

    def reads(self, ids: Tensor) -> Reads:
        """The rows that the head reads."""
        raise AssertionError("each head says which rows it reads")

    def _check_positions(self, positions: Tensor, ids: Tensor) -> None:
        if int(positions.min()) < 0 or int(positions.max()) >= self.max_positions:
            raise InputError(
                f"{ids.shape[1]} tokens reach position {int(positions.max())}; this model has positions 0 to "
                f"{self.max_positions - 1}: shorten the input or truncate it in the tokenizer"
            )


class CausalLM(TextModel):
    """A text model whose head predicts the token after each row, which is what generation needs. For a family's bare
    model to be mixed in."""

    generation_config: Any
    to_logits: Layer

    def head(self, joined: HeadInput) -> ModelOutput:
        assert joined.rows is not None
        return self.output(logits=self.to_logits(joined.rows))

    def next_logits(self, rows: Rows) -> Tensor:
        """Logits (batch, vocabulary) of the token after the last of ``rows`` (finished rows)."""
        return self.to_logits(rows[:, -1])


def last_real_row(ids: Tensor, padding_id: int | None) -> Reads:
    """What a causal classifier reads: each sample's last row that is not padding, by its id."""
    if padding_id is None:
        if ids.shape[0] > 1:
            raise InputError("a batch needs config.pad_token_id, to find each sample's last token; it is not set")
        return Reads(rows=((ids.shape[1] - 1,),))
    last = (torch.arange(ids.shape[1]) * ids.ne(padding_id).cpu()).argmax(-1)
    return Reads(rows=tuple((int(index),) for index in last))


def check_ids(ids: Tensor, count: int, name: str = "input_ids") -> None:
    """InputError unless ``ids`` is (batch, tokens), not empty, of integers below ``count``."""
    if ids.ndim != 2 or 0 in ids.shape or ids.dtype.is_floating_point:
        raise InputError(f"{name} must be integers of shape (batch, tokens), not {ids.dtype} {tuple(ids.shape)}")
    if int(ids.min()) < 0 or int(ids.max()) >= count:
        raise InputError(f"{name} must lie between 0 and {count - 1}; they reach {int(ids.min())} and {int(ids.max())}")


def real_tokens(mask: Tensor | None, ids: Tensor) -> Tensor | None:
    """The attention mask as booleans, or None where every token is real."""
    if mask is None:
        return None
    real = _like_ids("attention_mask", mask, ids).bool()
    return None if bool(real.all()) else real


def _are_indices(positions: Tensor) -> bool:
    return bool((positions == torch.arange(positions.shape[1], device=positions.device)).all())


def _like_ids(name: str, value: Tensor, ids: Tensor) -> Tensor:
    if name == "position_ids" and value.shape == (1, ids.shape[1]):  # transformers lets one row stand for all samples
        return value
    if value.shape != ids.shape:
        raise InputError(f"{name} must have the shape of input_ids, {tuple(ids.shape)}, not {tuple(value.shape)}")
    return value
