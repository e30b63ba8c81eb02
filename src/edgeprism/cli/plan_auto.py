"""What plan `auto` would choose, from the performance map alone: no weights are read but to hash them, no torch."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.models.manifest import fingerprint
from edgeprism.policy.choose import Decision
from edgeprism.policy.network import Network
from edgeprism.policy.points import points_lost
from edgeprism.policy.table import POLICIES
from edgeprism.runtime.cache import cache_root
from edgeprism.runtime.cluster_file import ClusterFile
from edgeprism.runtime.cluster_key import of_members, of_processes
from edgeprism.runtime.cores import divide_cores
from edgeprism.runtime.maps import place_of
from edgeprism.specs.accuracy import AccuracyFile
from edgeprism.specs.performance_map import PerformanceMap


def decide(args: argparse.Namespace, directory: Path, dtype: str, num_tokens: int, notes: list[str]) -> Decision | None:
    """The decision for such a request; None, with a note, where there is no map. InputError for a map that does not fit
    the model, the dtype or the cluster."""
    if args.rate is not None and not 0 < args.rate < math.inf:
        raise InputError(f"--rate must be more than 0 Mbit/s, not {args.rate:g}")
    found = map_for(args, directory, dtype, notes)
    if found is None:
        return None
    accuracy = AccuracyFile.read(args.accuracy_file or cache_root() / "accuracy.json")
    policy = POLICIES[args.policy or "model"](
        found,
        points_lost=points_lost(accuracy, found),
        objective=args.objective or "latency",
        max_accuracy_drop=args.max_accuracy_drop,
    )
    network = Network.measured(found.costs)
    if args.rate is not None:
        network = network.at(args.rate * 1e6 / 8)
    return policy.decide(args.batch, num_tokens, network)


def map_for(args: argparse.Namespace, directory: Path, dtype: str, notes: list[str]) -> PerformanceMap | None:
    """The performance map of the devices that are named; None, with a note, where there is none. InputError for one
    that does not fit."""
    named = args.cluster is not None or args.local_workers > 1
    if not named and args.map is None:
        if args.explain:
            raise InputError("--explain needs --cluster, --local-workers or --map: the devices to choose among")
        if args.plan == "auto":
            notes.append("plan auto is local on one device; name devices with --cluster, --local-workers or --map")
        return None
    keys = [""]
    if args.cluster is not None:
        keys = [of_members(ClusterFile.read(Path(args.cluster)).members)]
    elif named:  # with links of a set rate the same processes are another cluster; either will do here
        cores = divide_cores(args.local_workers)
        keys = [of_processes(cores), of_processes(cores, is_paced=True)]
    identity = fingerprint(directory)
    places = [place_of(identity, key, dtype) for key in keys]
    path = args.map or next((place for place in places if place.exists()), places[0])
    option = f"--cluster {args.cluster}" if args.cluster else f"--local-workers {args.local_workers}"
    if args.map is None and not path.exists():
        command = f"run: edgeprism profile {args.model} {option}"
        if args.explain:
            raise InputError(f"there is no performance map of this model in {dtype} on these devices; {command}")
        what = "plan auto is local" if args.plan == "auto" else "stages are cut where the work is even"
        notes.append(f"{what}, since these devices have no performance map; {command}")
        return None
    found = PerformanceMap.read(path)
    key = found.cluster if found.cluster in keys else keys[0]
    misfit = found.misfit(fingerprint=identity, dtype=dtype, cluster=key or found.cluster, devices={})
    if misfit:
        raise InputError(
            f"the performance map {path} does not fit: {misfit}; run: edgeprism profile {args.model} {option}"
        )
    return found
