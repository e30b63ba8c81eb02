"""Scores the demo model, as `demo.build` writes it, on the 500 test pictures: `python -m demo.score`.

The directory is read by transformers alone, in float32, with its own image processor: what is scored is what a user of
the directory gets. The test pictures took part in no choice. The numbers go to `benchmarks/results/demo_accuracy.json`,
and the accuracy also into `result.json`, next to the account of the training.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from transformers import AutoImageProcessor, Dinov2ForImageClassification

from demo.build import build, inputs_sha256
from demo.cifar10 import Pictures, test_pictures
from demo.provenance import REPOSITORY, provenance
from demo.train import RESULT_PATH

REPORT_PATH = REPOSITORY / "benchmarks" / "results" / "demo_accuracy.json"


@torch.inference_mode()
def count_right(directory: Path, pictures: Pictures, batch_size: int = 50) -> int:
    """How many pictures the model in `directory` gives their own label."""
    processor = AutoImageProcessor.from_pretrained(directory)
    model = Dinov2ForImageClassification.from_pretrained(directory, dtype=torch.float32).eval()
    num_right = 0
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        best = model(**processor(batch.images, return_tensors="pt")).logits.argmax(dim=1)
        num_right += int((best.numpy() == batch.labels).sum())
    return num_right


def wilson_interval(num_right: int, num_inputs: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927); unlike the normal one it stays inside 0 to 1."""
    share = num_right / num_inputs
    centre = share + z**2 / (2 * num_inputs)
    half_width = z * math.sqrt(share * (1 - share) / num_inputs + z**2 / (4 * num_inputs**2))
    scale = 1 + z**2 / num_inputs
    return (centre - half_width) / scale, (centre + half_width) / scale


def report(num_right: int, num_inputs: int) -> dict[str, object]:
    """The JSON account of a scoring."""
    return {
        "question": "how often is the demo model's best label right on cifar10/test_500.npz?",
        "num_inputs": num_inputs,
        "num_right": num_right,
        "accuracy": num_right / num_inputs,
        "interval_95": [round(bound, 4) for bound in wilson_interval(num_right, num_inputs)],
        "dtype": "float32",
        "model_inputs_sha256": inputs_sha256(),
        **provenance("demo.score"),
    }


def main() -> None:
    """Builds the directory if need be, scores it, and writes the numbers down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=REPORT_PATH)
    arguments = parser.parse_args()
    pictures = test_pictures()
    account = report(count_right(build(), pictures), len(pictures))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(account, indent=2) + "\n")
    result = json.loads(RESULT_PATH.read_text())
    result["test_accuracy"] = account["accuracy"]
    RESULT_PATH.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(account, indent=2))


if __name__ == "__main__":
    main()
