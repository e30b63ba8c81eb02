"""Trains the demo model's low-rank adaptors and head on CIFAR-10: `python -m demo.train`.

Only `train_5k.npz` is read; its last `num_held_out` pictures are kept out of training and every choice in `Settings`
was made on them. Most epochs run on small inputs, which is several times faster, the last ones at the size that the
model is used at. Frozen weights compute in bfloat16; the adaptors are kept in float32. After each epoch a checkpoint is
written, and the same command goes on from it; the random numbers of an epoch depend on the seed and its number alone.

The result lies next to this file: `cifar10_adaptors.safetensors` and `result.json`. The accuracy on the test pictures
is measured by `python -m demo.score`, on the model as `demo.build` writes it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Dinov2ForImageClassification

from demo.adaptors import RANK, adapt, trained_state
from demo.augment import mix, vary
from demo.backbone import load_backbone
from demo.build import ADAPTORS_PATH, default_directory
from demo.cifar10 import Pictures, train_pictures
from demo.model import INPUT_SIDE_PX, LABELS, model_config, normalise, resize
from demo.provenance import provenance

RESULT_PATH = Path(__file__).resolve().parent / "result.json"
CHECKPOINT_PATH = default_directory().with_suffix(".training.pt")
"""Beside the built model, in the user's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Epochs that share an input size."""

    num_epochs: int
    side_px: int
    mixed_share: float
    """Share of the batches whose pictures are mixed with one another."""
    kept_share: float = 1.0
    """Share of the patches that take part in training: large inputs for the price of small ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides the result."""

    seed: int = 20
    stages: tuple[Stage, ...] = (
        Stage(num_epochs=4, side_px=84, mixed_share=0.2),
        Stage(num_epochs=4, side_px=112, mixed_share=0.2),
        Stage(num_epochs=5, side_px=INPUT_SIDE_PX, mixed_share=0.0, kept_share=0.5),
    )
    num_held_out: int = 500
    rank: int = RANK
    batch_size: int = 32
    peak_learning_rate: float = 5e-4
    """After two epochs at 84 px, held-out accuracy was 0.83 with 5e-4 and 0.76 with 1e-3."""
    num_warmup_steps: int = 200
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.05
    max_gradient_norm: float = 1.0

    @property
    def num_epochs(self) -> int:
        """Over all stages."""
        return sum(stage.num_epochs for stage in self.stages)

    def stage_of(self, epoch_index: int) -> Stage:
        """The stage that epoch `epoch_index`, counted from 0, belongs to."""
        for stage in self.stages:
            if epoch_index < stage.num_epochs:
                return stage
            epoch_index -= stage.num_epochs
        raise IndexError(f"there are {self.num_epochs} epochs")


class PatchDropout(nn.Module):
    """Drops random patches of each picture while training, never CLS (Liu et al., 2022).

    It stands where the embeddings have their dropout: behind the positions, so a kept patch knows where it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept_share = 1.0

    def forward(self, tokens: Tensor) -> Tensor:
        """CLS and the kept ones of `tokens`, which are (batch, 1 + patches, width)."""
        if not self.training or self.kept_share == 1.0:
            return tokens
        num_patches = tokens.shape[1] - 1
        order = torch.rand(len(tokens), num_patches).argsort(dim=1)
        kept = 1 + order[:, : round(self.kept_share * num_patches)]  # row 0 is CLS
        patches = tokens.gather(1, kept.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        return torch.cat([tokens[:, :1], patches], dim=1)


class Trainer:
    """The model under training, its optimiser, and how far it got."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.train = pictures[: len(pictures) - settings.num_held_out]
        self.held_out = pictures[len(pictures) - settings.num_held_out :]
        self.model = adapted_model(settings)
        self.optimiser = torch.optim.AdamW(
            (parameter for parameter in self.model.parameters() if parameter.requires_grad),
            lr=settings.peak_learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.num_epochs_done = 0
        self.history: list[dict[str, float]] = []

    @property
    def num_steps_per_epoch(self) -> int:
        """Whole batches only."""
        return len(self.train) // self.settings.batch_size

    def run_epoch(self) -> None:
        """One pass over the training pictures, then the accuracy on the held-out ones."""
        start_s = time.perf_counter()
        epoch_index = self.num_epochs_done
        stage = self.settings.stage_of(epoch_index)
        loss = self._pass_over(stage, epoch_index)
        self.num_epochs_done += 1
        entry = {"epoch": self.num_epochs_done, "side_px": stage.side_px, "train_loss": round(loss, 4)}
        entry["learning_rate"] = round(self.optimiser.param_groups[0]["lr"], 7)
        if len(self.held_out):
            entry["held_out_accuracy"] = accuracy(self.model, self.held_out, stage.side_px)
        entry["seconds"] = round(time.perf_counter() - start_s, 1)
        self.history.append(entry)
        print(json.dumps(entry), flush=True)

    def _pass_over(self, stage: Stage, epoch_index: int) -> float:
        self.model.train()
        self.model.dinov2.embeddings.dropout.kept_share = stage.kept_share
        rng = np.random.default_rng([self.settings.seed, epoch_index])
        torch.manual_seed(self.settings.seed + 1 + epoch_index)  # dropped patches and blocks are drawn by torch
        losses = []
        for step_index, (pixels, targets) in enumerate(self._batches(stage, rng)):
            self._set_learning_rate(epoch_index * self.num_steps_per_epoch + step_index)
            losses.append(self._step(pixels, targets))
            if step_index % 50 == 49:
                print(f"  epoch {epoch_index + 1}, step {step_index + 1}: loss {np.mean(losses[-50:]):.3f}", flush=True)
        return float(np.mean(losses))

    def _batches(self, stage: Stage, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        order = rng.permutation(len(self.train))
        for step_index in range(self.num_steps_per_epoch):
            start = step_index * self.settings.batch_size
            chosen = order[start : start + self.settings.batch_size]
            pixels = normalise(np.stack([vary(self.train.images[i], stage.side_px, rng) for i in chosen]))
            labels = torch.from_numpy(self.train.labels[chosen])
            targets = nn.functional.one_hot(labels, len(LABELS)).float()
            if rng.random() < stage.mixed_share:
                pixels, targets = mix(pixels, targets, rng)
            yield pixels, targets

    def _step(self, pixels: Tensor, targets: Tensor) -> float:
        smoothing = self.settings.label_smoothing
        loss = nn.functional.cross_entropy(logits(self.model, pixels), targets, label_smoothing=smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_gradient_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()

    def _set_learning_rate(self, step_index: int) -> None:
        """Linear warm-up, then half a cosine down to zero over all stages."""
        num_steps = self.settings.num_epochs * self.num_steps_per_epoch
        warmup = min(1.0, (step_index + 1) / self.settings.num_warmup_steps)
        cosine = (1 + math.cos(math.pi * step_index / num_steps)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.peak_learning_rate * warmup * cosine

    def save(self, path: Path) -> None:
        """Writes the checkpoint beside `path` first, so that a killed run leaves the last whole one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "settings": repr(self.settings),
                "trained": trained_state(self.model),
                "optimiser": self.optimiser.state_dict(),
                "num_epochs_done": self.num_epochs_done,
                "history": self.history,
            },
            partial,
        )
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Takes up where the checkpoint in `path` stopped."""
        checkpoint = torch.load(path, weights_only=True)
        if checkpoint["settings"] != repr(self.settings):
            raise SystemExit(f"{path} was made with other settings; delete it or give another --checkpoint")
        self.model.load_state_dict(checkpoint["trained"], strict=False)
        self.optimiser.load_state_dict(checkpoint["optimiser"])
        self.num_epochs_done = checkpoint["num_epochs_done"]
        self.history = checkpoint["history"]


def adapted_model(settings: Settings) -> Dinov2ForImageClassification:
    """The pretrained model, frozen in bfloat16, with float32 adaptors and a float32 head that starts at zero."""
    config = model_config()
    config.drop_path_rate = settings.drop_path_rate
    # Written-out attention: on a CPU, the backward pass of the fused kernel is several times slower at this length.
    model = Dinov2ForImageClassification._from_config(config, attn_implementation="eager")
    model.dinov2.load_state_dict(load_backbone())
    model.dinov2.requires_grad_(False).bfloat16()
    model.dinov2.embeddings.dropout = PatchDropout()
    adapt(model)
    nn.init.zeros_(model.classifier.weight)
    return model


def logits(model: Dinov2ForImageClassification, pixels: Tensor) -> Tensor:
    """What `model(pixels).logits` is, with the head in float32 over a bfloat16 body."""
    tokens = model.dinov2(pixels.bfloat16()).last_hidden_state.float()
    return model.classifier(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))


@torch.inference_mode()
def accuracy(model: Dinov2ForImageClassification, pictures: Pictures, side_px: int, batch_size: int = 50) -> float:
    """Share of the pictures, resized as at use, whose best class is the right one."""
    model.eval()
    num_right = 0
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        pixels = normalise(np.stack([resize(image, side_px) for image in batch.images]))
        num_right += int((logits(model, pixels).argmax(dim=1).numpy() == batch.labels).sum())
    return num_right / len(pictures)


def write_result(trainer: Trainer) -> None:
    """The adaptors in float16 (half the bytes; the loss is far below a label's margin), and the account of the run."""
    halves = {name: tensor.half().contiguous() for name, tensor in trained_state(trainer.model).items()}
    save_file(halves, ADAPTORS_PATH, metadata={"format": "pt"})
    result = {
        **provenance("demo.train"),
        "settings": asdict(trainer.settings),
        "num_train": len(trainer.train),
        "held_out_accuracy": trainer.history[-1].get("held_out_accuracy"),
        "seconds": round(sum(entry["seconds"] for entry in trainer.history)),
        "history": trainer.history,
    }
    RESULT_PATH.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Trains to the end, from the checkpoint where there is one, and writes the result; or tries a short schedule."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT_PATH, help="default: %(default)s")
    parser.add_argument("--try-epochs", type=int, help="only try a schedule of this length, at --try-side-px")
    parser.add_argument("--try-side-px", type=int, default=112)
    parser.add_argument("--try-learning-rate", type=float, default=Settings().peak_learning_rate)
    arguments = parser.parse_args()
    if arguments.try_epochs:
        stage = Stage(num_epochs=arguments.try_epochs, side_px=arguments.try_side_px, mixed_share=0.2)
        try_settings(Settings(stages=(stage,), peak_learning_rate=arguments.try_learning_rate))
    else:
        train_and_write(arguments.checkpoint)


def try_settings(settings: Settings) -> None:
    """Prints how the settings do on the held-out pictures; writes nothing."""
    trainer = Trainer(settings, train_pictures())
    for _ in range(settings.num_epochs):
        trainer.run_epoch()


def train_and_write(checkpoint: Path) -> None:
    """The run whose result is kept."""
    trainer = Trainer(Settings(), train_pictures())
    if checkpoint.exists():
        trainer.resume(checkpoint)
    while trainer.num_epochs_done < trainer.settings.num_epochs:
        trainer.run_epoch()
        trainer.save(checkpoint)
    write_result(trainer)


if __name__ == "__main__":
    main()
