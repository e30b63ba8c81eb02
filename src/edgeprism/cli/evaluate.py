"""`edgeprism evaluate`: what lossy codecs cost on real data, against the same model on one device."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.cli.accuracy_table import accuracy_table
from edgeprism.cli.bar import progress_bar, quiet, say
from edgeprism.cli.source import config_directory, tokens_of_pictures
from edgeprism.errors import EdgeprismError, InputError, PlanError
from edgeprism.need_torch import need_torch
from edgeprism.specs.accuracy import AccuracyFile, AccuracyRecord
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec, element_bytes_of
from edgeprism.specs.plan import Plan, parse_shares
from edgeprism.strategies.sequence.partition import token_bounds

if TYPE_CHECKING:
    from edgeprism.codecs.calibration import Calibration
    from edgeprism.evaluate.answer import Answered, Predict
    from edgeprism.evaluate.dataset import Dataset
    from edgeprism.evaluate.metrics import Answers
    from edgeprism.evaluate.task import Task
    from edgeprism.runtime.engine import Engine

DEFAULT_DEVICES = 2
DEFAULT_BATCH = 16
DEFAULT_WINDOW = 512
PATIENCE_S = 60.0
"""The devices are threads of this process: slow at times, never gone."""
ATTEMPTS, PAUSE_S = 3, 6.0  # longer than a device that was late is left out: this process may have been stopped


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure what lossy codecs cost on real data",
        description="Measures what codecs cost on data, against one device, in one process that computes what P would.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory in Hugging Face format, or hub id")
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="such as cifar10, sst2, cbt-cn, wikitext2, text, pictures, csv"
    )
    parser.add_argument("--codec", required=True, metavar="C[,C...]", help="what travels, like means:9.9,int8")
    parser.add_argument("--devices", type=int, metavar="P", help="devices that share the tokens evenly (default: 2)")
    parser.add_argument("--shares", metavar="S,S,...", help="the same, unevenly: fractions of the tokens by device")
    parser.add_argument("--data", type=Path, metavar="PATH", help="file or folder that holds the data")
    parser.add_argument("--split", help="part of the data set (default: the one that models are compared on)")
    parser.add_argument("--metric", help="accuracy, f1, matthews, pearson, spearman, perplexity or agreement")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N inputs only")
    parser.add_argument(
        "--batch", type=int, default=DEFAULT_BATCH, metavar="B", help="inputs in one pass (default: 16)"
    )
    parser.add_argument(
        "--window", type=int, default=DEFAULT_WINDOW, metavar="N", help="tokens of a window of text (default: 512)"
    )
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or float64 (default: as the model is stored)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if a kernel runs there, else cpu)")
    parser.add_argument(
        "--calibration",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="tables of a codec, from edgeprism calibrate --out (default: those in the cache)",
    )
    parser.add_argument(
        "--accuracy-file",
        type=Path,
        metavar="FILE",
        help="where results are kept (default: accuracy.json in the cache)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def execute(args: argparse.Namespace) -> int:
    """Evaluate and print. InputError (one line, exit 2) for whatever cannot be used."""
    job = _check(args)
    say("loading torch and the model")
    need_torch()
    began_s = time.monotonic()
    from edgeprism.runtime.calibrations import find

    calibrations = find(args.model, [plan.codec for plan in job.plans], args.calibration)
    task, exact, answered = _answer(job, list(calibrations.values()))
    records = _records(job, exact, answered, {name: one.digest for name, one in calibrations.items()})
    document = {
        "model": args.model,
        "dataset": job.dataset.name,
        "split": job.dataset.split,
        "num_inputs": task.num_inputs,
        "duration_s": round(time.monotonic() - began_s, 3),
        "results": [record.to_json() for record in records],
        "notes": [*job.dataset.notes, *task.notes, *_seen_before(job.dataset, calibrations)],
        "accuracy_file": str(job.accuracy_file),
    }
    try:
        passed_over = _keep(job.accuracy_file, records)
    finally:  # what took minutes is shown, wherever it could not be kept
        print(json.dumps(document, indent=2) if args.json else accuracy_table(records), flush=True)
    for note in document["notes"]:
        say(note)
    for record in passed_over:
        many = f"{record.num_inputs} inputs, more than the {task.num_inputs} of now"
        say(f"{record.codec}: {job.accuracy_file} keeps an earlier measurement on {many}")
    if len(passed_over) < len(records):
        say(f"kept in {job.accuracy_file}")
    return 0


def _seen_before(dataset: Dataset, calibrations: Mapping[str, Calibration]) -> Iterator[str]:
    """Tables that were made from the very part of the data that is measured on: their codecs look better than they
    are."""
    for name, one in calibrations.items():
        if (one.source.get("dataset"), one.source.get("split")) == (dataset.name, dataset.split):
            yield f"{name}: its tables were made from {dataset.name} {dataset.split}, which it is measured on here"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the command line asks for, checked. ``stands_for``: the head's outputs in the data set's labels."""

    args: argparse.Namespace
    directory: Path
    spec: ModelSpec
    dtype: str
    plans: tuple[Plan, ...]
    dataset: Dataset
    metrics: tuple[str, ...]
    stands_for: Any
    accuracy_file: Path


def _check(args: argparse.Namespace) -> _Job:
    """All that can be refused before torch and the weights take their seconds."""
    if args.device not in (None, "cpu", "cuda"):
        raise InputError(f"--device must be cpu or cuda, not {args.device!r}")
    for name, value in (("--batch", args.batch), ("--limit", args.limit), ("--window", args.window)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    plans = _plans(args)
    directory = config_directory(args.model)
    spec = ModelSpec.from_directory(directory)
    dtype = args.dtype or spec.dtype
    element_bytes_of(dtype)
    from edgeprism.evaluate.compare import AGREEMENT, choose_metrics
    from edgeprism.evaluate.datasets.registry import load_dataset
    from edgeprism.evaluate.labels import check_head, head_labels, match_labels
    from edgeprism.runtime.cache import cache_root

    dataset = load_dataset(args.dataset, split=args.split, data=args.data).first(args.limit)
    check_head(dataset, spec)
    metrics = choose_metrics(dataset, args.metric)
    _check_codecs(plans, directory, spec)
    names_labels = bool(dataset.labels) and metrics != (AGREEMENT,)
    stands_for = match_labels(dataset, head_labels(directory, spec.num_labels)) if names_labels else None
    accuracy_file = args.accuracy_file or cache_root() / "accuracy.json"
    AccuracyFile.read(accuracy_file)
    return _Job(
        args=args,
        directory=directory,
        spec=spec,
        dtype=dtype,
        plans=plans,
        dataset=dataset,
        metrics=metrics,
        stands_for=stands_for,
        accuracy_file=accuracy_file,
    )


def _check_codecs(plans: Sequence[Plan], directory: Path, spec: ModelSpec) -> None:
    """PlanError for a codec that no input is long enough for: one would throw away what the others gave."""
    num_tokens = spec.fixed_tokens or (tokens_of_pictures(directory, spec) if spec.is_vision else None)
    for plan in plans:
        for start, stop in token_bounds(num_tokens or spec.max_tokens, plan.shares):
            if stop > start:
                plan.codec.num_rows(stop - start)


def _plans(args: argparse.Namespace) -> tuple[Plan, ...]:
    """One for each codec, over the same devices."""
    if args.shares is None:
        num_devices = DEFAULT_DEVICES if args.devices is None else args.devices
        shares = Plan.even("sequence", num_devices).shares
    else:
        shares = parse_shares(args.shares)
        if args.devices not in (None, len(shares)):
            raise PlanError(f"--shares names {len(shares)} devices and --devices {args.devices}; give one of the two")
    Plan(strategy="sequence", shares=shares)  # says what is wrong with them
    if sum(share > 0 for share in shares) < 2:
        raise PlanError("a codec matters from two devices on: one device sends nothing")
    codecs = [CodecSpec.parse(text) for text in args.codec.split(",")]
    if len(set(codecs)) < len(codecs):
        raise PlanError(f"--codec {args.codec} names one twice")
    return tuple(Plan(strategy="sequence", shares=shares, codec=codec) for codec in codecs)


def _answer(job: _Job, calibrations: Sequence[Calibration]) -> tuple[Task, Answers, list[Answered]]:
    """Everything that needs the model."""
    from edgeprism.evaluate.answer import Way, answer
    from edgeprism.evaluate.build import TaskSettings, make_task
    from edgeprism.runtime.cluster import Cluster
    from edgeprism.runtime.engine import load

    quiet()
    args, shares = job.args, job.plans[0].shares
    with (
        _patience(),
        Cluster.in_process(len(shares)) as cluster,
        load(
            args.model,
            cluster=cluster,
            plan="local",
            device=args.device,
            dtype=job.dtype,
            calibrations=calibrations,
        ) as engine,
    ):
        settings = TaskSettings(window=args.window, shares=shares, limit=args.limit)
        task = make_task(job.dataset, job.directory, job.spec, engine.config, engine.accepts, job.stands_for, settings)
        with progress_bar(task.num_samples * (1 + len(job.plans))) as progress:
            exact, answered = answer(
                task,
                predict_with(engine, Plan.local()),
                [Way(plan=plan, predict=predict_with(engine, plan)) for plan in job.plans],
                job.spec,
                element_bytes=element_bytes_of(job.dtype),
                batch=args.batch,
                progress=progress,
            )
    return task, exact, answered


def predict_with(engine: Engine, plan: Plan) -> Predict:
    """Forward passes by this plan and no other: where a device is slow an engine goes on without it, and its answer is
    exact."""

    def predict(**inputs: Any) -> Any:
        engine.use(plan)
        for _ in range(ATTEMPTS):
            output, trace = engine(**inputs), engine.last_trace
            assert trace is not None
            if not trace.failures and trace.plan == plan:
                return output
            why = "; ".join(trace.failures + trace.left_out)
            time.sleep(PAUSE_S)
        raise EdgeprismError(f"{plan.num_devices} devices of this process did not answer together: {why}")

    return predict


def _records(
    job: _Job, exact: Answers, answered: Sequence[Answered], digests: Mapping[str, str]
) -> list[AccuracyRecord]:
    from edgeprism.evaluate.measure import Subject, measure
    from edgeprism.models.load import directory_of
    from edgeprism.models.manifest import fingerprint

    model = fingerprint(directory_of(job.args.model))
    subject = Subject(model=model, dtype=job.dtype, dataset=job.dataset, window=job.args.window, calibrations=digests)
    return measure(subject, job.metrics, exact, list(zip(job.plans, answered, strict=True)))


def _keep(path: Path, records: Sequence[AccuracyRecord]) -> list[AccuracyRecord]:
    """Those that the file keeps in place of what was measured now."""
    from edgeprism.evaluate.accuracy_file import add_records

    return add_records(path, records)


@contextmanager
def _patience() -> Iterator[None]:
    """Deadlines that a busy machine keeps."""
    before = os.environ.get("EDGEPRISM_DEADLINE_S")
    os.environ.setdefault("EDGEPRISM_DEADLINE_S", str(PATIENCE_S))
    try:
        yield
    finally:
        if before is None:
            del os.environ["EDGEPRISM_DEADLINE_S"]
