"""`edgeprism finetune`: trains a model with a codec in its forward pass, and writes a Hugging Face directory."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.cli import finetune_options
from edgeprism.cli.bar import quiet, say
from edgeprism.cli.source import config_directory
from edgeprism.errors import InputError
from edgeprism.need_torch import need_torch
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec

if TYPE_CHECKING:
    from edgeprism.codecs.calibration import Calibration
    from edgeprism.evaluate.examples import Examples
    from edgeprism.evaluate.finetune import OnStep, Settings, Trainer

RATES = {"low-rank": 1.5e-4, "full": 2e-5}
"""Default peak learning rates."""
RANK = 16
WARMUP = 0.05  # of the steps
PERIOD_S = 10.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "finetune",
        help="train a model to answer through a codec as it did without",
        description="Trains a model with a codec in its forward pass, and writes an ordinary Hugging Face directory.",
    )
    finetune_options.add_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    """Train, write and print. InputError (one line, exit 2) for whatever cannot be used."""
    codec = finetune_options.check(args)
    directory = config_directory(args.model)
    spec = ModelSpec.from_directory(directory)
    say("loading torch and the model")
    need_torch()
    from edgeprism.evaluate.build import make_examples
    from edgeprism.evaluate.datasets.registry import load_dataset, training_split
    from edgeprism.evaluate.write_model import check_output

    check_output(args.output)
    checkpoint = _checkpoint(args)
    data = load_dataset(args.dataset, split=training_split(args.dataset), data=args.data)
    quiet()
    examples = make_examples(data, directory, spec, codec, args.devices, args.window)
    for note in examples.notes:
        say(note)
    document = _train(args, spec, examples, checkpoint)
    print(json.dumps(document, indent=2) if args.json else _summary(document), flush=True)
    return 0


def _train(args: argparse.Namespace, spec: ModelSpec, examples: Examples, checkpoint: Path) -> dict[str, Any]:
    """Trains, scores, writes; what it did, as a document."""
    import torch

    from edgeprism.evaluate.finetune import Trainer
    from edgeprism.evaluate.write_model import check_space, write_model
    from edgeprism.models.load import directory_of, load_pretrained
    from edgeprism.models.manifest import fingerprint
    from edgeprism.runtime.calibrations import find, place_of

    codec = CodecSpec.parse(args.codec)
    tables = find(args.model, [codec], args.calibration).get(str(codec))
    indices, held_out = _divide(examples.indices[: args.limit], args.hold_out, examples.most_held_out)
    settings = _settings(args, examples, indices)
    device = _device(args.device)
    if settings.rank > (widest := min(spec.hidden_size, spec.intermediate_size)):
        raise InputError(f"--rank {settings.rank} is more than this model's matrices have ({widest}); use --full")
    student: Any = load_pretrained(args.model)
    examples.check_head(student.config)
    check_space(args.output, student)
    stored_dtype = student.dtype
    student.float().to(device)
    if not examples.has_targets:
        if settings.loss == "task":
            raise InputError(f"{args.dataset} has no labels, which --loss task learns; leave it out, or give labels")
        examples.take_answers(student, held_out, settings.dtype)
    before = _scores(student, examples, held_out, settings, tables, names=("one_device", "codec"))
    teacher: Any = None
    if settings.loss == "distil":
        teacher = load_pretrained(args.model, dtype=torch.float32).to(device)  # type: ignore[arg-type]
    source = {
        "dataset": args.dataset,
        "num_examples": len(indices),
        "fingerprint": fingerprint(directory_of(args.model)),
        **examples.about,
    }
    trainer = Trainer(student, teacher, examples, indices, settings, source, tables)
    if args.resume:
        trainer.resume(checkpoint)
        say(f"going on after step {trainer.num_steps_done}")
    with _progress(settings.num_steps, trainer.num_steps_done) as told:
        trainer.run(_and_save(trainer, checkpoint, args.checkpoint_every, settings.num_steps, told))
    model: Any = trainer.finish()
    model.to(stored_dtype).float()  # scored as it is stored
    after = _scores(model, examples, held_out, settings, tables, names=("finetuned_one_device", "finetuned_codec"))
    document = {
        "model": args.model,
        "output": str(args.output),
        "settings": asdict(settings),
        **source,
        "num_trained_weights": trainer.num_trained,
        "device": device,
        "torch": torch.__version__,
        "duration_s": round(trainer.trained_s, 1),
        "held_out": {"num_inputs": len(held_out), "measure": examples.measure, **before, **after},
    }
    model.to(stored_dtype).cpu()
    try:
        write_model(model, directory_of(args.model), args.output, document)
    except InputError as exc:
        raise InputError(f"{exc}; make room, then the same command with --resume writes what was trained") from exc
    checkpoint.unlink(missing_ok=True)
    if tables is not None:  # it was trained with these, and others would cost what was won
        tables = replace(tables, fingerprint=fingerprint(args.output))
        tables.write(place_of(tables.fingerprint, codec))
    return document


def _divide(indices: list[int], num_held_out: int | None, most: int) -> tuple[list[int], list[int]]:
    """Examples to train on, and the last ones, which are not."""
    if num_held_out is None:
        num_held_out = min(most, len(indices) // 10)
    if num_held_out >= len(indices):
        raise InputError(f"--hold-out {num_held_out} leaves none of the {len(indices)} inputs to train on")
    cut = len(indices) - num_held_out
    return indices[:cut], indices[cut:]


def _settings(args: argparse.Namespace, examples: Examples, indices: list[int]) -> Settings:
    from edgeprism.evaluate.finetune import Settings

    batch_size = args.batch or examples.default_batch
    num_steps = args.steps or max(1, round((args.epochs or 1.0) * len(examples.batches(indices, batch_size))))
    return Settings(
        codec=str(CodecSpec.parse(args.codec)),
        num_devices=args.devices,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=args.lr or RATES["full" if args.full else "low-rank"],
        rank=0 if args.full else args.rank or RANK,
        loss=args.loss,
        dtype=args.dtype,
        seed=args.seed,
        varies=examples.can_vary and args.loss == "distil" and not args.no_vary,
        num_warmup_steps=round(WARMUP * num_steps),
    )


def _scores(
    model: Any, examples: Examples, held_out: list[int], settings: Settings, tables: Calibration | None, *, names: Any
) -> dict[str, float]:
    """How the model does on held-out inputs, on one device and through the codec, under these names."""
    from edgeprism.evaluate.trainable import with_codec, without_codec

    if not held_out:
        return {}
    say(f"scoring {len(held_out)} held-out inputs")
    alone = examples.score(model, held_out, settings.dtype)
    with_codec(model, settings.codec, settings.num_devices, calibration=tables)
    divided = examples.score(model, held_out, settings.dtype)
    without_codec(model)
    return {names[0]: alone, names[1]: divided}


def _checkpoint(args: argparse.Namespace) -> Path:
    """Where checkpoints lie; InputError where the one that --resume needs is missing, or one is in the way."""
    path: Path = args.output.with_name(args.output.name + ".checkpoint")
    if args.resume and not path.exists():
        raise InputError(f"there is no checkpoint {path} to go on from; begin without --resume")
    if path.exists() and not args.resume:
        raise InputError(f"{path} is left of an unfinished run; go on with --resume, or delete it")
    return path


def _and_save(trainer: Trainer, checkpoint: Path, every: int, num_steps: int, told: OnStep) -> OnStep:
    def on_step(num_done: int, loss: float) -> None:
        if num_done % every == 0 or num_done == num_steps:  # what is trained must outlive a disk that is full
            trainer.save(checkpoint)
        told(num_done, loss)

    return on_step


@contextmanager
def _progress(num_steps: int, num_done: int) -> Iterator[Callable[[int, float], None]]:
    """A bar with the time left on a terminal, elsewhere a line now and then."""
    from tqdm import tqdm

    period_s = 0.1 if sys.stderr.isatty() else PERIOD_S
    with tqdm(
        total=num_steps, initial=num_done, desc="edgeprism", unit="step", file=sys.stderr, mininterval=period_s
    ) as bar:
        mean = math.nan

        def told(num_done: int, loss: float) -> None:
            nonlocal mean
            mean = loss if math.isnan(mean) else 0.95 * mean + 0.05 * loss
            bar.set_postfix_str(f"loss {mean:.4f}", refresh=False)
            bar.update()

        yield told


def _device(name: str | None) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def _summary(document: dict[str, Any]) -> str:
    held_out, settings = document["held_out"], document["settings"]
    lines = [f"{document['output']}: trained {settings['num_steps']} steps in {document['duration_s']:.0f} s"]
    if held_out["num_inputs"]:
        lines.append(f"{held_out['measure']} on {held_out['num_inputs']} held-out inputs")
        for name, words in (("", "before"), ("finetuned_", "after")):
            one, divided = held_out[f"{name}one_device"], held_out[f"{name}codec"]
            where = f"{settings['codec']} on {settings['num_devices']} devices"
            lines.append(f"  {words:<7} one device {one:.4f}   {where} {divided:.4f}")
    return "\n".join(lines)
