"""A request under `sequence` or `replica` as orders: what each device is told, and the tensors that it is given."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprism.models.model import Model, Tokens
from edgeprism.runtime.job import WORKERS_PART, as_computed, as_sent, replica_job
from edgeprism.runtime.messages import Job
from edgeprism.specs.plan import Plan
from edgeprism.strategies.greedy import GreedySettings
from edgeprism.strategies.replica.forward import batch_of, samples_of
from edgeprism.strategies.replica.partition import sample_bounds
from edgeprism.strategies.sequence.partition import token_bounds

TimeoutOf = Callable[[Hashable, int, int], float]
"""Seconds that requests of one kind may take, with this batch and so many tokens a sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job for several devices, before it is handed out."""

    job: Job
    tensors_of: Callable[[int], dict[str, Tensor]]  # by index into job.devices
    plan: Plan
    batch: int
    num_tokens: int
    timeout_s: float
    kind: Hashable
    """Requests of one kind take about the same time. Who takes part does not matter: after each failure somebody else
    does, and then nothing would be known of how long to wait."""

    def order(self, model: Model, index: int) -> tuple[Job, list[Tensor]]:
        """For the device at ``index``, and what travels with it: of a picture its strip, or the rows of that where they
        are less."""
        given = self.tensors_of(index)
        order, tensors = as_sent(self.job, given)
        if "place" not in given:
            return order, tensors
        start, stop = self.job.bounds[index]
        row_bytes = self.batch * (stop - start) * model.config.hidden_size * model.dtype.itemsize
        if sum(tensor.nbytes for tensor in tensors) <= row_bytes:
            return order, tensors
        with torch.no_grad():
            return as_sent(self.job, {"rows": model.embed(given)})


def token_request(tokens: Tokens, plan: Plan, greedy: GreedySettings | None, timeout_of: TimeoutOf) -> Request:
    """Under `sequence`: each device gets the features of its own tokens. PlanError for what the codec cannot send."""
    devices = tuple(device for device, share in enumerate(plan.shares) if share > 0)
    bounds = token_bounds(tokens.num_tokens, [plan.shares[device] for device in devices])
    for start, stop in bounds:
        plan.codec.num_rows(stop - start)  # PlanError before anything is sent
    shared = {"mask": tokens.mask, "all_positions": tokens.positions}
    everybodys = {name: tensor for name, tensor in shared.items() if tensor is not None}
    kind = ("sequence", str(plan.codec), tokens.batch, tokens.num_tokens, tuple(everybodys), greedy is not None)
    timeout_s = timeout_of(kind, tokens.batch, tokens.num_tokens)
    job = Job(
        kind="sequence", tensors=(*tokens.features, *everybodys), timeout_s=WORKERS_PART * timeout_s, devices=devices,
        bounds=bounds, codec=plan.codec, reads=tokens.reads, greedy=greedy,
    )  # fmt: skip
    return Request(
        job=job, tensors_of=lambda index: {**tokens.features_of(*bounds[index]), **everybodys}, plan=plan,
        batch=tokens.batch, num_tokens=tokens.num_tokens, timeout_s=timeout_s, kind=kind,
    )  # fmt: skip


def sample_request(model: Model, inputs: dict[str, Any], plan: Plan, timeout_of: TimeoutOf) -> Request:
    """Under `replica`: each device gets whole samples."""
    inputs = as_computed(inputs, model.dtype)
    batch, num_tokens = batch_of(inputs), model.num_tokens(inputs)
    all_bounds = sample_bounds(batch, plan.shares)
    devices = tuple(device for device, (start, stop) in enumerate(all_bounds) if stop > start)
    bounds = tuple(all_bounds[device] for device in devices)
    kind = ("replica", batch, num_tokens)
    timeout_s = timeout_of(kind, batch, num_tokens)
    job = replica_job(inputs, devices, bounds, WORKERS_PART * timeout_s)

    def tensors_of(index: int) -> dict[str, Tensor]:
        chosen = samples_of(inputs, *bounds[index], batch)
        return {name: chosen[name] for name in job.tensors}

    return Request(
        job=job, tensors_of=tensors_of, plan=plan, batch=batch, num_tokens=num_tokens, timeout_s=timeout_s, kind=kind
    )
