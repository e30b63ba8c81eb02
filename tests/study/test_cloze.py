"""Cloze questions: sentences and words as the official files cut them, candidates of one kind, read by edgeprism."""

from __future__ import annotations

import json
import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgeprism.evaluate.datasets.registry import load_dataset
from study import cloze

THINGS = ["apple", "bird", "chair", "door", "egg", "fork", "goat", "house", "inkwell", "jug", "kettle", "lamp"]
TAGS = {"saw": "VVD", "near": "PRP", "Anne": "NP0", **dict.fromkeys(THINGS, "NN1")}


def tag(tokens: list[str]) -> list[str]:
    """A tagger that knows a dozen words."""
    return [TAGS.get(token, "PUN") for token in tokens]


def chapter(num_sentences: int, first: int = 0) -> list[str]:
    """Paragraphs of two sentences, whose nouns go round."""
    nouns = [THINGS[(first + at) % len(THINGS)] for at in range(num_sentences + 1)]
    sentences = [f"Mr. X and Anne saw one {a} near the {b}." for a, b in pairwise(nouns)]
    return [" ".join(sentences[at : at + 2]) for at in range(0, num_sentences, 2)]


CHAPTERS = [chapter(24), chapter(23, first=5), chapter(10)]


def test_sentences_end_where_sentences_end() -> None:
    """Not at Mr., at initials, inside what somebody says, or where no capital follows."""
    text = (
        'Mr. Elliot and Mr. J. Knox came, &c. and left. "Oh! yes; do not ask!" cried she. "It was I." He (was) gone! '
        '"Was he?"'
    )
    assert list(cloze.sentences(text)) == [
        "Mr. Elliot and Mr. J. Knox came, &c. and left.",
        '"Oh! yes; do not ask!" cried she.',
        '"It was I."',
        "He (was) gone!",
        '"Was he?"',
    ]


def test_words_are_cut_as_in_the_official_files() -> None:
    """Blanks around punctuation, 's and n't apart, quotes as `` and ''."""
    cut = cloze.tokens("\"I don't,\" said Mr. Elliot--\"Anne's good-will, ma'am, &c. I cannot. ('Tis.)\"")
    assert " ".join(cut) == (
        "`` I do n't , '' said Mr. Elliot -- `` Anne 's good-will , ma'am , &c. I can not . ( ' Tis . ) ''"
    )


def test_names_are_words_that_are_never_small() -> None:
    """A name begins with a capital inside sentences; a word that does so at their beginnings is none."""
    cut = [["Handsome", "Anne", "met", "Sir", "Walter", "."], ["So", "handsome", "Anne", "met", "Sir", "Walter"]]
    cut += [["and", "I", "and", "I"]]
    assert cloze.names(cut) == {"Anne", "Walter"}
    assert cloze.names([*cut, ["see", "anne"]]) == {"Walter"}
    assert cloze.names(cut[:1]) == set()


def test_questions_are_read_as_the_official_files_are(tmp_path: Path) -> None:
    """Ten candidates, different and of one kind from the question's own text; the answer fits; no chapter is left."""
    cloze.write({"valid": CHAPTERS[2:], "test": CHAPTERS}, tag, tmp_path)
    record = json.loads((tmp_path / cloze.RECORD_NAME).read_text())
    counts = {name: one["num_questions"] for name, one in record["files"].items()}
    assert counts["cbtest_CN_test_2500ex.txt"] == 4 + 3 and counts["cbtest_CN_valid_2000ex.txt"] == 0
    assert counts["cbtest_V_test_2500ex.txt"] == 0  # one verb is no choice
    whole = [
        " ".join(" ".join(cloze.tokens(one)) for text in part for one in cloze.sentences(text)) for part in CHAPTERS
    ]
    dataset = load_dataset("cbt-cn", split="test", data=tmp_path)
    assert len(dataset.inputs) == 7
    for question in dataset.inputs:
        assert len(set(question.candidates)) == 10 and set(question.candidates) <= set(THINGS)
        answer = question.candidates[question.answer]
        text = f"{question.before} {answer} {question.after}"
        assert text.count(" .") == 21 and any(text in one for one in whole)
        assert f" {answer} " in question.before.rpartition(" . ")[0]
    assert len({question.before for question in dataset.inputs}) == 7


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    """The same questions again; others by another seed."""
    tagged = cloze.tagged(CHAPTERS, tag, {"Anne"})
    first = cloze.questions(tagged, "CN", random.Random("1"))
    assert first == cloze.questions(tagged, "CN", random.Random("1"))
    assert sorted(first) != sorted(cloze.questions(tagged, "CN", random.Random("2")))


def test_contexts_are_short() -> None:
    """Two more sentences before each chapter make no more questions, where one of them has all words that may be."""
    tagged = cloze.tagged(CHAPTERS, tag, {"Anne"})
    full = cloze.Sentence(["word"] * cloze.MAX_WORDS, [None] * cloze.MAX_WORDS)
    for added, num_questions in ((tagged[0][0], 7 + 4), (full, 7)):
        longer = [[part[0], added, *part] for part in tagged]
        assert len(cloze.questions(longer, "CN", random.Random("1"))) == num_questions


def test_a_whole_directory_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the tagger; where files changed it is asked for, and a directory of somebody else is left alone."""
    monkeypatch.setitem(sys.modules, "HanTa", None)
    out = tmp_path / "out"
    out.mkdir()
    cloze.write({"valid": CHAPTERS, "test": CHAPTERS}, tag, out)
    assert cloze.build(out) == out
    (out / "cbtest_CN_test_2500ex.txt").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for name, words in (
        ("out", "pip install HanTa==1.2.1"),
        ("new", "HanTa, which is missing"),
        ("mine", "another one"),
    ):
        monkeypatch.setattr(sys, "argv", ["cloze", "--out", str(tmp_path / name)])
        with pytest.raises(SystemExit) as ended:
            cloze.main()
        error = capsys.readouterr().err
        assert ended.value.code == 2 and words in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists() and (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_the_tagger_tells_the_kinds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """HanTa on a sentence of Austen's manner; its model is read only where it is the pinned one."""
    pytest.importorskip("HanTa", reason="the package HanTa is not installed")
    known: Any = {"Anne"}
    [[sentence]] = cloze.tagged([["She saw the house of Anne near the sea."]], cloze.tagger(), known)
    found = {kind: sentence.words(kind) for kind in cloze.KINDS}
    assert found == {"NE": {"Anne"}, "CN": {"house", "sea"}, "V": {"saw"}, "P": {"of", "near"}}
    monkeypatch.setattr(cloze, "TAGGER_SHA256", "0")
    with pytest.raises(cloze.CannotBuild, match="needed is 0"):
        cloze.tagger()
