"""What `Engine.generate` is not told and takes from the model, as transformers' ``generate`` does."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edgeprism.models.text import CausalLM
from edgeprism.specs.codec import CodecSpec
from edgeprism.strategies.greedy import GreedySettings


def greedy_settings(
    model: CausalLM, max_new_tokens: int, eos_token_id: int | Sequence[int] | None, pad_token_id: int | None
) -> GreedySettings:
    """What is not given is the model's generation config's; padding falls back to the stop, as in transformers."""
    defaults = model.generation_config
    stops = defaults.eos_token_id if eos_token_id is None else eos_token_id
    stop_ids = () if stops is None else (stops,) if isinstance(stops, int) else tuple(stops)
    padding = defaults.pad_token_id if pad_token_id is None else pad_token_id
    if padding is None:
        padding = stop_ids[0] if stop_ids else 0
    return GreedySettings(max_new_tokens=max_new_tokens, stop_ids=stop_ids, padding_id=padding)


def goes_on_exactly(num_steps: int, codec: CodecSpec) -> str:
    """What is said when a device failed in the middle of a text."""
    return f"{num_steps} new tokens were decoded with codec {codec}, the rest here from exact keys and values"


def inferred_mask(model: CausalLM, ids: Tensor, settings: GreedySettings) -> Tensor | None:
    """The mask that transformers infers when none is given: padding is padding unless it also ends a text."""
    declared = model.generation_config.pad_token_id is not None
    if not declared or settings.padding_id in settings.stop_ids:
        return None
    return ids.ne(settings.padding_id).long()
