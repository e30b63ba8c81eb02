"""Does `edgeprism evaluate`, in one process, predict what real workers predict, and how long does it take?

Two devices, codec `means:4+int8`. The same pictures go through threads of this process, sixteen at a time as evaluate
takes them, and through two worker processes, one at a time. Then the whole command is timed on 500 pictures
and one codec, start-up included. The demo model, on CIFAR-10's training pictures: nothing is chosen by the test set.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

import edgeprism
from benchmarks.report import arguments, record
from demo.build import build
from edgeprism.cli.evaluate import predict_with
from edgeprism.errors import InputError
from edgeprism.evaluate.datasets.cifar import CIFAR10
from edgeprism.evaluate.datasets.registry import load_dataset
from edgeprism.runtime.cores import available_cores
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from edgeprism.tasks.inputs import prepare_pictures_with

CODEC = "means:4+int8"
NUM_COMPARED, NUM_TIMED = 200, 500
REACH_S = 60.0


def main() -> None:
    """Measures and writes benchmarks/results/evaluation.json."""
    smoke = arguments(__doc__).parse_args().smoke
    num_compared, num_timed = (8, 16) if smoke else (NUM_COMPARED, NUM_TIMED)
    with tempfile.TemporaryDirectory(prefix="edgeprism-evaluation-") as folder:
        model, data = small(Path(folder)) if smoke else (build(), None)
        try:
            pictures = load_dataset("cifar10", split="train", data=data).first(num_compared).inputs
        except InputError as exc:
            sys.exit(f"evaluation: {exc}")
        compared = compare(model, pictures)
        seconds, document = command(model, data, num_timed, Path(folder))
    same, timed = compared["same_predictions"], round(seconds, 2)
    figures = {
        **compared,
        "same_predictions": {"needed": num_compared, "measured": same, "met": same == num_compared},
        "command_s": {"at_most": REACH_S, "measured": timed, "met": timed <= REACH_S},
        "answering_s": document["duration_s"],
    }
    settings = {"model": "tiny ViT" if smoke else "demo ViT-S/14, 145 tokens, float32", "devices": 2, "codec": CODEC}
    settings |= {
        "pictures_compared": num_compared,
        "pictures_timed": num_timed,
        "torch_threads": torch.get_num_threads(),
    }
    record("evaluation", figures, settings, smoke)


def compare(model: Path, pictures: list[Any]) -> dict[str, Any]:
    """Predictions of threads and of processes."""
    pixels = prepare_pictures_with(model)([Image.fromarray(picture) for picture in pictures])["pixel_values"]
    plan = Plan.even("sequence", 2, CodecSpec.parse(CODEC))
    share = len(available_cores()) < 2
    logits = []
    for cluster, batch in ((edgeprism.Cluster.in_process(2), 16), (edgeprism.Cluster.spawn(2, share_cores=share), 1)):
        with cluster, edgeprism.load(str(model), cluster=cluster) as engine:
            predict = predict_with(engine, plan)
            logits.append(torch.cat([predict(pixel_values=part)["logits"] for part in pixels.split(batch)]))
    return {
        "same_predictions": int((logits[0].argmax(-1) == logits[1].argmax(-1)).sum()),
        "largest_logit_difference": float((logits[0] - logits[1]).abs().max()),
        "largest_logit": float(logits[1].abs().max()),
    }


def command(model: Path, data: Path | None, num_pictures: int, folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole command, and its document."""
    words = [sys.executable, "-m", "edgeprism", "evaluate", str(model), "--dataset", "cifar10", "--split", "train"]
    words += [
        "--limit",
        str(num_pictures),
        "--codec",
        CODEC,
        "--json",
        "--accuracy-file",
        str(folder / "accuracy.json"),
    ]
    words += [] if data is None else ["--data", str(data)]
    began = time.perf_counter()
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, json.loads(done.stdout)


def small(folder: Path) -> tuple[Path, Path]:
    """A tiny ViT of random weights, and random pictures."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.ViTConfig(image_size=32, patch_size=8, id2label=dict(enumerate(CIFAR10)), **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "model")
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "model")
    images = np.random.default_rng(0).integers(256, size=(16, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "train.npz", images=images, labels=np.arange(16) % 10)
    return folder / "model", folder / "train.npz"


if __name__ == "__main__":
    main()
