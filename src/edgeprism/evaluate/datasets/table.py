"""A CSV file of the user's own: a header with `path` or `text`, `text2` for pairs, and `label` unless only agreement is
asked for. Paths are relative to the file.

Labels are names of the head's labels, or its numbers; where every one is a number and some are no whole ones, values.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset, wrong

FORMATS = "a CSV file has the columns path or text (and text2), and label"
_COLUMNS = ("path", "text", "text2", "label")

_MAX_FIELD_CHARS = 2**24


def load(path: Path, name: str, split: str) -> Dataset | None:
    """The inputs in the order of the file; None for a folder."""
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _rows(path, file)
    except UnicodeDecodeError as exc:
        raise wrong(path, f"it is not UTF-8 ({exc.reason})") from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    labels = [row["label"] for _, row in rows] if rows and "label" in rows[0][1] else None
    names, targets = (("",) * 0, None) if labels is None else _targets(labels)
    inputs: list[Any] = (
        [_picture(path, line, row["path"]) for line, row in rows]
        if "path" in rows[0][1]
        else [tuple(row[column] for column in ("text", "text2") if column in row) for _, row in rows]
    )
    columns = [] if not rows else list(rows[0][1])
    is_regression = targets is not None and targets.dtype.kind == "f"
    return Dataset(
        name=f"{name} {path.name}",
        split=split,
        kind="pictures" if "path" in rows[0][1] else "texts",
        inputs=inputs,
        targets=targets,
        labels=names,
        metrics=("pearson", "spearman") if is_regression else ("accuracy",),
        why_no_targets=f" (no column label in its header, which has {', '.join(columns)})" if labels is None else "",
    )


def _rows(path: Path, file: Any) -> list[tuple[int, dict[str, str]]]:
    """The line at which each row ends, and its fields by column."""
    limit = csv.field_size_limit(_MAX_FIELD_CHARS)
    reader = csv.reader(file, strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        _check_header(path, header)
        rows = []
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise wrong(path, f"{len(header)} fields are needed, and {len(fields)} there", line=reader.line_num)
            row = dict(zip(header, fields, strict=True))
            if empty := [column for column, value in row.items() if column in _COLUMNS and not value.strip()]:
                raise wrong(path, f"{empty[0]} is empty", line=reader.line_num)
            rows.append((reader.line_num, row))
    except csv.Error as exc:
        raise wrong(path, str(exc), line=reader.line_num) from exc
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise wrong(path, "it has a header and no rows")
    return rows


def _check_header(path: Path, header: Sequence[str]) -> None:
    if ("path" in header) == ("text" in header):
        raise wrong(path, f"the header must have either path or text; it has {', '.join(header) or 'nothing'}", line=1)
    if len(set(header)) != len(header):
        raise wrong(path, "a column stands twice in the header", line=1)


def _picture(path: Path, line: int, given: str) -> Path:
    picture = path.parent / given
    if not picture.is_file():
        raise wrong(path, f"no such picture: {given}", line=line)
    return picture


def _targets(labels: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[Any]]:
    try:
        values = np.array([float(label) for label in labels])
        if np.isfinite(values).all() and not all(label.strip().isdecimal() for label in labels):
            return (), values
    except ValueError:
        pass  # names
    names = sorted({label.strip() for label in labels})
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    numbers = {name: number for number, name in enumerate(names)}
    return tuple(names), np.array([numbers[label.strip()] for label in labels], dtype=np.int64)
