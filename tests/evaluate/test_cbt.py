"""The Children's Book Test and WikiText in their official files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Cloze
from edgeprism.evaluate.datasets.registry import load_dataset

CANDIDATES = "Baby|dogs|cat|birds|children|father|man|mother|table|window"
SENTENCES = [f"{number} sentence {number} , said she ." for number in range(1, 21)]
QUESTION = f"21 The XXXXX went away .\tcat\t\t{CANDIDATES}"
TEXT = "\n".join([*SENTENCES, QUESTION]) + "\n\n"


@pytest.mark.parametrize("kind", ["CN", "NE", "V", "P"])
def test_official_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Twenty sentences and what stands before the gap; what stands after; ten candidates; which is right."""
    folder = tmp_path / "CBTest" / "data"
    folder.mkdir(parents=True)
    (folder / f"cbtest_{kind}_valid_2000ex.txt").write_text(TEXT * 2)
    (folder / f"cbtest_{kind}_test_2500ex.txt").write_text(TEXT)
    monkeypatch.setenv("EDGEPRISM_DATA", str(tmp_path))
    dataset = load_dataset(f"cbt-{kind.lower()}")
    assert len(dataset.inputs) == 2 and dataset.targets.tolist() == [2, 2]
    question = dataset.inputs[0]
    assert isinstance(question, Cloze)
    assert question.before.startswith("sentence 1 , said she . sentence 2") and question.before.endswith("she . The")
    assert (question.after, question.candidates) == ("went away .", tuple(CANDIDATES.split("|")))
    assert len(load_dataset(f"cbt-{kind.lower()}", split="test").inputs) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("7 sentence", "9 sentence"), "line 7: it must begin with 7 and a blank"),
        ("\n".join(SENTENCES[:5]) + "\n\n" + TEXT, "line 6: a question ends after 5 of its 21 lines"),
        (TEXT + "\n".join(SENTENCES), "the file ends after 20 of a question's 21 lines"),
        (TEXT.replace("XXXXX", "XXX"), "line 21: the sentence has no XXXXX"),
        (TEXT.replace("\tcat\t", "\tcow\t"), "line 21: the word 'cow' must be among"),
        (TEXT.replace("\t\t", " "), "line 21: line 21 of a question is a sentence, its word and the candidates"),
        ("", "it holds no questions"),
        (TEXT.replace("7 sentence", "7 \udcff"), "line 7: it is not UTF-8"),
    ],
)
def test_wrong_files_are_named_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    """Which file, which line, and what was expected."""
    (tmp_path / "cbtest_CN_valid_2000ex.txt").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=f"cbtest_CN_valid_2000ex.txt.*{message}"):
        load_dataset("cbt-cn", data=tmp_path)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("wikitext2", "wikitext-2-raw/wiki.valid.raw"),
        ("wikitext2", "wikitext-2/wiki.valid.tokens"),
        ("wikitext2", "wikitext2/valid.txt"),
        ("wikitext103", "wikitext-103-raw/wiki.valid.raw"),
    ],
)
def test_wikitext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str) -> None:
    """One running text, as it stands."""
    text = " \n = Homarus gammarus = \n \n Homarus gammarus , known as the European lobster .\n"
    (tmp_path / place).parent.mkdir()
    (tmp_path / place).write_text(text)
    monkeypatch.setenv("EDGEPRISM_DATA", str(tmp_path))
    dataset = load_dataset(name)
    assert (dataset.inputs, dataset.targets, dataset.metrics) == ([text], None, ("perplexity",))


def test_wrong_texts(tmp_path: Path) -> None:
    """An empty file, and one that is no text."""
    for content, message in ((b" \n", "it is empty"), (b"a\nb\xff", "line 2: it is not UTF-8")):
        (tmp_path / "wiki.valid.raw").write_bytes(content)
        with pytest.raises(InputError, match=f"wiki.valid.raw.*{message}"):
            load_dataset("wikitext2", data=tmp_path)
