"""The Children's Book Test (Hill et al., 2016) in its official files, such as cbtest_CN_valid_2000ex.txt.

Questions are 21 numbered lines each, with empty lines between them: twenty sentences, then one in which a word is
XXXXX, a tab, that word, tabs, and the candidates with | between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeprism.evaluate.dataset import Cloze, Dataset, wrong

FORMATS = "the Children's Book Test is a folder with cbtest_CN_valid_2000ex.txt and its like"
BLANK = "XXXXX"
NUM_LINES = 21

_SUFFIXES = {"valid": "valid_2000ex", "test": "test_2500ex", "train": "train"}


def load(path: Path, name: str, split: str) -> Dataset | None:
    """The questions of one kind of word; None where the file is not there."""
    kind = name.removeprefix("cbt-").upper()
    file = path if path.is_file() else path / f"cbtest_{kind}_{_SUFFIXES[split]}.txt"
    if not file.is_file():
        return None
    questions = list(_questions(file))
    if not questions:
        raise wrong(file, "it holds no questions")
    answers = np.array([question.answer for question in questions], dtype=np.int64)
    return Dataset(name=name, split=split, kind="cloze", inputs=questions, targets=answers)


def _questions(path: Path) -> Iterator[Cloze]:
    sentences: list[str] = []
    for number, line in _lines(path):
        if not line.strip():
            if sentences:
                raise wrong(path, f"a question ends after {len(sentences)} of its {NUM_LINES} lines", line=number)
            continue
        label, _, text = line.partition(" ")
        if label != str(len(sentences) + 1):
            raise wrong(path, f"it must begin with {len(sentences) + 1} and a blank, not {line[:20]!r}", line=number)
        sentences.append(text)
        if len(sentences) == NUM_LINES:
            yield _question(path, number, sentences)
            sentences = []
    if sentences:
        raise wrong(path, f"the file ends after {len(sentences)} of a question's {NUM_LINES} lines")


def _question(path: Path, number: int, sentences: list[str]) -> Cloze:
    fields = [field.strip() for field in sentences[-1].split("\t") if field.strip()]
    if len(fields) != 3:
        raise wrong(path, "line 21 of a question is a sentence, its word and the candidates, with tabs", line=number)
    sentence, word, listed = fields
    candidates = tuple(candidate for candidate in listed.split("|") if candidate)
    if sentence.count(BLANK) < 1:
        raise wrong(path, f"the sentence has no {BLANK}", line=number)
    if len(candidates) < 2 or word not in candidates:
        raise wrong(path, f"the word {word!r} must be among two or more candidates, not {listed!r}", line=number)
    before, _, after = sentence.partition(BLANK)
    before = " ".join([*(text.strip() for text in sentences[:-1]), before]).strip()
    return Cloze(before=before, after=after.strip(), candidates=candidates, answer=candidates.index(word))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1; they end at line feeds alone."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise wrong(path, "it is not UTF-8", line=path.read_bytes()[: exc.start].count(b"\n") + 1) from exc
    for number, line in enumerate(text.split("\n"), start=1):
        yield number, line.removesuffix("\r")
