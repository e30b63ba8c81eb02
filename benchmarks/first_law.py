"""How far is the model on several devices from transformers' own output, on every architecture, at real block sizes?

Random weights, drawn wide enough that attention is far from uniform (`tests.families`), 384 wide, 12 layers, 197 or
more image tokens; and the demo's trained ViT where its package is installed. Devices are threads of one process: what
is asked is arithmetic, not time. In bfloat16 both are compared with the same rounded weights in float32.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import Tensor
from transformers import PreTrainedModel

import edgeprism
from benchmarks.report import arguments, record
from demo.backbone import BackboneUnavailable
from demo.build import merged_model
from edgeprism.models.registry import ADAPTORS
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from tests import families

REACH = 1e-4  # float32, largest absolute difference at real tokens
REACH_BFLOAT16 = 1.25  # our root mean squared error over transformers' own, both to float32
WIDTH, LAYERS, HEADS, INNER = 384, 12, 6, 1536
IMAGE_PX, PATCH_PX = 224, {"ViT": 16, "DeiT": 16, "Dinov2": 14}
NUM_PICTURES, NUM_PICTURES_BFLOAT16 = 2, 32  # fewer give a ratio that changes its verdict with the pictures
LENGTH, MAX_TOKENS, LENGTHS = 100, 128, (100, 9, 61)
NUM_DEVICES = 5

Way = tuple[str, tuple[float, ...], str]  # strategy, shares, codec

PLANS: tuple[Way, ...] = (
    ("local", (1.0,), "exact"),
    ("sequence", (1 / 2,) * 2, "exact"),
    ("sequence", (1 / 2,) * 2, "kv:exact"),
    ("sequence", (0.7, 0.3), "kv:exact"),
    ("sequence", (0.2, 0.5, 0.3), "exact"),
    ("sequence", (1 / 4,) * 4, "kv:exact"),
    ("sequence", (0.1, 0.35, 0.05, 0.3, 0.2), "exact"),
    ("sequence", (0.1, 0.35, 0.05, 0.3, 0.2), "kv:exact"),
    ("replica", (0.6, 0.4), "exact"),
)
PLANS_BFLOAT16 = (PLANS[0], PLANS[1], PLANS[7])
SMOKE_ARCHITECTURES = ("ViTForImageClassification", "GPT2LMHeadModel")


def main() -> None:
    """Measures every architecture and writes benchmarks/results/first_law.json."""
    smoke = arguments(__doc__).parse_args().smoke
    torch.set_num_threads(1)
    by_model: dict[str, Any] = {}
    with edgeprism.Cluster.in_process(NUM_DEVICES) as cluster:
        for name, model in subjects(smoke):
            print(f"first_law: {name}", file=sys.stderr, flush=True)
            by_model[name] = {"float32": single(cluster, model, smoke), "bfloat16": half(cluster, model, smoke)}
    settings = {
        "geometry": "tiny" if smoke else {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "inner": INNER},
        "image_px": IMAGE_PX,
        "pictures": {"float32": NUM_PICTURES, "bfloat16": NUM_PICTURES_BFLOAT16},
        "text_lengths": {"plain": [LENGTH] * len(LENGTHS), "padded": LENGTHS},
        "plans": [describe(plan) for plan in PLANS],
        "plans_bfloat16": [describe(plan) for plan in PLANS_BFLOAT16],
        "devices": "threads of one process",
        "threads": 1,
        "seed": 0,
    }
    record("first_law", {**overall(by_model), "by_model": by_model}, settings, smoke)


def subjects(smoke: bool) -> Iterator[tuple[str, PreTrainedModel]]:
    """Every architecture in float32, then the demo's model."""
    for architecture in SMOKE_ARCHITECTURES if smoke else sorted(ADAPTORS):
        yield architecture, families.make(architecture, **({} if smoke else geometry(architecture)))
    if not smoke:
        try:
            yield "demo ViT-S/14 (Dinov2ForImageClassification, trained)", merged_model()
        except (BackboneUnavailable, FileNotFoundError) as exc:
            print(f"first_law: the demo's model is left out: {exc}", file=sys.stderr)


def geometry(architecture: str) -> dict[str, Any]:
    """Config values of a real block, named as the family names them."""
    family = families.family_of(architecture)
    spread = {"initializer_range": 0.2 * math.sqrt(families.WIDTH / WIDTH)}  # attention as uneven as in the tests
    if family == "GPT2":
        sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER}
        return {**sizes, "n_positions": MAX_TOKENS, **spread}
    if family == "DistilBert":
        sizes = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER}
        return {**sizes, "max_position_embeddings": MAX_TOKENS, **spread}
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes["intermediate_size"] = INNER
    if families.is_text(architecture):
        return {**sizes, "max_position_embeddings": MAX_TOKENS + 2, **spread}  # RoBERTa's positions begin at 2
    return {**sizes, "image_size": IMAGE_PX, "patch_size": PATCH_PX[family], "mlp_ratio": INNER // WIDTH, **spread}


def cases(model: PreTrainedModel, smoke: bool, num_pictures: int) -> dict[str, dict[str, Tensor]]:
    """Inputs by name: pictures, or texts without padding and padded on either side."""
    architecture = type(model).__name__
    if not families.is_text(architecture):
        side_px = model.config.image_size if smoke else IMAGE_PX
        return {"plain": families.example(architecture, batch=num_pictures, height=side_px, width=side_px)}
    shape = {} if smoke else {"length": LENGTH}
    lengths = (13, 2, 8) if smoke else LENGTHS
    padded = {side: families.padded(architecture, side, lengths, **shape) for side in ("left", "right")}
    return {"plain": families.example(architecture, **shape), **padded}


def single(cluster: edgeprism.Cluster, model: PreTrainedModel, smoke: bool) -> dict[str, Any]:
    """Largest difference to transformers over all plans and paddings, and where; the outputs' own size beside it."""
    worst: dict[str, Any] = {"largest_difference": -1.0}
    magnitude = 0.0
    engine = edgeprism.load(model, cluster=cluster)
    for padding, inputs in cases(model, smoke, NUM_PICTURES).items():
        wanted = families.expected(model, inputs)
        magnitude = max(magnitude, *(float(value.abs().max()) for value in wanted.values()))
        for plan in PLANS:
            gap = families.difference(run(engine, plan, inputs), wanted, inputs)
            if not gap <= worst["largest_difference"]:  # so that a NaN is the worst of all
                worst = {"largest_difference": gap, "plan": describe(plan), "padding": padding}
    return {**worst, "largest_output": magnitude}


def half(cluster: edgeprism.Cluster, model: PreTrainedModel, smoke: bool) -> dict[str, Any]:
    """Errors of ours and of transformers' own bfloat16 to float32 with the same weights, all plans and paddings."""
    rounded = deepcopy(model).to(torch.bfloat16)
    exact_model = deepcopy(rounded).float()
    engine = edgeprism.load(rounded, cluster=cluster)
    errors: dict[str, list[Tensor]] = {"ours": [], "transformers": []}
    for inputs in cases(model, smoke, NUM_PICTURES if smoke else NUM_PICTURES_BFLOAT16).values():
        exact = families.expected(exact_model, inputs)
        theirs_in = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
        theirs = error(families.expected(rounded, theirs_in), exact, inputs)
        for plan in PLANS_BFLOAT16:
            errors["ours"].append(error(run(engine, plan, theirs_in), exact, inputs))
            errors["transformers"].append(theirs)
    joined = {who: torch.cat(values) for who, values in errors.items()}
    rms = {who: float(values.square().mean().sqrt()) for who, values in joined.items()}
    largest = {who: float(values.max()) for who, values in joined.items()}
    return {
        **{who: {"rms_error": rms[who], "largest_error": largest[who]} for who in joined},
        "rms_ratio": rms["ours"] / rms["transformers"],
    }


def run(engine: edgeprism.Engine, plan: Way, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Ours; it fails unless the plan was carried out on all of its devices."""
    strategy, shares, codec = plan
    engine.use(Plan(strategy=strategy, shares=shares, codec=CodecSpec.parse(codec)))
    output = engine(**inputs)
    trace = engine.last_trace
    assert trace is not None and not trace.failures, trace
    assert trace.plan.strategy == strategy and len(trace.devices) == len(shares), trace
    return dict(output)


def error(output: Mapping[str, Any], exact: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """Absolute differences at real tokens, all fields in one row."""
    gaps = [families.at_real_tokens((output[name].float() - value).abs(), inputs) for name, value in exact.items()]
    return torch.cat([gap.flatten() for gap in gaps])


def describe(plan: Way) -> str:
    """For people: strategy, codec, shares."""
    strategy, shares, codec = plan
    return f"{strategy} {codec} " + "/".join(f"{share:.3g}" for share in shares)


def overall(by_model: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that were to be reached."""
    largest = max(figures["float32"]["largest_difference"] for figures in by_model.values())
    ratio = max(figures["bfloat16"]["rms_ratio"] for figures in by_model.values())
    return {
        "num_models": len(by_model),
        "float32": {"largest_difference": largest, "at_most": REACH, "met": largest <= REACH},
        "bfloat16": {"largest_rms_ratio": ratio, "at_most": REACH_BFLOAT16, "met": ratio <= REACH_BFLOAT16},
    }


if __name__ == "__main__":
    main()
