"""How long ViT-B/16 takes on two processes of one core and one thread each, over loopback, against one device.

All ways of one precision and batch run in turns (A B C A B C ...), and each ratio is the median of the ratios of
neighbours in time. `transformers` is transformers' own forward pass of the same model on the same core. Weights are
random: time does not depend on them. Loopback has no wire time to speak of, but every byte is encrypted, copied and
decrypted on the same two cores that compute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers

import edgeprism
from benchmarks.report import paired, record, summary
from edgeprism.runtime.cores import on_cores
from edgeprism.runtime.trace import Trace

DTYPES = ("float32", "bfloat16")
SINGLE = ("exact", "kv:exact", "int8", "kv:int8", "int4", "kv:int4", "means:9.9", "kv:means:9.9")
REPEATS, WARMUP = 15, 1

# (figure, batch, dtype, ways, compared with, at most)
REACH = (
    ("means:9.9", 1, "float32", "local", 0.66),
    ("int8", 1, "float32", "local", 0.75),
    ("kv:int8", 1, "float32", "local", 0.68),
    ("exact", 1, "float32", "local", 0.80),
    ("replica", 8, "float32", "local", 0.53),
    ("local_every_row", 1, "float32", "transformers_every_row", 1.02),
    ("local", 1, "float32", "transformers", 0.97),
)


def main() -> None:
    """Measures everything and writes benchmarks/results/latency.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the smallest size, to prove that it runs")
    smoke = parser.parse_args().smoke
    figures: dict[str, Any] = {}
    for dtype in DTYPES:
        figures[dtype] = measure(dtype, smoke)
    settings = {"model": "ViT-B/16, 197 tokens" if not smoke else "tiny", "repeats": REPEATS, "warmup": WARMUP}
    settings |= {"devices": 2, "threads_per_device": 1, "link": "loopback, ZeroMQ with CURVE"}
    record("latency", {"reach": compare(figures), **figures}, settings, smoke)


def make_model(dtype: str, smoke: bool, *, every_row: bool) -> transformers.PreTrainedModel:
    """ViT-B/16 with random weights; the bare model reads every row, the classifier only CLS."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.ViTConfig(num_labels=1000, **(sizes if smoke else {}))
    kind = transformers.ViTModel if every_row else transformers.ViTForImageClassification
    return kind(config).to(getattr(torch, dtype)).eval()


def measure(dtype: str, smoke: bool) -> dict[str, Any]:
    """All ways in one precision: {batch: {way: {median, p25, p75, n, of_local}}}."""
    repeats, warmup = (2, 1) if smoke else (REPEATS, WARMUP)
    share = smoke and len(edgeprism.runtime.cores.available_cores()) < 2
    figures: dict[str, Any] = {}
    with edgeprism.Cluster.spawn(2, share_cores=share) as cluster:
        model = make_model(dtype, smoke, every_row=False)
        with edgeprism.load(model, cluster=cluster) as engine:
            for batch, ways in ((1, [("sequence", codec) for codec in SINGLE]), (8, [("replica", "exact"), *BATCHED])):
                calls = {"transformers": own_forward(model, pixels(batch, dtype), cluster)}
                calls |= {name_of(*way): engine_call(engine, way, batch, dtype) for way in [("local", "exact"), *ways]}
                figures[str(batch)] = with_ratios(paired(calls, repeats, warmup))
        bare = make_model(dtype, smoke, every_row=True)
        with edgeprism.load(bare, cluster=cluster) as engine:
            calls = {
                "transformers_every_row": own_forward(bare, pixels(1, dtype), cluster),
                "local_every_row": engine_call(engine, ("local", "exact"), 1, dtype),
            }
            figures["1"] |= with_ratios(paired(calls, repeats, warmup))
    return figures


BATCHED = (("sequence", "exact"), ("sequence", "int8"), ("sequence", "kv:int8"), ("sequence", "means:9.9"))


def name_of(plan: str, codec: str) -> str:
    """What the JSON calls a way."""
    return codec if plan == "sequence" else plan


def pixels(batch: int, dtype: str) -> torch.Tensor:
    """Seeded pictures, as an image processor makes them of eight bits."""
    eight_bits = torch.randint(0, 256, (batch, 3, 224, 224), generator=torch.Generator().manual_seed(batch))
    return ((eight_bits / 255 - 0.5) / 0.5).to(getattr(torch, dtype))


def engine_call(engine: edgeprism.Engine, way: tuple[str, str], batch: int, dtype: str) -> Callable[[], object]:
    """One request by one plan."""
    inputs = pixels(batch, dtype)

    def call() -> object:
        engine.use(*way)
        output = engine(pixel_values=inputs)
        check_ran(engine.last_trace, way[0])  # microseconds
        return output

    return call


def check_ran(trace: Trace | None, strategy: str) -> None:
    """Stops the benchmark when a request was not run as it was meant to: without its devices it would be `local`."""
    assert trace is not None
    num_devices = 1 if strategy == "local" else 2
    if trace.plan.strategy != strategy or len(trace.devices) != num_devices or trace.failures or trace.left_out:
        sys.exit(f"latency: {strategy} was meant to run on {num_devices} devices; {trace.summary()}")


def own_forward(model: Any, inputs: torch.Tensor, cluster: edgeprism.Cluster) -> Callable[[], object]:
    """transformers' forward pass on the coordinator's core."""

    def call() -> object:
        with on_cores(cluster.cores), torch.no_grad():
            return model(pixel_values=inputs)

    return call


def with_ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the median of the ratios to local and to transformers, round by round."""
    figures: dict[str, Any] = {}
    for way, times in seconds.items():
        figures[way] = summary(times)
        for base in ("local", "transformers", "transformers_every_row"):
            if base in seconds and base != way:
                ratios = [a / b for a, b in zip(times, seconds[base], strict=True)]
                figures[way][f"of_{base}"] = round(summary(ratios)["median"], 4)
    return figures


def compare(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The ratios that were to be reached, beside what was measured."""
    rows = []
    for way, batch, dtype, base, reach in REACH:
        measured = figures[dtype][str(batch)][way][f"of_{base}"]
        rows.append(
            {
                "way": way, "batch": batch, "dtype": dtype, "compared_with": base, "at_most": reach,
                "measured": measured, "met": measured <= reach,
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
