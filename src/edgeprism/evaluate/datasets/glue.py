"""The nine tasks of GLUE (Wang et al., 2018) in their official files, tab-separated without quoting.

Each file has a header, but for CoLA's; MRPC may be the original `msr_paraphrase_*.txt`, from which `dev_ids.tsv` picks
the development set. Lines end at line feeds alone: some sentences hold other signs that Python takes for line ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset, wrong

FORMATS = (
    "a task of GLUE is a folder with train.tsv and dev.tsv as in the official archive (MRPC: or msr_paraphrase_*.txt)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GlueTask:
    """``columns`` of the header hold the texts, ``label_column`` the number or name of a label, or a value.

    ``labels`` are in the order of their numbers, by which heads without names go.
    """

    columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    skips_short_lines: bool = False


_ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
    "cola": GlueTask(
        columns=("sentence",), label_column="label", labels=("unacceptable", "acceptable"), metrics=("matthews",)
    ),
    "sst2": GlueTask(columns=("sentence",), label_column="label", labels=("negative", "positive")),
    "mrpc": GlueTask(
        columns=("#1 String", "#2 String"),
        label_column="Quality",
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
    ),
    "stsb": GlueTask(
        columns=("sentence1", "sentence2"), label_column="score", labels=(), metrics=("pearson", "spearman")
    ),
    # The official train.tsv has lines with fields missing; everyone leaves them out.
    "qqp": GlueTask(
        columns=("question1", "question2"),
        label_column="is_duplicate",
        labels=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        skips_short_lines=True,
    ),
    "mnli": GlueTask(
        columns=("sentence1", "sentence2"), label_column="gold_label", labels=("entailment", "neutral", "contradiction")
    ),
    "qnli": GlueTask(columns=("question", "sentence"), label_column="label", labels=_ENTAILMENT),
    "rte": GlueTask(columns=("sentence1", "sentence2"), label_column="label", labels=_ENTAILMENT),
    "wnli": GlueTask(columns=("sentence1", "sentence2"), label_column="label", labels=("not_entailment", "entailment")),
}
TASKS["mnli-mm"] = TASKS["mnli"]

_COLA_COLUMNS = ("source", "label", "original label", "sentence")
_MSR_FILES = {"train": "msr_paraphrase_train.txt", "dev": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"}

Lines = Iterator[tuple[int, list[str]]]
"""Number of a line, from 1, and its fields."""


def load(path: Path, name: str, split: str) -> Dataset | None:
    """One split of one task, from its folder or a file of it; None where there is none."""
    file = path if path.is_file() else path / f"{split}.tsv"
    if file.is_file():
        has_header = name != "cola" or split == "test"
        return _from_lines(file, _lines(file), name, split, None if has_header else _COLA_COLUMNS)
    original = path / _MSR_FILES.get(split, "")
    if name == "mrpc" and original.is_file():
        return _from_lines(original, _of_split(original, split), name, split, None)
    return None


def _from_lines(path: Path, lines: Lines, name: str, split: str, columns: tuple[str, ...] | None) -> Dataset:
    task = TASKS[name]
    if columns is None:
        columns = tuple(next(lines)[1])
    texts_at, label_at = _places(path, columns, task, is_test=split.startswith("test"))
    inputs: list[tuple[str, ...]] = []
    targets: list[int | float] = []
    num_short = 0
    for line, fields in lines:
        if len(fields) < len(columns) and task.skips_short_lines:
            num_short += 1
            continue
        if len(fields) < len(columns):
            raise wrong(
                path, f"{len(columns)} fields with tabs between them are needed, and {len(fields)} there", line=line
            )
        inputs.append(tuple(fields[place] for place in texts_at))
        if label_at is not None:
            targets.append(_target(path, line, fields[label_at], task))
    if not inputs:
        raise wrong(path, "it holds no examples")
    return Dataset(
        name=name,
        split=split,
        kind="texts",
        inputs=inputs,
        targets=None if label_at is None else np.array(targets, dtype=np.int64 if task.labels else np.float64),
        labels=task.labels,
        metrics=task.metrics,
        numbers_are_known=True,
        notes=(f"{num_short} lines of {path.name} lack fields and were left out",) if num_short else (),
    )


def _places(path: Path, columns: tuple[str, ...], task: GlueTask, *, is_test: bool) -> tuple[list[int], int | None]:
    """Where the texts are, and the label; a test set may have none."""
    needed = task.columns if is_test else (*task.columns, task.label_column)
    if missing := [column for column in needed if column not in columns]:
        raise wrong(path, f"the header has no column {', '.join(missing)}; it has {', '.join(columns)[:200]}", line=1)
    label_at = columns.index(task.label_column) if task.label_column in columns else None
    return [columns.index(column) for column in task.columns], label_at


def _target(path: Path, line: int, text: str, task: GlueTask) -> int | float:
    if text in task.labels:
        return task.labels.index(text)
    try:
        if task.labels and 0 <= int(text) < len(task.labels):
            return int(text)
        if not task.labels and 0 <= float(text) <= 5:
            return float(text)
    except ValueError:
        pass
    choices = f"0 to {len(task.labels) - 1}, or {', '.join(task.labels)}" if task.labels else "a number from 0 to 5"
    raise wrong(path, f"{task.label_column} must be {choices}, not {text!r}", line=line)


def _of_split(path: Path, split: str) -> Lines:
    """Lines of the original files of MRPC: its development set are pairs of the training file that GLUE picked."""
    lines = _lines(path)
    yield next(lines)
    if split == "test":
        yield from lines
        return
    ids_path = path.parent / "dev_ids.tsv"
    if not ids_path.is_file():
        raise InputError(f"{path.parent} has {path.name} but not dev_ids.tsv, in which GLUE says which pairs are dev")
    ids = {tuple(fields) for _, fields in _lines(ids_path)}
    for line, fields in lines:
        if (tuple(fields[1:3]) in ids) == (split == "dev"):
            yield line, fields


def _lines(path: Path) -> Lines:
    """The lines that are not empty."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = path.read_bytes()[: exc.start].count(b"\n") + 1
        raise wrong(path, "it is not UTF-8", line=line) from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if not text.strip():
        raise wrong(path, "it is empty")
    for number, given in enumerate(text.split("\n"), start=1):
        if fields := given.removesuffix("\r"):
            yield number, fields.split("\t")
