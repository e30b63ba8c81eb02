"""What do codecs cost in accuracy, at how many bytes? The tables and the frontier: `make reproduce-accuracy`.

For each model of the study: tables of the codecs that need some are made from training data, then every codec is scored
on the test set, once, by `edgeprism calibrate` and `edgeprism evaluate` as users run them. `--case` does one model;
what others gave stays in the file, with the commit that each was measured at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, arguments, commit, record

PUBLISHED = ("means:3.3", "means:4.95", "means:9.9")
EIGHTH = ("delta+rot+int4", "rot+int4", "int4", "means:8")
SIXTEENTH = ("delta+pq:4", "delta+rot+int2", "rot+int2", "means:16")
LESS = ("delta+pq:8", "pq:8", "delta+rot+int1", "means:32", "delta+pq:16", "pq:16", "means:64")
SHORT = tuple(codec for codec in LESS if codec not in ("means:32", "means:64"))  # sentences have fewer tokens
KEYS = ("kv:rot+int4", "kv:rot+int3")
NUM_QUESTIONS = 8
BEST = ("delta+rot+int4", "delta+pq:4", "delta+pq:8", "delta+pq:16")

SHORT_WINDOW = ("--window", "64")
"""Of the GPT-2, which is too small to make use of more: 256 tokens farther back do not lower its perplexity."""
FOR_TEXT = ("--dtype", "bfloat16", "--batch", "16", "--lr", "1e-3", "--steps", "60")
"""How it is fine-tuned, on its training text."""
FOR_PICTURES = ("--dtype", "bfloat16", "--batch", "16", "--epochs", "3")
"""How the demo model is fine-tuned, on the training pictures but for the held-out ones."""


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


def demo_vit_for_means() -> Path:
    """The same, fine-tuned for `means:9.9`, as one would after reading docs/how-to/finetune.md; half an hour."""
    return finetuned(demo_vit(), "vit-s14-cifar10-means", "means:9.9", "--dataset", "cifar10", *FOR_PICTURES)


def finetuned(model: Path, name: str, codec: str, *options: object) -> Path:
    """A directory in the cache that `edgeprism finetune` writes, once."""
    from edgeprism.runtime.cache import cache_root

    directory = cache_root() / "models" / name
    if not directory.exists():
        command("finetune", model, "--codec", codec, "--output", directory, *options)
    return directory


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
    given = ("--dataset", "text", "--data", novels() / "train.txt", *SHORT_WINDOW, *FOR_TEXT)
    return finetuned(gpt2(), "gpt2-austen-means8", "means:8", *given)


def novels() -> Path:
    """Those four and the two others: train.txt, valid.txt, test.txt."""
    from study.novels import build

    return build()


def cloze() -> Path:
    """Questions about Austen's novels."""
    from study.cloze import build

    return build()


def cloze_case(kind: str, num_questions: int) -> Case:
    """Each candidate is a pass over the whole text: about 50 s of one core a question, so few, and wide intervals."""
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
        ways=(Way(codecs=("int8", *PUBLISHED, *EIGHTH, *SIXTEENTH, *LESS, *KEYS)), *ELSEWHERE),
    ),
    "cifar10-finetuned": Case(
        build=demo_vit_for_means,
        dataset="cifar10",
        calibrate=(),
        evaluate=("--split", "test", "--batch", "25"),
        ways=(Way(codecs=("means:9.9",)),),
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
        calibrate=("--split", "valid", "--limit", "200", "--batch", "32", *SHORT_WINDOW),
        evaluate=("--split", "test", "--limit", "400", "--batch", "32", *SHORT_WINDOW),
        ways=(Way(codecs=("int8", *EIGHTH, *SIXTEENTH, *SHORT, *KEYS)), *ELSEWHERE),
    ),
    "novels-finetuned": Case(
        build=gpt2_for_means,
        data=novels,
        dataset="text",
        calibrate=(),
        evaluate=("--split", "test", "--limit", "400", "--batch", "32", *SHORT_WINDOW),
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
    parser.add_argument("--codec", action="append", help="only this codec; the rows of others stay (default: all)")
    args = parser.parse_args()
    if args.smoke:
        return smoke()
    failed = False
    for name in args.case or CASES:
        case = CASES[name]
        try:
            case.build()
            if case.data is not None:
                case.data()
        except RuntimeError as exc:  # CannotBuild of the study's modules: the other cases can be measured all the same
            print(f"accuracy: {name}: {exc}", file=sys.stderr)
            failed = True
            continue
        with tempfile.TemporaryDirectory(prefix="edgeprism-accuracy-") as folder:
            rows = run(case, Path(folder), _so_far().get(name, []), args.codec)
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        cases = {**_document().get("settings", {}).get("cases", {}), name: commit()}
        record("accuracy", {**_so_far(), name: rows}, {"threads": threads, "cases": cases})
    return int(failed)


def run(
    case: Case, folder: Path, before: Sequence[dict[str, Any]] = (), only: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one model: with ``only``, those codecs' anew and the others as ``before``."""
    from edgeprism.specs.codec import CodecSpec

    model = str(case.build())
    made_from, scored_on = _halves(folder) if case.dataset == "wikitext2" else ((), ())
    if case.data is not None:
        made_from = scored_on = ("--data", str(case.data()))
    ways = [replace(way, codecs=tuple(c for c in way.codecs if only is None or c in only)) for way in case.ways]
    codecs = dict.fromkeys(codec for way in ways for codec in way.codecs)
    tables: list[object] = []
    if need := [codec for codec in codecs if CodecSpec.parse(codec).needs_calibration]:
        given = ("--dataset", case.dataset, *case.calibrate, *made_from, "--codec", ",".join(need))
        made = command("calibrate", model, *given, "--out", folder / "tables")  # for any number of devices and dtype
        tables = [word for one in made["calibrations"] for word in ("--calibration", one["file"])]
    rows: list[dict[str, Any]] = []
    for way in filter(lambda way: way.codecs, ways):
        asked = ("--devices", way.devices, "--dtype", way.dtype, "--codec", ",".join(way.codecs))
        given = ("--dataset", case.dataset, *case.evaluate, *scored_on, "--accuracy-file", folder / "accuracy.json")
        result = command("evaluate", model, *given, *asked, *tables)
        rows += [{**row, "devices": way.devices} for row in result["results"]]
    new = {_key(row): row for row in rows}
    old = {_key(row): row for row in before} if only is not None else {}
    return list({**old, **new}.values())


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["devices"], row["dtype"], row["codec"]


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
    figures: dict[str, Any] = _document().get("figures", {})
    return figures


def _document() -> dict[str, Any]:
    path = RESULTS / "accuracy.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return document


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
