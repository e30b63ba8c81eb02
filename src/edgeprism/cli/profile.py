"""`edgeprism profile`: what a model costs on these devices, measured once, so that plan `auto` can choose."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from edgeprism.cli import link_options
from edgeprism.cli.bar import progress_bar, quiet, say
from edgeprism.cli.source import check_cluster, config_directory, tokens_of_pictures
from edgeprism.errors import InputError
from edgeprism.need_torch import need_torch
from edgeprism.profiler.sweep import BATCHES, MAX_PASSES, sweep
from edgeprism.runtime.cores import divide_cores
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec, element_bytes_of

if TYPE_CHECKING:
    from edgeprism.runtime.cluster import Cluster
    from edgeprism.runtime.profiling import Profiler
    from edgeprism.specs.performance_map import PerformanceMap

DEFAULT_CODECS = "int8,kv:int8,int4,means:9.9"
DEFAULT_MINUTES = 10.0
MAX_OFF = 0.1
"""Part of a point's time that its prediction may typically be off by, before somebody should measure again."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "profile",
        help="measure a model on these devices, so that plan auto can choose",
        description="Measures a model on these devices and their links, and writes the performance map that plan auto "
        "chooses by.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory in Hugging Face format, or hub id")
    parser.add_argument(
        "--local-workers", type=int, default=1, metavar="N", help="devices on this machine, this process included"
    )
    link_options.add_arguments(parser)
    parser.add_argument("--cluster", metavar="FILE", help="cluster file: the other devices, running edgeprism worker")
    parser.add_argument(
        "--key", metavar="FILE", help="this device's secret (default: NAME.secret beside the cluster file)"
    )
    parser.add_argument(
        "--codec", default=DEFAULT_CODECS, metavar="C[,C...]", help=f"lossy codecs to time (default: {DEFAULT_CODECS})"
    )
    parser.add_argument(
        "--batches", default=",".join(map(str, BATCHES)), metavar="B[,B...]", help="batch sizes (default: 1 to 32)"
    )
    parser.add_argument("--lengths", metavar="N[,N...]", help="tokens of a text (default: 128, 32 and 512)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or float64 (default: as the model is stored)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if a kernel runs there, else cpu)")
    parser.add_argument(
        "--minutes", type=float, default=DEFAULT_MINUTES, metavar="M", help="stop after so long (default: 10)"
    )
    parser.add_argument("--update", action="store_true", help="measure anew where devices or links have changed")
    parser.add_argument("--resume", action="store_true", help="go on with a sweep that was broken off")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where the map goes (default: where auto looks for it)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document: the map")


def execute(args: argparse.Namespace) -> int:
    """Measure, write, and say what was found. InputError (one line, exit 2) for whatever cannot be used."""
    link_options.check(args)
    codecs = [CodecSpec.parse(text) for text in args.codec.split(",") if text]
    batches, lengths = _counts("--batches", args.batches), args.lengths and _counts("--lengths", args.lengths)
    if not 0 < args.minutes <= 24 * 60:
        raise InputError(f"--minutes must be more than 0 and at most a day, not {args.minutes:g}")
    directory = config_directory(args.model)
    spec = ModelSpec.from_directory(directory)
    element_bytes_of(args.dtype or spec.dtype)
    if lengths and spec.is_vision:
        raise InputError(f"--lengths is for texts; {spec.architecture} takes pictures, which have their own number")
    for length in lengths or ():
        spec.check_num_tokens(length)
    if args.cluster and args.local_workers > 1:
        raise InputError("--cluster and --local-workers name two clusters; give one of them")
    divide_cores(args.local_workers)  # refuses what this machine cannot have
    if args.cluster:
        check_cluster(Path(args.cluster), None if args.key is None else Path(args.key))
    if spec.resizes_images and (usual := tokens_of_pictures(directory, spec)):
        lengths = (usual,)
    say("loading torch and the model")
    need_torch()
    quiet()
    path, found = _measure(args, spec, codecs, batches, lengths or None)
    if args.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print(_as_text(found))
    say(f"written to {path}")
    return 0


def _counts(option: str, text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise InputError(f"{option} {text!r} are not whole numbers with commas between them") from None
    if counts[0] < 1:
        raise InputError(f"{option} must be at least 1, not {counts[0]}")
    return counts


def _measure(
    args: argparse.Namespace,
    spec: ModelSpec,
    codecs: list[CodecSpec],
    batches: tuple[int, ...],
    lengths: tuple[int, ...] | None,
) -> tuple[Path, PerformanceMap]:
    from edgeprism.models.load import directory_of
    from edgeprism.models.manifest import fingerprint
    from edgeprism.runtime.calibrations import find
    from edgeprism.runtime.engine import load
    from edgeprism.runtime.maps import place_of, write
    from edgeprism.runtime.profiling import Identity, Profiler

    tables = find(args.model, codecs)
    with _cluster(args) as cluster:
        identity = Identity(
            fingerprint=fingerprint(directory_of(args.model)), cluster=cluster.key, names=cluster.names
        )  # fmt: skip
        path = args.out or place_of(identity.fingerprint, identity.cluster, args.dtype or spec.dtype)
        before = _before(args, path, identity)
        with load(
            args.model, cluster=cluster, plan="local", device=args.device, dtype=args.dtype,
            calibrations=list(tables.values()),
        ) as engine:  # fmt: skip
            profiler = Profiler(
                engine, identity, before=before, calibrations={name: one.digest for name, one in tables.items()}
            )
            say(f"measuring {cluster.num_devices} devices and their links")
            until_s = time.monotonic() + 60 * args.minutes
            try:
                reached = profiler.look_around()
                if before is not None:
                    profiler.forget_changed(before)
                wanted = sweep(
                    spec, reached, cluster.num_devices, codecs, batches=batches, lengths=lengths, max_passes=MAX_PASSES
                )
                profiler.measure_powers(wanted.points[0].num_tokens)
                with progress_bar(wanted.num_passes) as done:
                    profiler.run(wanted, until_s=until_s, done=done)
            except BaseException:
                _keep(profiler, path)
                raise
            found = profiler.result()
        write(path, found)
    return path, found


def _keep(profiler: Profiler, path: Path) -> None:
    """What a sweep that was broken off has measured."""
    from edgeprism.runtime.maps import write

    if not profiler.has_news:
        say("broken off before anything new was measured; nothing was written")
        return
    try:
        write(path, profiler.result())
        say(f"broken off: what was measured is in {path}; go on with --resume")
    except InputError as exc:
        say(f"broken off, and nothing is kept: {exc}")


def _before(args: argparse.Namespace, path: Path, identity: Any) -> PerformanceMap | None:
    """What an earlier run measured, where this one goes on with it."""
    from edgeprism.specs.performance_map import PerformanceMap

    if not (args.resume or args.update):
        return None
    if not path.exists():
        raise InputError(f"there is no map in {path} to go on with; run without --resume and --update")
    before = PerformanceMap.read(path)
    dtype = args.dtype or before.dtype
    misfit = before.misfit(fingerprint=identity.fingerprint, dtype=dtype, cluster=identity.cluster, devices={})
    if misfit:
        raise InputError(f"{path} cannot be gone on with: {misfit}; run without --resume and --update")
    return before


def _cluster(args: argparse.Namespace) -> Cluster:
    from edgeprism.runtime.cluster import Cluster

    if args.cluster:
        return Cluster.from_file(args.cluster, key=args.key, require_all=True)
    return Cluster.spawn(args.local_workers, **link_options.given(args)) if args.local_workers > 1 else Cluster.alone()


def _as_text(found: PerformanceMap) -> str:
    """What was measured, in one screen."""
    from edgeprism.profiler.fit import errors

    lines = [f"{found.model.architecture}, {found.dtype}, on {len(found.devices)} devices", ""]
    for index, device in enumerate(found.devices):
        alone = {
            one.batch: median(one.total_s)
            for one in found.requests
            if [share > 0 for share in one.plan.shares] == [i == index for i in range(one.plan.num_devices)]
            and one.num_tokens == found.requests[0].num_tokens
        }
        times = ", ".join(f"{batch}: {1e3 * seconds:.1f}" for batch, seconds in sorted(alone.items()))
        lines.append(f"  {device.name:<14}{device.hardware}, {device.num_threads} threads")
        lines.append(f"  {'':<14}ms alone by batch  {times or 'not measured'}")
        costs = found.costs.devices[index]
        lines.append(f"  {'':<14}{costs.idle_w:.2f} W idle, {costs.busy_w:.2f} W more at work; {costs.energy_source}")
    for index, name in enumerate(one.name for one in found.devices):
        largest = [one for one in found.staging if one.device == index and one.num_bytes == 2**22]
        if largest:
            rates = ", ".join(
                f"{one.direction} {one.num_bytes / one.seconds / 1e9:.1f} GB/s{' pinned' if one.is_pinned else ''}"
                for one in largest
            )
            lines.append(f"  staging of {name}: {rates}")
    for link in found.links:
        lines.append(
            f"  link to {found.devices[link.device].name}: {1e3 * link.round_trip_s:.2f} ms round trip, "
            f"{link.to_bytes_per_s * 8e-6:.0f} Mbit/s out, {link.from_bytes_per_s * 8e-6:.0f} back, "
            f"{link.both_bytes_per_s * 8e-6:.0f} both ways at once"
            + ("" if link.together_bytes_per_s is None else f", {link.together_bytes_per_s * 8e-6:.0f} with all others")
        )
    off = sorted(abs(error) for error in errors(found.costs, found.model, found.dtype, found.requests))
    typical = off[len(off) // 2]
    lines.append(
        f"\n{len(found.requests)} points measured; predictions of them are off by {100 * typical:.1f} % "
        f"(median), {100 * off[-1]:.0f} % at most"
    )
    if typical > MAX_OFF:
        lines.append("that is much: were the devices or links busy otherwise? Measured again, auto would choose better")
    lines += [f"skipped: {one}" for one in found.skipped]
    return "\n".join(lines)
