"""`edgeprism calibrate`: the tables that some codecs need, from a model's own rows on some training data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.cli.bar import progress_bar, quiet, say
from edgeprism.cli.source import config_directory
from edgeprism.errors import InputError
from edgeprism.need_torch import need_torch
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec, element_bytes_of
from edgeprism.specs.plan import Plan

if TYPE_CHECKING:
    from edgeprism.codecs.calibration import Calibration
    from edgeprism.evaluate.dataset import Dataset

DEFAULT_LIMIT, DEFAULT_BATCH, DEFAULT_WINDOW, DEFAULT_DEVICES = 200, 16, 512, 2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "calibrate",
        help="make the tables that codecs with delta or pq need",
        description="Runs a model on some training data and makes the tables that codecs with delta or pq need of it.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory in Hugging Face format, or hub id")
    parser.add_argument("--codec", required=True, metavar="C[,C...]", help="such as delta+rot+int4,delta+pq:16")
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="such as cifar10, sst2, wikitext2, text, pictures"
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="file or folder that holds the data")
    parser.add_argument("--split", help="part of the data set (default: train, where there is one)")
    parser.add_argument(
        "--limit", type=int, default=DEFAULT_LIMIT, metavar="N", help="inputs, spread over the split (default: 200)"
    )
    parser.add_argument("--batch", type=int, default=DEFAULT_BATCH, metavar="B", help="inputs in a pass (default: 16)")
    parser.add_argument(
        "--window", type=int, default=DEFAULT_WINDOW, metavar="N", help="tokens of a window of text (default: 512)"
    )
    parser.add_argument(
        "--devices", type=int, default=DEFAULT_DEVICES, metavar="P", help="matters to codecs with means (default: 2)"
    )
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or float64 (default: as the model is stored)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if a kernel runs there, else cpu)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the files go (default: the cache, where they are found)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def execute(args: argparse.Namespace) -> int:
    """Calibrate, and say where the files are. InputError (one line, exit 2) for whatever cannot be used."""
    for name, value in (("--batch", args.batch), ("--limit", args.limit), ("--window", args.window)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    specs = [CodecSpec.parse(text) for text in args.codec.split(",")]
    for spec in specs:
        if not spec.needs_calibration:
            raise InputError(f"codec {spec} needs no calibration: use it as it is")
    shares = Plan.even("sequence", args.devices).shares
    directory = config_directory(args.model)
    dtype = args.dtype or ModelSpec.from_directory(directory).dtype
    element_bytes_of(dtype)
    from edgeprism.evaluate.datasets.registry import load_dataset, training_split

    split = args.split or training_split(args.dataset)
    dataset = _spread(load_dataset(args.dataset, split=split, data=args.data), args.limit)
    say("loading torch and the model")
    need_torch()
    made = _make(args, specs, shares, directory, dtype, dataset)
    files = []
    for calibration in made:
        path = _place(args.out, calibration)
        if path.exists():
            say(f"the tables that {path} held before are replaced")
        calibration.write(path)
        files.append({"codec": str(calibration.codec), "file": str(path), **calibration.source})
    if args.json:
        print(json.dumps({"model": args.model, "calibrations": files}, indent=2))
    else:
        print("\n".join(f"{file['codec']}: {file['file']}" for file in files))
    return 0


def _spread(dataset: Dataset, limit: int) -> Dataset:
    """At most ``limit`` inputs, evenly over the data set: many are sorted by label."""
    from dataclasses import replace

    if dataset.kind == "stream" or limit >= len(dataset.inputs):
        return dataset
    numbers = [index * len(dataset.inputs) // limit for index in range(limit)]
    targets = None if dataset.targets is None else dataset.targets[numbers]
    return replace(dataset, inputs=[dataset.inputs[number] for number in numbers], targets=targets)


def _make(
    args: argparse.Namespace,
    specs: list[CodecSpec],
    shares: tuple[float, ...],
    directory: Path,
    dtype: str,
    dataset: Dataset,
) -> list[Calibration]:
    from edgeprism.evaluate.build import TaskSettings, make_task
    from edgeprism.evaluate.calibrate import calibrate
    from edgeprism.models.load import directory_of, load_pretrained
    from edgeprism.models.manifest import fingerprint
    from edgeprism.models.model import DTYPES
    from edgeprism.models.registry import adapt
    from edgeprism.runtime.accelerator import choose_device

    quiet()
    weights = directory_of(args.model)
    model = adapt(load_pretrained(args.model, dtype=DTYPES[dtype]).to(choose_device(args.device)))  # type: ignore[arg-type]
    settings = TaskSettings(window=args.window, shares=shares, limit=args.limit)
    task = make_task(
        dataset, directory, model.spec, model.config, lambda name: name in model.input_names, None, settings
    )
    say(f"{task.num_samples} samples of {dataset.name} {dataset.split}")
    with progress_bar(task.num_samples) as progress:
        return calibrate(
            model,
            (batch.inputs for batch in task.batches(args.batch)),
            specs,
            shares,
            num_samples=task.num_samples,
            fingerprint=fingerprint(weights),
            source={"dataset": dataset.name, "split": dataset.split, "dtype": dtype, "devices": args.devices},
            progress=progress,
        )


def _place(folder: Path | None, calibration: Calibration) -> Path:
    from edgeprism.runtime.calibrations import place_of

    place = place_of(calibration.fingerprint, calibration.codec)
    return place if folder is None else folder / place.name
