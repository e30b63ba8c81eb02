"""Do the counts of `edgeprism plan` agree with the published ones: PRISM (arXiv 2507.12145) on two devices?

`formula` is what the paper's cost formula gives for a device of 98 of ViT-B/16's 197 tokens (of BERT-base: 128 of 256),
`published` the figure that the paper prints. Counts are arithmetic: one run is enough, on any machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import arguments, record

CONFIGS: dict[str, dict[str, Any]] = {
    "ViT-B/16": {"architectures": ["ViTForImageClassification"], "model_type": "vit", "dtype": "float32"},
    "BERT-base": {"architectures": ["BertModel"], "model_type": "bert", "dtype": "float32"},
}  # every size is the family's default
OPTIONS = {"ViT-B/16": (), "BERT-base": ("--length", "256")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published row. ``reach`` and ``published``: GFLOP of the smaller partition, fractions saved."""

    model: str
    what: str
    options: tuple[str, ...]
    reach: dict[str, float]
    """As many digits as are to agree."""
    published: dict[str, float]


def _two(codec: str) -> tuple[str, ...]:
    return ("--plan", "sequence", "--devices", "2", "--codec", codec)


VIT, BERT = "ViT-B/16", "BERT-base"
ROWS = (
    Row(model=VIT, what="one device", options=("--plan", "local"), reach={"gflop": 35.13}, published={"gflop": 35.15}),
    Row(
        model=VIT,
        what="full tensor (Voltage)",
        options=_two("exact"),
        reach={"gflop": 20.39},
        published={"gflop": 20.37, "received_saved": 0.0, "computation_saved": 0.4205},
    ),
    Row(
        model=VIT,
        what="L = 10, rate 9.9",
        options=_two("means:L=10"),
        reach={"gflop": 17.55},
        published={"gflop": 17.54, "received_saved": 0.899, "computation_saved": 0.5011},
    ),
    Row(
        model=VIT,
        what="L = 20, rate 4.95",
        options=_two("means:L=20"),
        reach={"gflop": 17.87},
        published={"gflop": 17.86, "received_saved": 0.798, "computation_saved": 0.4920},
    ),
    Row(
        model=VIT,
        what="L = 30, rate 3.3",
        options=_two("means:L=30"),
        reach={"gflop": 18.19},
        published={"gflop": 18.18, "received_saved": 0.697, "computation_saved": 0.4829},
    ),
    Row(
        model=BERT,
        what="L = 1, rate 128",
        options=_two("means:L=1"),
        reach={"exchange_saved": 0.9922, "computation_saved": 0.5124},
        published={"exchange_saved": 0.992, "computation_saved": 0.5124},
    ),
)


def main() -> None:
    """Counts every row and writes benchmarks/results/counts.json."""
    smoke = arguments(__doc__).parse_args().smoke
    rows = [compare(row) for row in (ROWS[-1:] if smoke else ROWS)]
    figures = {"rows": rows, "met": all(row["met"] for row in rows)}
    record("counts", figures, {"devices": 2, "batch": 1, "configs": CONFIGS, "options": OPTIONS}, smoke)


def compare(row: Row) -> dict[str, Any]:
    """Published and counted figures side by side."""
    counted = count(row)
    # exact to the digits stated: 0.9922 is met by 0.99215 to 0.99225
    met = all(abs(counted[name] - value) <= 0.5 * 10.0 ** -digits(value) + 1e-9 for name, value in row.reach.items())
    return {
        "model": row.model,
        "what": row.what,
        "options": " ".join((*row.options, *OPTIONS[row.model])),
        "counted": counted,
        "reach": row.reach,
        "published": row.published,
        "met": met,
    }


def count(row: Row) -> dict[str, Any]:
    """What `edgeprism plan --json` prints for the device of the fewest tokens, and the fractions saved.

    ``exchange_saved`` is the command's, of both devices' exchange together; ``received_saved`` that of the rows which
    this device receives. They differ where 197 tokens do not halve, and the paper's figures are the latter.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIGS[row.model]))
        command = [sys.executable, "-m", "edgeprism", "plan", folder, *row.options, *OPTIONS[row.model], "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    device = min(document["devices"], key=lambda device: device["tokens"])
    saved, others = document["exchange"]["saved"], document["num_tokens"] - device["tokens"]
    return {
        "tokens": device["tokens"],
        "key_rows": device["key_rows"],
        "gflop": round(device["gflop"], 4),
        "exchange_saved": None if saved is None else round(saved, 5),
        "received_saved": None if others == 0 else round(1 - (device["key_rows"] - device["tokens"]) / others, 5),
        "computation_saved": round(1 - device["gflop"] / document["computation"]["one_device_gflop"], 5),
        "bytes_per_block": document["exchange"]["bytes_per_block"],
    }


def digits(value: float) -> int:
    """Digits after the point, as the figure was stated."""
    return len(str(value).partition(".")[2])


if __name__ == "__main__":
    main()
