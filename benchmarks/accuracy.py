"""What do codecs cost in accuracy, at how many bytes? The tables and the frontier: `make reproduce-accuracy`.

For each model of the study: tables of the codecs that need some are made from training data, then every codec is scored
on the test set, once, by `edgeprism calibrate` and `edgeprism evaluate` as users run them. `--case` does one model;
what others gave stays in the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, arguments, record

EIGHTH = ("delta+rot+int4", "rot+int4", "int4", "means:8")
SIXTEENTH = ("delta+pq:4", "delta+rot+int2", "rot+int2", "means:16")
LESS = ("delta+pq:8", "pq:8", "delta+rot+int1", "means:32", "delta+pq:16", "pq:16", "means:64")
SHORT = tuple(codec for codec in LESS if codec not in ("means:32", "means:64"))  # sentences have fewer tokens
KEYS = ("kv:rot+int4", "kv:rot+int3")
NUM_QUESTIONS = 20
BEST = ("delta+rot+int4", "delta+pq:4", "delta+pq:8", "delta+pq:16")

FOR_MEANS = ("--dtype", "bfloat16", "--full", "--lr", "2e-4")
"""How the GPT-2 is fine-tuned: one pass over its training text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One row of the study: devices, dtype, codecs."""

    codecs: tuple[str, ...]
    devices: int = 2
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and its data. ``calibrate`` and ``evaluate``: options of those commands; ``data`` makes what is read."""

    build: Callable[[], Path]
    dataset: str
    calibrate: tuple[str, ...]
    evaluate: tuple[str, ...]
    ways: tuple[Way, ...]
    data: Callable[[], Path] | None = None


def demo_vit() -> Path:
    """The demo's ViT-S/14 for CIFAR-10."""
    from demo.build import build

    return build()


def minilm() -> Path:
    """MiniLM trained on SST-2."""
    from study.minilm_sst2 import build

    return build()


def smollm2() -> Path:
    """SmolLM2-135M."""
    from study.smollm2 import build

    return build()


def gpt2() -> Path:
    """A small GPT-2 trained on four of Austen's novels."""
    from study.gpt2_novels import build

    return build()


def gpt2_for_means() -> Path:
    """The same, fine-tuned on the same four for `means:8`; a few minutes."""
    from edgeprism.runtime.weights import cache_root

    directory = cache_root() / "models" / "gpt2-austen-means8"
    if not directory.exists():
        given = ("--dataset", "text", "--data", novels() / "train.txt", "--codec", "means:8", "--output", directory)
        command("finetune", gpt2(), *given, *FOR_MEANS)
    return directory


def novels() -> Path:
    """Those four and the two others: train.txt, valid.txt, test.txt."""
    from study.novels import build

    return build()


def cloze() -> Path:
    """Questions about Austen's novels."""
    from study.cloze import build

    return build()


def cloze_case(kind: str, num_questions: int) -> Case:
    """Ten candidates each, every one a pass over some 500 tokens: few questions, wide intervals."""
    return Case(
        build=smollm2,
        data=cloze,
        dataset=f"cbt-{kind}",
        calibrate=(),
        evaluate=("--split", "test", "--limit", str(num_questions), "--batch", "2"),
        ways=(Way(codecs=("means:8", "kv:rot+int4", "rot+int4")),),
    )


ELSEWHERE = tuple(Way(codecs=BEST, devices=devices) for devices in (3, 4)) + (Way(codecs=BEST, dtype="bfloat16"),)
CASES = {
    "cifar10": Case(
        build=demo_vit,
        dataset="cifar10",
        calibrate=("--split", "train", "--limit", "200"),
        evaluate=("--split", "test", "--batch", "25"),
        ways=(Way(codecs=("int8", *EIGHTH, "means:9.9", *SIXTEENTH, *LESS, *KEYS)), *ELSEWHERE),
    ),
    "sst2": Case(
        build=minilm,
        dataset="sst2",
        calibrate=("--split", "train", "--limit", "1500"),
        evaluate=(
            "--split",
            "dev",
        ),
        ways=(Way(codecs=("int8", *EIGHTH, *SIXTEENTH, *SHORT, *KEYS)), *ELSEWHERE),
    ),
    "wikitext2": Case(
        build=smollm2,
        dataset="wikitext2",
        calibrate=("--split", "valid", "--limit", "24", "--batch", "2"),
        evaluate=("--limit", "40", "--batch", "2"),
        ways=(Way(codecs=("int8", "kv:int8", "kv:int4", *EIGHTH, *KEYS)),),
    ),
    "novels": Case(
        build=gpt2,
        data=novels,
        dataset="text",
        calibrate=("--split", "valid", "--limit", "24", "--batch", "4"),
        evaluate=("--split", "test", "--limit", "50", "--batch", "4"),
        ways=(Way(codecs=("int8", *EIGHTH, *SIXTEENTH, *LESS, *KEYS)), *ELSEWHERE),
    ),
    "novels-finetuned": Case(
        build=gpt2_for_means,
        data=novels,
        dataset="text",
        calibrate=(),
        evaluate=("--split", "test", "--limit", "50", "--batch", "4"),
        ways=(Way(codecs=("means:8",)),),
    ),
    "cloze-ne": cloze_case("ne", NUM_QUESTIONS),
    "cloze-cn": cloze_case("cn", NUM_QUESTIONS),
}
FIRST_PART = 0.25  # of the only part of WikiText-2 that is at hand; the rest is scored


def main() -> int:
    """Measures, and writes benchmarks/results/accuracy.json."""
    parser = arguments(__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only this model (default: all)")
    args = parser.parse_args()
    if args.smoke:
        return smoke()
    done = _so_far()
    for name in args.case or CASES:
        with tempfile.TemporaryDirectory(prefix="edgeprism-accuracy-") as folder:
            done[name] = run(CASES[name], Path(folder))
        record("accuracy", done, {"threads": os.cpu_count()})
    return 0


def run(case: Case, folder: Path) -> list[dict[str, Any]]:
    """The rows of one model."""
    from edgeprism.specs.codec import CodecSpec

    model = str(case.build())
    made_from, scored_on = _halves(folder) if case.dataset == "wikitext2" else ((), ())
    if case.data is not None:
        made_from = scored_on = ("--data", str(case.data()))
    codecs = dict.fromkeys(codec for way in case.ways for codec in way.codecs)
    tables: list[object] = []
    if need := [codec for codec in codecs if CodecSpec.parse(codec).needs_calibration]:
        given = ("--dataset", case.dataset, *case.calibrate, *made_from, "--codec", ",".join(need))
        made = command("calibrate", model, *given, "--out", folder / "tables")  # for any number of devices and dtype
        tables = [word for one in made["calibrations"] for word in ("--calibration", one["file"])]
    rows: list[dict[str, Any]] = []
    for way in case.ways:
        asked = ("--devices", way.devices, "--dtype", way.dtype, "--codec", ",".join(way.codecs))
        given = ("--dataset", case.dataset, *case.evaluate, *scored_on, "--accuracy-file", folder / "accuracy.json")
        result = command("evaluate", model, *given, *asked, *tables)
        rows += [{**row, "devices": way.devices} for row in result["results"]]
    return rows


def command(name: str, *arguments: object) -> dict[str, Any]:
    """Runs `edgeprism NAME ... --json`; its progress is shown."""
    line = [sys.executable, "-m", "edgeprism", name, *map(str, arguments), "--json"]
    print(" ".join(line[2:]), file=sys.stderr)
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _halves(folder: Path) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two files of WikiText: one to make tables from, one to score on."""
    from edgeprism.evaluate.datasets.registry import load_dataset

    text = str(load_dataset("wikitext2").inputs[0])
    cut = text.index("\n", int(len(text) * FIRST_PART))
    for part, words in (("first", text[:cut]), ("rest", text[cut:])):
        (folder / part).mkdir()
        (folder / part / "valid.txt").write_text(words, encoding="utf-8")
    return ("--data", str(folder / "first")), ("--data", str(folder / "rest"))


def _so_far() -> dict[str, Any]:
    path = RESULTS / "accuracy.json"
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path.is_file() else {}
    return figures


def smoke() -> int:
    """A tiny model on a few pictures of noise: every step, no figure that means anything."""
    from benchmarks.evaluation import small

    with tempfile.TemporaryDirectory(prefix="edgeprism-accuracy-") as name:
        folder = Path(name)
        model, data = small(folder)
        case = replace(
            CASES["cifar10"],
            build=lambda: Path(model),
            calibrate=("--limit", "16", "--data", str(data)),
            evaluate=("--split", "train", "--limit", "8", "--data", str(data)),
            ways=(Way(codecs=("means:4", "rot+int2", "delta+pq:8")), Way(codecs=("delta+rot+int4",), devices=3)),
        )
        rows = run(case, folder)
        assert [row["codec"] for row in rows] == ["means:4", "rot+int2", "delta+pq:8", "delta+rot+int4"]
        record("accuracy", {"smoke": rows}, {}, smoke=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
