"""A stream of single pictures through two devices of one core each: how many a second against one device?

Plan `replica` gives each picture whole to the device that is expected to finish it first; `local` is the same engine on
device 0. Both run in turns, so that a slow moment of the machine meets both, and each ratio is that of neighbours in
time. Two equal devices can reach 2, less what handing out pictures and results takes of the same two cores. Weights are
random: time does not depend on them. The second question: how long does the request after `warmup` take?
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import transformers

import edgeprism
from benchmarks.report import arguments, record, summary
from edgeprism.runtime.cores import available_cores

REACH, WARM_REACH = 1.85, 1.2
NUM_PICTURES, ROUNDS = 40, 9


def main() -> None:
    """Measures and writes benchmarks/results/frames.json."""
    smoke = arguments(__doc__).parse_args().smoke
    num_pictures, rounds = (6, 2) if smoke else (NUM_PICTURES, ROUNDS)
    model = make_model(smoke)
    share = smoke and len(available_cores()) < 2
    with (
        edgeprism.Cluster.spawn(2, share_cores=share) as cluster,
        edgeprism.load(model, cluster=cluster, plan="replica", max_pending=4) as engine,
    ):
        first = first_after_warmup(engine, rounds)
        figures = frames_per_second(engine, num_pictures, rounds)
    ratio = figures["replica_of_local"]["median"]
    reached = {"at_least": REACH, "measured": round(ratio, 4), "met": ratio >= REACH}
    warm = {"at_most": WARM_REACH, "measured": round(first, 4), "met": first <= WARM_REACH}
    settings = {"model": "tiny ViT" if smoke else "ViT-B/16, 197 tokens, float32", "pictures_per_round": num_pictures}
    settings |= {"rounds": rounds, "max_pending": 4, "devices": 2, "threads_per_device": 1, "link": "loopback"}
    record("frames", {"reach": reached, "first_after_warmup_of_median": warm, **figures}, settings, smoke)


def make_model(smoke: bool) -> transformers.PreTrainedModel:
    """ViT-B/16 with random weights."""
    torch.manual_seed(0)
    tiny = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.ViTConfig(num_labels=1000, **(tiny if smoke else {}))
    return transformers.ViTForImageClassification(config).eval()


def first_after_warmup(engine: edgeprism.Engine, repeats: int) -> float:
    """Seconds of the first request after `warmup`, over the median of those that follow."""
    engine.use("sequence")
    engine.warmup()
    times = []
    for _ in range(3 * repeats):
        began = time.perf_counter()
        engine(pixel_values=picture(0))
        times.append(time.perf_counter() - began)
    engine.use("replica")
    return times[0] / summary(times[1:])["median"]


def frames_per_second(engine: edgeprism.Engine, num_pictures: int, rounds: int) -> dict[str, Any]:
    """Of both plans, in turns; and the latency of a picture from `submit` to its answer."""
    rates: dict[str, list[float]] = {"local": [], "replica": []}
    latencies: dict[str, list[float]] = {"local": [], "replica": []}
    by_device: dict[int, int] = {}
    for round_ in range(rounds + 1):  # the first one warms up
        print(f"\rround {round_ + 1}/{rounds + 1}", end="", file=sys.stderr, flush=True)
        for plan in rates:
            engine.use(plan)
            rate, seconds, devices = stream(engine, num_pictures, plan)
            if round_:
                rates[plan].append(rate)
                latencies[plan] += seconds
                for device in devices if plan == "replica" else ():
                    by_device[device] = by_device.get(device, 0) + 1
    print(file=sys.stderr)
    ratios = [two / one for two, one in zip(rates["replica"], rates["local"], strict=True)]
    return {
        "frames_per_s": {plan: summary(values) for plan, values in rates.items()},
        "replica_of_local": summary(ratios),
        "latency_s": {plan: summary(values) for plan, values in latencies.items()},
        "pictures_by_device": by_device,
    }


def stream(engine: edgeprism.Engine, num_pictures: int, plan: str) -> tuple[float, list[float], list[int]]:
    """Pictures per second of one stream, the latency of each picture, and who computed it."""
    began = time.perf_counter()
    answers = [engine.submit(pixel_values=picture(index)) for index in range(num_pictures)]
    traces = []
    for answer in answers:
        answer.result()
        if answer.trace is None or answer.trace.failures or answer.trace.left_out:
            sys.exit(f"frames: {plan} did not run as it was meant to: {answer.trace}")
        traces.append(answer.trace)
    rate = num_pictures / (time.perf_counter() - began)
    worked = [device.device for trace in traces for device in trace.devices if device.work]
    return rate, [trace.queued_s + trace.total_s for trace in traces], worked


def picture(index: int) -> torch.Tensor:
    """One of a few seeded pictures."""
    return _PICTURES[index % len(_PICTURES)][None]


_PICTURES = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))

if __name__ == "__main__":
    main()
