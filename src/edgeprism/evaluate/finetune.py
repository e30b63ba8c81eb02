"""Trains a model with a codec in its forward pass, so that it answers through the codec as it did without.

The student computes what the devices would (`trainable`). It learns the answers of the same model on one device
(distillation, Hinton et al., 2015: no labels are needed, and pictures may be varied freely) or the targets: labels, or
the next tokens of a text. What an input is, and what its loss, `examples` says. A step depends on the settings, its
number and what the steps before it left, on nothing else: a run that was broken off goes on from its checkpoint to the
same weights, bit for bit, on the same machine.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from edgeprism.codecs.calibration import Calibration
from edgeprism.errors import InputError
from edgeprism.evaluate.examples import Examples, Indices, endless
from edgeprism.evaluate.low_rank import adapt, merge
from edgeprism.evaluate.trainable import with_codec, without_codec
from edgeprism.evaluate.variants import vary

Loss = Literal["distil", "task"]
OnStep = Callable[[int, float], object]
"""Told the number of steps done and the loss of the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides the result, given the model and the data. ``rank`` 0 trains every weight."""

    codec: str
    num_devices: int
    num_steps: int
    batch_size: int
    learning_rate: float
    rank: int
    loss: Loss
    dtype: str
    seed: int
    varies: bool
    num_warmup_steps: int
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    temperature: float = 1.0


class Trainer:
    """The student, its teacher, its optimiser, and how far it got.

    ``student`` and ``teacher`` are two copies of one model in float32, the student wrapped by nobody yet; there is no
    teacher where the targets are learned. ``indices`` are the examples to train on.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        examples: Examples,
        indices: Indices,
        settings: Settings,
        source: dict[str, Any],
        calibration: Calibration | None = None,
    ) -> None:
        assert (teacher is None) == (settings.loss == "task")
        torch.manual_seed(settings.seed)
        self.num_steps_done = 0
        self.trained_s = 0.0
        """Seconds of all steps, those before a checkpoint included."""
        self._settings, self._source = settings, source
        self._tables = None if calibration is None else calibration.digest
        self._examples, self._indices = examples, indices
        self._student, self._teacher = student, teacher
        if settings.rank:
            # A teacher's answers are its rows through this very head, so it stays. Trained as well, it did harm: the
            # demo model's divergence after 40 steps was 0.052 (0.078 before), and 0.049 with its first head put back.
            adapt(student, settings.rank, trains_head=teacher is None and examples.trains_head)
        with_codec(student, settings.codec, settings.num_devices, calibration=calibration)
        self._trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
        matrices = [p for p in self._trained.values() if p.ndim > 1]
        others = [p for p in self._trained.values() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self._optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    @property
    def num_trained(self) -> int:
        """Numbers that training changes."""
        return sum(parameter.numel() for parameter in self._trained.values())

    def run(self, on_step: OnStep) -> None:
        """The steps that are left."""
        self._student.train(self._teacher is None)  # dropout would only blur the answers of a teacher that has none
        start, settings = self.num_steps_done, self._settings
        batches = endless(self._examples, self._indices, settings.batch_size, settings.seed, start)
        for step, indices in zip(range(start, settings.num_steps), batches, strict=False):
            began_s = time.monotonic()
            loss = self._step(step, indices)
            self.trained_s += time.monotonic() - began_s
            self.num_steps_done = step + 1
            on_step(step + 1, loss)

    def finish(self) -> PreTrainedModel:
        """The trained model: an ordinary one again, in evaluation mode."""
        without_codec(self._student)
        if self._settings.rank:
            merge(self._student)
        self._student.eval()
        return self._student

    def save(self, path: Path) -> None:
        """Writes a checkpoint, the whole of it or none. InputError where it cannot be written."""
        partial = path.with_name(path.name + ".partial")
        checkpoint = {
            "identity": self._identity(),
            "num_steps_done": self.num_steps_done,
            "trained_s": self.trained_s,
            "trained": {name: parameter.detach() for name, parameter in self._trained.items()},
            "optimiser": self._optimiser.state_dict(),
        }
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
            os.replace(partial, path)
        except (OSError, RuntimeError) as exc:  # torch says a full disk in its own way
            partial.unlink(missing_ok=True)
            why = exc.strerror if isinstance(exc, OSError) and exc.strerror else "is the disk full?"
            raise InputError(f"checkpoint {path} cannot be written: {why}") from exc

    def resume(self, path: Path) -> None:
        """Goes on where the checkpoint in ``path`` stopped; InputError where it was made by another run."""
        try:
            checkpoint = torch.load(path, weights_only=True, map_location=self._student.device)
            identity = checkpoint["identity"]
        except Exception as exc:  # a damaged archive has many ways to fail
            raise InputError(f"{path} is no checkpoint that can be read; delete it and begin anew ({exc})") from exc
        mine = self._identity()
        if different := sorted(name for name in mine.keys() | identity.keys() if mine.get(name) != identity.get(name)):
            name = different[0]
            raise InputError(
                f"{path} was made with other settings: {name} was {identity.get(name)!r}, now {mine.get(name)!r}; "
                "give the same, or delete it and begin anew"
            )
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(checkpoint["trained"][name])
        self._optimiser.load_state_dict(checkpoint["optimiser"])
        self.num_steps_done, self.trained_s = checkpoint["num_steps_done"], checkpoint.get("trained_s", 0.0)

    def _identity(self) -> dict[str, Any]:
        return {**asdict(self._settings), **self._source, "calibration": self._tables}

    def _step(self, step: int, indices: Indices) -> float:
        settings, device = self._settings, self._student.device
        torch.manual_seed(_seed_of(settings.seed, step))  # dropout
        inputs, targets = self._examples.batch(indices)
        if settings.varies:
            generator = torch.Generator().manual_seed(_seed_of(settings.seed, step))
            inputs["pixel_values"] = vary(inputs["pixel_values"], generator)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        loss = self._examples.loss(
            self._student,
            self._teacher,
            inputs,
            targets.to(device),
            dtype=settings.dtype,
            temperature=settings.temperature,
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), settings.max_gradient_norm)
        seen = float(loss.detach())
        if not (math.isfinite(seen) and math.isfinite(float(norm))):
            raise InputError(
                f"training has diverged: the loss of step {step + 1} is {seen:g}; no model is written. Take a "
                f"smaller --lr than {settings.learning_rate:g}, and delete the checkpoint, if there is one"
            )
        for group in self._optimiser.param_groups:
            group["lr"] = self._learning_rate(step)
        self._optimiser.step()
        self._optimiser.zero_grad()
        return seen

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        settings = self._settings
        if step < settings.num_warmup_steps:
            return settings.learning_rate * (step + 1) / settings.num_warmup_steps
        rest = (step - settings.num_warmup_steps) / max(1, settings.num_steps - settings.num_warmup_steps)
        return settings.learning_rate * (1 + math.cos(math.pi * rest)) / 2


def _seed_of(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63
