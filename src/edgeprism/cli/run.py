"""`edgeprism run`: pictures are classified, texts are classified, embedded, filled in or continued."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.cli import auto_options, link_options, pipeline_options, stream_options
from edgeprism.cli.screen import Screen
from edgeprism.cli.source import check_cluster, config_directory, names_of, usual_tokens
from edgeprism.errors import EdgeprismError, InputError, PlanError
from edgeprism.need_torch import need_torch
from edgeprism.runtime.cores import divide_cores
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec, element_bytes_of
from edgeprism.specs.plan import STRATEGIES, Plan, parse_shares
from edgeprism.strategies.registry import count
from edgeprism.tasks.pictures import check_image, is_picture

if TYPE_CHECKING:
    from edgeprism.runtime.auto import AutoSettings
    from edgeprism.runtime.cluster import Cluster
    from edgeprism.runtime.engine import Engine
    from edgeprism.runtime.trace import Trace
    from edgeprism.tasks.frames import Source


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "run",
        help="run a model on pictures or texts",
        description="Runs a model: pictures are classified, texts are classified, embedded, filled in or continued.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory in Hugging Face format, or hub id")
    inputs = parser.add_argument("inputs", metavar="INPUT", nargs="+", default=[], help="path of a picture, or a text")
    inputs.required = False  # with --stream there is none; nargs="*" would find none before an option either
    parser.add_argument(
        "--local-workers", type=int, default=1, metavar="N", help="devices on this machine, this process included"
    )
    parser.add_argument(
        "--transport", metavar="T", help="between --local-workers: zmq (default), gloo or gloo:all_gather"
    )
    link_options.add_arguments(parser)
    parser.add_argument("--cluster", metavar="FILE", help="cluster file: the other devices, running edgeprism worker")
    parser.add_argument(
        "--key", metavar="FILE", help="this device's secret (default: NAME.secret beside the cluster file)"
    )
    parser.add_argument("--require-all", action="store_true", help="fail when a device of the cluster file is absent")
    parser.add_argument("--plan", default="auto", metavar="STRATEGY", help="auto, local, replica, sequence or pipeline")
    parser.add_argument(
        "--codec", default="exact", help="what travels under sequence or pipeline, like int8 (default: exact)"
    )
    parser.add_argument("--shares", metavar="S,S,...", help="fractions of the work by device")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or float64 (default: as the model is stored)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if a kernel runs there, else cpu)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads that this process computes with (default: as torch chooses)"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="B", help="inputs in one request at most (default: 8)")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="labels to show (default: 5)")
    parser.add_argument("--max-new-tokens", type=int, default=20, metavar="N", help="length of a continuation")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    auto_options.add_arguments(parser)
    pipeline_options.add_arguments(parser)
    stream_options.add_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    """Run and print. InputError (one line, exit 2) for whatever cannot be used."""
    stream_options.check_options(args)
    auto_options.check(args)
    pipeline_options.check_options(args)
    link_options.check(args)
    for name in ("batch", "top", "max_new_tokens", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if args.threads is not None and args.local_workers > 1:
        raise InputError("--threads goes not with --local-workers, which give each device cores and threads of its own")
    if args.transport not in (None, "zmq"):
        from edgeprism.wire.gloo import GlooMode

        GlooMode.parse(args.transport)
        if args.link_rate is not None:
            raise InputError(f"--link-rate paces zmq, not {args.transport}; give one of the two")
    if args.transport is not None and args.local_workers == 1:
        raise InputError("--transport is for --local-workers; workers of a cluster file use zmq, which has keys")
    given = None if args.plan == "pipeline" else _plan(args)  # where to cut depends on the model
    directory = config_directory(args.model)
    spec = ModelSpec.from_directory(directory)
    plan = given or pipeline_options.plan_of(args, spec, _num_devices(args), usual_tokens(directory, spec))
    codec = plan.codec if isinstance(plan, Plan) else CodecSpec.parse(args.codec)
    _check(spec, directory, plan, codec, args)
    with stream_options.open_stream(args, spec) as source:
        return _load_and_run(args, plan, codec, source)


def _load_and_run(args: argparse.Namespace, plan: str | Plan, codec: CodecSpec, source: Source | None) -> int:
    alone = plan == "local"
    if alone and (args.local_workers > 1 or args.cluster):
        which = "--plan replica" if source else "another with --plan"
        _say(f"plan local uses this process alone; name {which} to use the other devices")
    if source is not None and (args.micro_batch or 1) > 1:
        _say("--micro-batch has no effect on a stream: its pictures go in one by one")
    _say("loading torch and the model")
    need_torch()
    import torch

    from edgeprism.cli.stream import run_stream
    from edgeprism.runtime.engine import load

    _quiet()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    screen = Screen(names_of(Path(args.cluster)) if args.cluster and not alone else ())
    with (
        screen.events(),
        _cluster(args, alone=alone) as cluster,
        load(
            args.model,
            cluster=cluster,
            plan=plan,
            codec=codec,
            device=args.device,
            dtype=args.dtype,
            auto=_auto(args),
            **stream_options.queue_settings(args, source, cluster),
        ) as engine,
    ):
        if source is not None:
            return run_stream(engine, source, args, screen, _line_of)
        document = _run(engine, args)
    which = f"the last of {len(document['traces'])} requests: " if len(document["traces"]) > 1 else ""
    print(json.dumps(document, indent=2) if args.json else f"\n{which}{screen.named(document['summary'])}")
    return 0


def _auto(args: argparse.Namespace) -> AutoSettings:
    from edgeprism.runtime.auto import AutoSettings

    given = {
        "objective": args.objective or ("throughput" if args.stream else None),
        "max_accuracy_drop": args.max_accuracy_drop,
        "performance_map": args.map,
        "accuracy_file": args.accuracy_file,
        "policy": args.policy,
    }
    return AutoSettings(**{name: value for name, value in given.items() if value is not None})


def _cluster(args: argparse.Namespace, *, alone: bool) -> Cluster:
    from edgeprism.runtime.cluster import Cluster

    if alone or (args.cluster is None and args.local_workers == 1):
        return Cluster.alone()
    if args.cluster is None:
        return Cluster.spawn(args.local_workers, transport=args.transport or "zmq", **link_options.given(args))
    return Cluster.from_file(args.cluster, key=args.key, require_all=args.require_all)


def _num_devices(args: argparse.Namespace) -> int:
    return args.local_workers if args.cluster is None else len(names_of(Path(args.cluster)))


def _plan(args: argparse.Namespace) -> str | Plan:
    """The strategy's name, or a plan with the shares that were asked for; PlanError for what does not exist."""
    if args.shares is None:
        if args.plan not in ("auto", *STRATEGIES):
            try:
                Plan(strategy=args.plan, shares=(1.0,))  # says which there are
            except PlanError as exc:
                raise PlanError(f"{exc} or auto") from None
        return str(args.plan)
    strategy = "local" if args.plan == "auto" else args.plan
    shares = parse_shares(args.shares)
    if args.cluster is None and len(shares) != args.local_workers:
        raise InputError(f"--shares names {len(shares)} devices, --local-workers {args.local_workers}; make them equal")
    return Plan(strategy=strategy, shares=shares, codec=CodecSpec.parse(args.codec))


def _check(spec: ModelSpec, directory: Path, plan: str | Plan, codec: CodecSpec, args: argparse.Namespace) -> None:
    """What can be refused before torch and the weights take their seconds."""
    element_bytes = element_bytes_of(args.dtype or spec.dtype)
    if args.cluster is None:
        divide_cores(args.local_workers)
    elif args.local_workers != 1:
        raise InputError("--local-workers and --cluster are two ways to name the devices; give one of the two")
    else:
        check_cluster(Path(args.cluster), None if args.key is None else Path(args.key))  # also where it is not used
    for given in args.inputs:
        if spec.is_vision:
            check_image(given)
        elif os.path.isfile(given) and is_picture(Path(given)):
            raise InputError(f"{given} is a picture, and this model takes texts: {spec.architecture}")
    if spec.is_vision and plan == "sequence" and args.cluster is None:
        plan = Plan.even("sequence", args.local_workers, codec)
    num_tokens = usual_tokens(directory, spec) if spec.is_vision else None
    if isinstance(plan, Plan) and num_tokens is not None:
        count(spec, plan, num_tokens=num_tokens, batch=1, element_bytes=element_bytes)


def _run(engine: Engine, args: argparse.Namespace) -> dict[str, Any]:
    from edgeprism.models.load import directory_of
    from edgeprism.tasks.answers import task_of
    from edgeprism.tasks.inputs import load_tokenizer, prepare_with

    directory, spec = directory_of(args.model), engine.spec
    prepare = prepare_with(directory, spec)
    task = task_of(spec)
    tokenizer = None if spec.is_vision else load_tokenizer(directory)
    results: list[dict[str, Any]] = []
    traces: list[dict[str, Any]] = []
    summaries: list[str] = []
    under_way: deque[tuple[int, list[str], Callable[[], tuple[list[dict[str, Any]], Trace]]]] = deque()

    def take_oldest() -> None:
        num, inputs, answered = under_way.popleft()
        _say(f"{task} {num} of {len(args.inputs)}")
        answers, trace = answered()
        results.extend({"input": given, **answer} for given, answer in zip(inputs, answers, strict=True))
        if not args.json:
            print("\n".join(map(_line_of, results[-len(inputs) :])), flush=True)
        traces.append(trace.to_json())
        summaries.append(trace.summary())

    num_at_once = 1 if task == "generate" else _num_at_once(engine.plan)
    try:
        for num, inputs in _batches(args.inputs, 1 if _needs_single(engine, task) else args.batch):
            under_way.append((num, inputs, _asked(engine, task, prepare(inputs), tokenizer, args)))
            while len(under_way) >= num_at_once:
                take_oldest()
    except EdgeprismError:  # of one input: those before it have their answers all the same
        while under_way:
            take_oldest()
        raise
    while under_way:
        take_oldest()
    return {
        "model": args.model,
        "architecture": spec.architecture,
        "task": task,
        "results": results,
        "traces": traces,
        "summary": summaries[-1],
    }


def _num_at_once(plan: str | Plan) -> int:
    """Requests under way together: enough that no stage of a pipeline waits for the next one; else one by one."""
    return len(plan.stages) + 1 if isinstance(plan, Plan) and len(plan.stages) > 1 else 1


def _asked(
    engine: Engine, task: str, batch: dict[str, Any], tokenizer: Any, args: argparse.Namespace
) -> Callable[[], tuple[list[dict[str, Any]], Trace]]:
    """Has the engine answer; what is returned waits for that."""
    from edgeprism.tasks import answers

    if task == "generate":

        def continued() -> tuple[list[dict[str, Any]], Trace]:
            ids = engine.generate(
                batch["input_ids"], attention_mask=batch.get("attention_mask"), max_new_tokens=args.max_new_tokens
            )
            assert engine.last_trace is not None
            return [{"text": text} for text in tokenizer.batch_decode(ids, skip_special_tokens=True)], engine.last_trace

        return continued
    answer = engine.submit(**{name: tensor for name, tensor in batch.items() if engine.accepts(name)})

    def answered() -> tuple[list[dict[str, Any]], Trace]:
        output = answer.result()
        assert answer.trace is not None
        if task == "classify":
            found = answers.classify(output["logits"], engine.config, args.top)
        elif task == "fill-mask":
            found = answers.fill_mask(output["logits"], batch["input_ids"], tokenizer, args.top)
        else:
            found = answers.embed(output, batch.get("attention_mask"))
        return found, answer.trace

    return answered


def _batches(inputs: list[str], size: int) -> Iterator[tuple[int, list[str]]]:
    for start in range(0, len(inputs), size):
        chunk = inputs[start : start + size]
        yield start + len(chunk), chunk


def _needs_single(engine: Engine, task: str) -> bool:
    """Whether texts cannot share a batch: a causal classifier finds each text's last token by the padding id."""
    return task == "classify" and engine.spec.is_causal and engine.config.pad_token_id is None


def _line_of(result: dict[str, Any]) -> str:
    if "labels" in result:
        return f"{_name(result['input'])}: {_labels(result['labels'])}"
    if "masks" in result:
        return f"{result['input']}: " + "; ".join(_labels(labels) for labels in result["masks"])
    if "text" in result:
        return str(result["text"])
    vector = result["embedding"]
    shown = " ".join(f"{value:.4f}" for value in vector[:6])
    return f"{_name(result['input'])}: {len(vector)} values: {shown} ... (all of them with --json)"


def _labels(labels: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{label['label']} {label['score']:.1%}" if "score" in label else f"{label['label']} {label['value']:.4g}"
        for label in labels
    )


def _name(given: str) -> str:
    return Path(given).name if os.path.isfile(given) else given  # unlike Path.is_file it takes a text of any length


def _quiet() -> None:
    """transformers' own progress bars and notes would bury ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _say(text: str) -> None:
    """Progress is for people who watch: it goes to standard error, so that --json stays one document."""
    print(f"edgeprism: {text}", file=sys.stderr)
