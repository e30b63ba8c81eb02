"""The last part of the demo: `edgeprism profile`, shortened, and what plan `auto` then chooses and why.

The map lies where `edgeprism run` and `edgeprism plan --explain` look for it: both can be tried after the demo.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from edgeprism import Cluster, Engine
from edgeprism.models.manifest import fingerprint
from edgeprism.profiler.sweep import sweep
from edgeprism.runtime.maps import place_of, write
from edgeprism.runtime.profiling import Identity, Profiler
from edgeprism.specs.codec import CodecSpec

CODECS = ("kv:int8",)
BATCHES = (1, 4)
MAX_PASSES = 90
MAX_S = 30.0
NUM_RUNS = 3

Timed = Callable[[Tensor], float]


def profile(
    engine: Engine, cluster: Cluster, directory: Path, num_tokens: int, show: Callable[[int, int], None]
) -> str:
    """Measures the model on these devices, for plan `auto`; says in a line what it took."""
    identity = Identity(fingerprint=fingerprint(directory), cluster=cluster.key, names=cluster.names)
    codecs = [CodecSpec.parse(name) for name in CODECS]
    profiler = Profiler(engine, identity)
    began_s, num_done = time.monotonic(), 0
    reached = profiler.look_around()
    wanted = sweep(
        engine.spec, reached, cluster.num_devices, codecs,
        batches=BATCHES, lengths=(num_tokens,), max_passes=MAX_PASSES,
    )  # fmt: skip

    def done(num: int) -> None:
        nonlocal num_done
        num_done += num
        show(num_done, wanted.num_passes)

    profiler.run(wanted, until_s=began_s + MAX_S, done=done)
    write(place_of(identity.fingerprint, identity.cluster, engine.dtype), profiler.result())
    return f"measured in {time.monotonic() - began_s:.0f} s, with {num_done} passes (edgeprism profile, shortened)"


def choose(engine: Engine, pixels: Tensor, timed: Timed) -> list[str]:
    """What `auto` runs for one picture and for all of them, beside one device, and its reason."""
    lines = []
    for name, given in (("one picture", pixels[:1]), (f"batch of {len(pixels)}", pixels)):
        local_s, auto_s = [], []
        for turn in range(NUM_RUNS + 1):
            engine.use("local")
            local = timed(given)
            engine.use("auto")
            auto = timed(given)
            if turn:
                local_s.append(local)
                auto_s.append(auto)
        assert engine.last_trace is not None
        ratio = statistics.median(auto_s) / statistics.median(local_s)
        lines.append(f"  {name:<14}{1e3 * statistics.median(auto_s):8.1f} ms{ratio:7.2f}   {engine.last_trace.note}")
    return lines
