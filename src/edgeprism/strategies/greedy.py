"""Greedy decoding on one device, from the keys and values that the prefill left there.

After a distributed prefill the last partition's device holds the keys and values of every token of the prompt, because
causal attention needed them there; it goes on alone. Those of earlier partitions are what the codec made of them, and
stay so; its own and those of new tokens are exact. New tokens are appended as transformers' greedy search does it:
samples that have ended are filled with the padding id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edgeprism.errors import InputError
from edgeprism.models.block import attend
from edgeprism.models.model import Tokens
from edgeprism.models.reads import Reads
from edgeprism.models.text import CausalLM, real_tokens
from edgeprism.strategies.kv_cache import KeyValueCache, Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedySettings:
    """How far to go: at most ``max_new_tokens``, until one of ``stop_ids`` in each sample, then ``padding_id``.

    ``ended``: samples that have met their end already, when decoding goes on after an interruption; empty: none has.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    padding_id: int
    ended: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")

    def after(self, steps: Sequence[Int[Tensor, " batch"]]) -> GreedySettings | None:
        """What is left when ``steps`` were decoded; None when nothing is."""
        if not steps:
            return self
        chosen = torch.stack(list(steps))
        ended = torch.isin(chosen, torch.tensor(self.stop_ids, device=chosen.device)).any(0).tolist()
        if len(steps) == self.max_new_tokens or all(ended):
            return None
        return replace(self, max_new_tokens=self.max_new_tokens - len(steps), ended=tuple(ended))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> GreedySettings:
        """Reads what ``to_json`` wrote."""
        return cls(
            max_new_tokens=int(document["max_new_tokens"]),
            stop_ids=tuple(int(token) for token in document["stop_ids"]),
            padding_id=int(document["padding_id"]),
            ended=tuple(bool(ended) for ended in document["ended"]),
        )


def prompt_tokens(
    model: CausalLM, ids: Tensor, mask: Tensor | None, steps: Sequence[Int[Tensor, " batch"]], max_new_tokens: int
) -> Tokens:
    """The prompt, and the ``steps`` decoded from it before an interruption, as tokens that read only the last row.

    They stand at the positions that transformers' generate gives them: in the prompt counted over real tokens, 0 at
    padding wherever it stands, and then one after the other from the prompt's last position on.
    """
    length = ids.shape[-1] + len(steps)
    needed = length + max_new_tokens - 1  # the last new token is never read
    if needed > model.max_positions:
        raise InputError(
            f"{length} tokens and {max_new_tokens} new ones need {needed} positions; "
            f"this model has {model.max_positions}"
        )
    mask = real_tokens(mask, ids)
    positions = (torch.ones_like(ids) if mask is None else mask).cumsum(-1) - 1
    if mask is not None:
        positions = positions.masked_fill(~mask, 0)
        mask = torch.nn.functional.pad(mask, (0, len(steps)), value=True)
    following = positions[:, -1:] + torch.arange(1, len(steps) + 1, device=ids.device)
    tokens = model.tokens(
        {
            "input_ids": torch.cat([ids, *(step[:, None] for step in steps)], dim=1),
            "attention_mask": mask,
            "position_ids": torch.cat([positions, following], dim=1),
        }
    )
    return replace(tokens, reads=Reads(rows=((length - 1,),)))


class GreedyDecoder:
    """Continues a prompt. ``cache``: for each block, what a token after the prompt sees of it.

    ``last_position`` (batch, 1) is that of the prompt's last token.
    """

    def __init__(
        self,
        model: CausalLM,
        cache: Sequence[Seen],
        last_position: Int[Tensor, "batch 1"],
        settings: GreedySettings,
    ) -> None:
        self._model, self._settings = model, settings
        num_rows = cache[0].keys.shape[2]  # under means fewer than there are tokens
        self._cache = KeyValueCache(num_rows + settings.max_new_tokens - 1)
        for block, seen in enumerate(cache):
            self._cache.keep(block, seen)
        self._next_position = last_position + 1

    def run(self, logits: Float[Tensor, "batch vocabulary"], emit: Callable[[Tensor], None]) -> None:
        """Decodes from the prompt's ``logits``; ``emit`` gets the ids (batch,) of each new token as it is chosen."""
        settings = self._settings
        stops = torch.tensor(settings.stop_ids, device=logits.device)
        goes_on = ~torch.tensor(settings.ended or [False] * logits.shape[0], device=logits.device)
        for index in range(settings.max_new_tokens):
            ids = torch.where(goes_on, logits.argmax(-1), settings.padding_id)
            emit(ids)
            goes_on &= ~torch.isin(ids, stops)
            if index + 1 == settings.max_new_tokens or not goes_on.any():
                return
            logits = self._step(ids)

    def _step(self, ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocabulary"]:
        model, position = self._model, self._next_position
        x = model.embed({"ids": ids[:, None], "positions": position})
        for index, block in enumerate(model.blocks):
            y = block.attention_input(x)
            seen = self._cache.append(index, *block.keys_values(y, position))
            x = block.attention_output(x, attend(block.queries(y, position), *seen, block.scale))
            x = block.mlp_down(x, block.mlp_up(x))
        self._next_position = position + 1
        return model.next_logits(model.finish(x))
