"""A text that a pipeline continues greedily: its tokens so far, and what goes into the first stage next."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprism.models.reads import Reads
from edgeprism.models.text import CausalLM
from edgeprism.strategies.greedy import GreedySettings, prompt_tokens


class Text:
    """``ids`` (batch, tokens) and ``mask`` of one micro-batch of prompts. ``emit`` is given the ids (batch,) of each
    new token, samples that have ended filled with the padding id."""

    def __init__(
        self,
        model: CausalLM,
        ids: Int[Tensor, "batch tokens"],
        mask: Tensor | None,
        settings: GreedySettings,
        emit: Callable[[Tensor], None] = lambda step: None,
    ) -> None:
        self.ids, self.steps = ids.cpu(), list[Tensor]()
        self._model, self._settings, self._emit = model, settings, emit
        self._mask = None if mask is None else mask.cpu()
        self._stops = torch.tensor(settings.stop_ids)
        self._goes_on = torch.ones(ids.shape[0], dtype=torch.bool)
        self._position: Tensor | None = None
        self.room = ids.shape[1] + settings.max_new_tokens - 1
        """Tokens that stages may come to keep keys and values of: the last new one is never read."""
        self.reads: Reads | None = None
        """What the head reads of the prompt; None for the tokens after it."""
        self.num_tokens = ids.shape[1]

    def prompt(self) -> dict[str, Tensor]:
        """All tokens so far, to begin with or to begin anew."""
        left = self._settings.max_new_tokens - len(self.steps)
        tokens = prompt_tokens(self._model, self.ids, self._mask, self.steps, left)
        self.reads, self.num_tokens = tokens.reads, tokens.num_tokens
        self._position = tokens.features["positions"][:, -1:].cpu()
        features = {name: tokens.features[name].cpu().contiguous() for name in ("ids", "positions")}
        return features if tokens.mask is None else {**features, "mask": tokens.mask.cpu().contiguous()}

    def take(self, ids: Int[Tensor, " batch"]) -> bool:
        """The likeliest next token of each sample; whether more are to come."""
        chosen = torch.where(self._goes_on, ids.cpu(), self._settings.padding_id)
        self.steps.append(chosen)
        self._emit(chosen)
        self._goes_on &= ~torch.isin(chosen, self._stops)
        return len(self.steps) < self._settings.max_new_tokens and bool(self._goes_on.any())

    def next_inputs(self) -> dict[str, Tensor]:
        """The newest token, which stages have not seen."""
        assert self._position is not None
        self._position, self.reads = self._position + 1, None
        return {"ids": self.steps[-1][:, None].to(torch.int32), "positions": self._position}
