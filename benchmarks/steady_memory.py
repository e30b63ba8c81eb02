"""Does the memory of coordinator and worker stay as it is over 10,000 requests?

Two processes serve a tiny model, plans and codecs in turns, half of the requests by `submit`. After every 100 requests
both are asked how much memory they hold: resident, and private (what would be free if they ended). Flat is what stays
within 2 % of what it was after 1,000 requests; since most of it is torch itself, the growth of private memory for each
request is given as well, and the number of open descriptors and threads.

Every way has fixed shares: a number of rows that a device has not seen before costs it memory for good (oneDNN keeps a
kernel for each), so shares that move would look like a leak. What such a batch costs is measured at the end.
"""

from __future__ import annotations

import itertools
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import edgeprism
from benchmarks.report import arguments, record
from edgeprism.runtime.cores import available_cores
from edgeprism.specs.plan import Plan

NUM_REQUESTS, SAMPLE_EVERY, SETTLED_AFTER = 10_000, 100, 1_000
SMOKE = (200, 50, 50)
REACH = 0.02
UNEVEN = Plan(strategy="replica", shares=(1 / 3, 2 / 3))
WAYS = (("sequence", "exact", 1), ("sequence", "kv:int8", 2), ("replica", "exact", 1), (UNEVEN, "exact", 3))
NUM_NEW_SHAPES = 20
FIELDS = {"resident": ("Rss",), "private": ("Private_Clean", "Private_Dirty")}


def main() -> None:
    """Measures and writes benchmarks/results/steady_memory.json; exit 1 where it is not flat."""
    smoke = arguments(__doc__).parse_args().smoke
    num_requests, every, settled = SMOKE if smoke else (NUM_REQUESTS, SAMPLE_EVERY, SETTLED_AFTER)
    with edgeprism.Cluster.spawn(2, share_cores=len(available_cores()) < 2) as cluster:
        pids = {"coordinator": os.getpid(), "worker": cluster.pids[0]}
        with edgeprism.load(tiny_vit(), cluster=cluster) as engine:
            samples = serve(engine, pids, num_requests, every)
            new_shapes = serve_new_shapes(engine, pids)
    figures: dict[str, Any] = {who: figures_of([sample[who] for sample in samples], every, settled) for who in pids}
    figures["met"] = all(figures[who][what]["met"] for who in pids for what in FIELDS)
    figures["private_bytes_a_batch_size_not_seen_before"] = new_shapes
    ways = [f"{plan if isinstance(plan, str) else 'replica 1/3 2/3'} {codec}, batch {n}" for plan, codec, n in WAYS]
    settings = {"requests": num_requests, "sample_every": every, "settled_after": settled, "ways": ways}
    record("steady_memory", figures, {**settings, "model": "ViT, 17 tokens, 64 wide, 3 blocks"}, smoke)
    for who, what in itertools.product(pids, FIELDS):
        told = figures[who][what]
        print(
            f"{who:<11} {what:<8} {told['settled_mb']:.1f} MB after {settled} requests, then "
            f"{told['least_mb']:.1f} to {told['most_mb']:.1f} MB: {100 * told['largest_change']:.2f} % off at most "
            f"({told['growth_bytes_a_request']:.0f} bytes a request)"
        )
    costs = ", ".join(f"{who} {value / 1e6:.1f} MB" for who, value in new_shapes.items())
    print(f"a batch size that was not seen before costs, for good: {costs}")
    if not figures["met"] and not smoke:
        sys.exit(1)


def tiny_vit() -> transformers.PreTrainedModel:
    """So small that 10,000 requests take a minute or two."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


def serve(engine: edgeprism.Engine, pids: dict[str, int], num_requests: int, every: int) -> list[dict[str, Any]]:
    """A sample of every process each time so many requests are done, beginning before the first."""
    samples = [{who: sample(pid) for who, pid in pids.items()}]
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for number, (plan, codec, batch) in zip(range(1, num_requests + 1), itertools.cycle(WAYS), strict=False):
        engine.use(plan, codec)
        inputs = pixels[:batch]
        if number % 8 < 4:
            engine(pixel_values=inputs)
            trace = engine.last_trace
        else:
            answer = engine.submit(pixel_values=inputs)
            answer.result()
            trace = answer.trace
        assert trace is not None and not trace.failures and not trace.left_out, trace
        if number % every == 0:
            samples.append({who: sample(pid) for who, pid in pids.items()})
            print(f"\r{number}/{num_requests} requests", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return samples


def serve_new_shapes(engine: edgeprism.Engine, pids: dict[str, int]) -> dict[str, int]:
    """Bytes by which private memory grows with each new batch size; both devices get the same number of samples."""
    engine.use(Plan(strategy="replica", shares=(0.5, 0.5)))
    before = {who: sample(pid)["private"] for who, pid in pids.items()}
    for each in range(4, 4 + NUM_NEW_SHAPES):
        engine(pixel_values=torch.zeros(2 * each, 3, 32, 32))
    return {who: (sample(pid)["private"] - before[who]) // NUM_NEW_SHAPES for who, pid in pids.items()}


def sample(pid: int) -> dict[str, int]:
    """Bytes of memory, and how many descriptors and threads."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kilobytes = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
    counts = {what: len(os.listdir(f"/proc/{pid}/{what}")) for what in ("fd", "task")}
    return {what: 1024 * sum(kilobytes[name] for name in names) for what, names in FIELDS.items()} | counts


def figures_of(samples: Sequence[dict[str, int]], every: int, settled: int) -> dict[str, Any]:
    """Of one process."""
    numbers = range(settled, len(samples) * every, every)
    found: dict[str, Any] = {}
    for what in FIELDS:
        before, *after = (sample[what] for sample in samples[settled // every :])
        change = max(abs(value / before - 1) for value in after)
        slope = statistics.linear_regression(numbers, [before, *after]).slope
        found[what] = {
            "settled_mb": round(before / 1e6, 2),
            "least_mb": round(min(after) / 1e6, 2),
            "most_mb": round(max(after) / 1e6, 2),
            "largest_change": round(change, 5),
            "growth_bytes_a_request": round(slope, 1),
            "at_most": REACH,
            "met": change <= REACH,
            "all_mb": [round(sample[what] / 1e6, 2) for sample in samples],
        }
    return found | {what: [samples[settled // every][what], samples[-1][what]] for what in ("fd", "task")}


if __name__ == "__main__":
    main()
