"""The Model seam: what a strategy needs of a whole model besides its blocks.

tokens = model.tokens(**inputs)      # coordinator: checks the inputs; everything in it is per token
x = model.embed(tokens.features)     # each device, for the tokens it owns
... the blocks ...
rows = model.finish(x)               # each device: the last norm, where a model has one
output = model.head(joined)          # coordinator, from the rows that tokens.reads names
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.utils import ModelOutput

from edgeprism.errors import InputError
from edgeprism.models.block import Block, Rows
from edgeprism.models.reads import HeadInput, Reads
from edgeprism.specs.cost import patch_rows
from edgeprism.specs.model import ModelSpec

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What the tokens of a vision model are made of: each device embeds those of a strip of it."""

    pixels: Float[Tensor, "batch channels height width"]
    num_tokens: int
    special_tokens: int
    patch_size_px: tuple[int, int]
    interpolates: bool
    """Whether the call asked for positions to be interpolated."""

    def strip(self, start: int, stop: int) -> dict[str, Tensor]:
        """Features of the tokens [start, stop) for ``Model.embed``: the rows of patches that they lie in, and their
        place: top row of pixels, height of the picture, start, stop, interpolates."""
        height, width = self.pixels.shape[-2:]
        patch_height, patch_width = self.patch_size_px
        first, last = patch_rows(start, stop, self.special_tokens, width // patch_width)
        is_last = stop == self.num_tokens  # pixels that no patch has are below it
        bottom = height if is_last else patch_height * last
        place = torch.tensor([patch_height * first, height, start, stop, int(self.interpolates)])
        return {"pixel_values": self.pixels[:, :, patch_height * first : bottom], "place": place}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One request as tokens.

    ``features``: what ``Model.embed`` turns into rows: for text ids and the like, (batch, num_tokens, ...); for images
    all of the ``picture``, or (batch, num_tokens, width) rows of one that is very large.
    ``mask``: (batch, num_tokens), True at real tokens, or None when all are real.
    ``reads``: the rows that the head will read.
    ``positions``: (1 or batch, num_tokens) of everybody, for families that rotate queries and keys; None where the
    token at index i stands at position i, and for the other families.
    """

    features: dict[str, Tensor]
    mask: Bool[Tensor, "batch tokens"] | None
    reads: Reads
    positions: Tensor | None = None
    picture: Picture | None = None

    @property
    def batch(self) -> int:
        return next(iter(self.features.values())).shape[0]

    @property
    def num_tokens(self) -> int:
        return next(iter(self.features.values())).shape[1] if self.picture is None else self.picture.num_tokens

    def features_of(self, start: int, stop: int) -> dict[str, Tensor]:
        """The features of the tokens [start, stop)."""
        if self.picture is not None:
            return self.picture.strip(start, stop)
        return {name: feature[:, start:stop] for name, feature in self.features.items()}


class Model(ABC):
    """A model of one family. Weights are read-only, so threads may share it."""

    blocks: Sequence[Block]
    spec: ModelSpec  # set by ``registry.adapt``
    output: type[ModelOutput]  # what ``head`` returns
    is_causal: bool = False
    held: tuple[int, int] | None = None
    """The pieces [start, stop) that it has weights for, where these are not all (``partial``)."""

    def __init__(self, base: Any) -> None:
        """``base`` is the transformers model without its head."""
        if base.training:
            raise InputError("the model is in training mode, where dropout is random; call model.eval() first")
        if base.dtype not in DTYPES.values():
            raise InputError(f"the model is in {base.dtype}; convert it to one of {', '.join(DTYPES)}")
        self.config: Any = base.config
        self.dtype: torch.dtype = base.dtype
        self.device: torch.device = base.device

    def release(self) -> None:
        """Lets go of all weights, so that others can take their place in memory; see ``become``."""
        for name, value in list(vars(self).items()):
            if isinstance(value, nn.Module) or (callable(value) and not isinstance(value, type)):
                setattr(self, name, None)
        self.blocks, self.held = (), (0, 0)

    def become(self, other: Model) -> None:
        """Takes over what another one of the same architecture holds: whoever has this model has that one now."""
        assert type(other) is type(self)
        vars(self).update(vars(other))

    @property
    @abstractmethod
    def input_names(self) -> tuple[str, ...]:
        """Keyword arguments of a call; the first one is needed."""

    @abstractmethod
    def tokens(self, inputs: dict[str, Any]) -> Tokens:
        """Checks the keyword arguments of one call and cuts them into tokens; InputError for what cannot be used."""

    @abstractmethod
    def num_tokens(self, inputs: dict[str, Any]) -> int:
        """Tokens of each sample, from the shapes of the inputs alone."""

    @abstractmethod
    def embed(self, features: dict[str, Tensor]) -> Rows:
        """Rows of the first block for any run of tokens."""

    def finish(self, x: Rows) -> Rows:
        """The norm after the last block, row by row; identity where there is none."""
        return x

    @abstractmethod
    def head(self, joined: HeadInput) -> ModelOutput:
        """The output that the transformers model gives."""


def only(inputs: dict[str, Any], *names: str) -> dict[str, Any]:
    """The inputs without the Nones; InputError when one is not among ``names``, or the first of them is missing."""
    given = {name: value for name, value in inputs.items() if value is not None}
    if unknown := sorted(given.keys() - set(names)):
        raise InputError(f"this model takes {', '.join(names)}; it was given {', '.join(unknown)} as well")
    if names[0] not in given:
        raise InputError(f"this model needs {names[0]}; it was given {', '.join(given) or 'nothing'}")
    for name in names:
        if name in given and name != "interpolate_pos_encoding" and not isinstance(given[name], Tensor):
            raise InputError(f"{name} must be a torch.Tensor, not {type(given[name]).__name__}")
    return given
