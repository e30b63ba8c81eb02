"""Greedy generation on device 0's thread, and what it is not told and takes from the model, as transformers does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgeprism.errors import RequestAborted
from edgeprism.models.text import CausalLM, real_tokens
from edgeprism.runtime.scheduler import AUTO_GENERATES, Scheduler, noted
from edgeprism.runtime.text import Text
from edgeprism.runtime.trace import Trace
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.greedy import GreedySettings, prompt_tokens


class Generation:
    """One call of `Engine.generate`. ``abandoned``: set when nobody waits for it any more."""

    def __init__(
        self,
        scheduler: Scheduler,
        model: CausalLM,
        ids: Tensor,
        mask: Tensor | None,
        settings: GreedySettings,
        abandoned: threading.Event,
    ) -> None:
        self._scheduler, self._model, self._ids, self._mask = scheduler, model, ids, mask
        self._settings, self._abandoned = settings, abandoned

    def decode(self, plan: str | Plan, codec: CodecSpec, note: str) -> tuple[Tensor, Trace]:
        """Prompt and new tokens. The prompt is prefilled by ``plan``; when a device fails, this one goes on from what
        had been decoded, without any codec. ``note`` is for the trace where nothing else is said there."""
        self._await_others()
        coordinator = self._scheduler.coordinator
        now, failures, steps = coordinator.plan_of(plan, codec), tuple[str, ...](), list[Tensor]()

        def emit(step: Tensor) -> None:
            self._check()
            steps.append(step.to(self._ids.device))

        trace: Trace | None = None
        while (rest := self._settings.after(steps)) is not None:
            tokens = prompt_tokens(self._model, self._ids, self._mask, steps, rest.max_new_tokens)
            trace = coordinator.generate(tokens, now, rest, emit)
            failures += trace.failures
            if trace.failures and not trace.plan.codec.is_exact:
                failures += (_goes_on_exactly(len(steps), trace.plan.codec),)
            if trace.failures:
                now = Plan.local()
        assert trace is not None, "there is at least one token to decode"
        trace = noted(replace(trace, note=note), plan, self._scheduler.num_devices, auto_note=AUTO_GENERATES)
        ids = torch.cat([self._ids, *(step[:, None] for step in steps)], dim=1)
        return ids, replace(trace, failures=failures)

    def in_stages(self, plan: str | Plan, codec: CodecSpec, note: str) -> tuple[Tensor, Trace]:
        """The same under plan `pipeline`: prompts in micro-batches through the stages, each of which keeps its own keys
        and values."""
        mask = real_tokens(self._mask, self._ids)
        self._await_others()
        size = plan.micro_batch if isinstance(plan, Plan) else 1
        texts = [
            Text(self._model, self._ids[i : i + size], None if mask is None else mask[i : i + size], self._settings)
            for i in range(0, self._ids.shape[0], size)
        ]
        trace = self._scheduler.generate(texts, plan, codec, self._check)
        length, padding = max(len(text.steps) for text in texts), self._settings.padding_id
        columns = []
        for text in texts:
            steps = torch.stack(text.steps, dim=1)
            columns.append(torch.nn.functional.pad(steps, (0, length - steps.shape[1]), value=padding))
        ids = torch.cat([self._ids, torch.cat(columns).to(self._ids.device, self._ids.dtype)], dim=1)
        return ids, replace(trace, note="; ".join(filter(None, (note, trace.note))))

    def _await_others(self) -> None:
        """Requests that were begun before."""
        while self._scheduler.is_busy:
            self._scheduler.look_around()

    def _check(self) -> None:
        self._scheduler.check_interrupted()
        if self._abandoned.is_set():
            raise RequestAborted("nobody waits for this text any more")


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


def _goes_on_exactly(num_steps: int, codec: CodecSpec) -> str:
    """What is said when a device failed in the middle of a text."""
    return f"{num_steps} new tokens were decoded with codec {codec}, the rest here from exact keys and values"


def inferred_mask(model: CausalLM, ids: Tensor, settings: GreedySettings) -> Tensor | None:
    """The mask that transformers infers when none is given: padding is padding unless it also ends a text."""
    declared = model.generation_config.pad_token_id is not None
    if not declared or settings.padding_id in settings.stop_ids:
        return None
    return ids.ne(settings.padding_id).long()
