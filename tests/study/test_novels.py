"""The novels out of a package: R's values byte by byte, chapters without what editors added, other texts refused."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from study import novels
from study.r_data import Unreadable, read_database, read_value

NAMES = struct.pack(">2i", 0x402, 1)  # a pair with a tag, which is a symbol
SAME_NAMES = struct.pack(">2i", 0x402, 0x1FF)  # the same symbol, the second time by reference
NIL = struct.pack(">i", 0xFE)


def number(value: int) -> bytes:
    """Four bytes, as everything is counted in R's files."""
    return struct.pack(">i", value)


def characters(text: str | None) -> bytes:
    """One string; None is R's NA."""
    return number(9) + (number(-1) if text is None else number(len(text.encode())) + text.encode())


def strings(texts: list[str | None]) -> bytes:
    """A vector of strings."""
    return number(16) + number(len(texts)) + b"".join(map(characters, texts))


def integers(*values: int) -> bytes:
    """A vector of whole numbers."""
    return number(13) + number(len(values)) + b"".join(map(number, values))


def named(items: dict[str, bytes], pair: bytes | None = None) -> bytes:
    """A list with names; ``pair``: how its attribute begins."""
    attribute = (NAMES + characters("names") if pair is None else pair) + strings(list(items)) + NIL
    return number(0x200 | 19) + number(len(items)) + b"".join(items.values()) + attribute


def serialised(value: bytes, version: int = 3) -> bytes:
    """With the header that R writes."""
    encoding = number(5) + b"UTF-8" if version == 3 else b""
    return b"X\n" + number(version) + number(0x40201) + number(0x30500) + encoding + value


def write_database(folder: Path, variables: dict[str, bytes], compressed: int = 1) -> None:
    """Rdata.rdx and Rdata.rdb as R's makeLazyLoadDB writes them."""
    folder.mkdir(parents=True)
    values, places = b"", {}
    for name, value in variables.items():
        plain = serialised(value)
        packed = number(len(plain)) + zlib.compress(plain)
        places[name] = integers(len(values), len(packed))
        values += packed
    index = {"variables": named(places), "references": named({}, SAME_NAMES), "compressed": integers(compressed)}
    (folder / "Rdata.rdb").write_bytes(values)
    (folder / "Rdata.rdx").write_bytes(gzip.compress(serialised(named(index, SAME_NAMES))))


def test_a_database_of_r_is_read(tmp_path: Path) -> None:
    """Strings of any language, NA, and a list in a list, at the places that the index tells."""
    write_database(tmp_path / "data", {"a": strings(["Zoë", "", None]), "b": named({"n": integers(-1, 7)})})
    assert read_database(tmp_path / "data") == {"a": ["Zoë", "", None], "b": {"n": [-1, 7]}}
    assert read_value(serialised(strings(["old"]), version=2)) == ["old"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"A\n1", "begin with 'X'"),
        (serialised(NIL, version=4), "version 4"),
        (serialised(number(14) + number(0)), "type 14"),
    ],
)
def test_other_values_are_refused(value: bytes, words: str) -> None:
    """Text format, a later version, and a type that is not read (real numbers)."""
    with pytest.raises(Unreadable, match=words):
        read_value(value)


def test_a_broken_database_is_refused(tmp_path: Path) -> None:
    """None at all, one compressed in another way, one cut short."""
    with pytest.raises(Unreadable, match="holds no database"):
        read_database(tmp_path)
    write_database(tmp_path / "xz", {"a": strings(["text"])}, compressed=3)
    with pytest.raises(Unreadable, match="compressed in way"):
        read_database(tmp_path / "xz")
    write_database(tmp_path / "cut", {"a": strings(["text"])})
    with (tmp_path / "cut" / "Rdata.rdb").open("r+b") as file:
        file.truncate(20)
    with pytest.raises(Unreadable, match="holds no database"):
        read_database(tmp_path / "cut")


BOOK = """EMMA

By Jane Austen

CHAPTER I

Emma was _handsome_,
clever,*  and rich.

          * * * * *

Chapter two of her life began.

(End of volume one.)

VOLUME II

Chapter 2

*Vide a letter.

She was one-and-twenty.

[Printed by
somebody.]

FINIS

A note."""


def test_chapters_hold_the_author_s_words_alone() -> None:
    """No headings, notes, asterisks or underscores; lines of a paragraph are joined."""
    assert novels.chapters(BOOK.splitlines()) == [
        ["Emma was handsome, clever, and rich.", "Chapter two of her life began."],
        ["She was one-and-twenty."],
    ]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian package with six short novels, whose lines are the pinned ones."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    titles = [title for group in novels.SPLITS.values() for title in group]
    books = {title: ["Chapter 1", "", f"This is {title}.", "", "CHAPTER II", "", "The end came."] for title in titles}
    lines = "".join(f"{line}\n" for title in titles for line in books[title])
    monkeypatch.setattr(novels, "LINES_SHA256", novels.sha256(lines.encode()))
    root = tmp_path / "root"
    variables = {title: strings(list(book)) for title, book in sorted(books.items())}
    write_database(root / "usr/lib/R/site-library/janeaustenr/data", variables)
    (root / "DEBIAN").mkdir()
    control = {"Package": novels.PACKAGE, "Version": "1", "Architecture": "all", "Maintainer": "a <a@b>"}
    text = "".join(f"{key}: {value}\n" for key, value in {**control, "Description": "novels"}.items())
    (root / "DEBIAN/control").write_text(text)
    subprocess.run(["dpkg-deb", "--build", str(root), str(tmp_path / "novels.deb")], check=True, capture_output=True)
    return tmp_path / "novels.deb"


def test_texts_of_a_package_are_written_and_used_again(package: Path, tmp_path: Path) -> None:
    """Each split has its novels; a whole directory needs no package, a changed one is written again."""
    out = novels.build(tmp_path / "cache" / "austen", package)
    found = novels.texts(out)
    assert found["valid"] == "This is northangerabbey.\n\nThe end came.\n"
    assert [chapter[0].split()[-1] for chapter in novels.chapters_of(found["train"])[::2]] == [
        f"{title}." for title in novels.SPLITS["train"]
    ]
    record = json.loads((out / novels.RECORD_NAME).read_text())
    assert record["texts"]["train"]["num_chapters"] == 8 and record["package"] == "novels.deb"
    assert novels.build(out, tmp_path / "absent.deb") == out
    (out / "test.txt").write_text("changed")
    novels.build(out, package)
    assert novels.texts(out)["test"].startswith("This is persuasion.")


def test_what_cannot_be_built_is_one_line(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Another text, another file, no package, no apt, a directory of somebody else: exit status 2, nothing written."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "train.txt").write_text("mine")
    (tmp_path / "text.deb").write_text("no package")

    def refused(words: str, *options: object) -> None:
        monkeypatch.setattr(sys, "argv", ["novels", *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            novels.main()
        error = capsys.readouterr().err.replace("study.novels: downloading r-cran-janeaustenr (1.6 MB)\n", "")
        assert ended.value.code == 2 and words in error and error.count("\n") == 1

    out = tmp_path / "out" / "austen"
    refused("was not written by study.novels", "--out", mine, "--deb", package)
    assert (mine / "train.txt").read_text() == "mine"
    refused("must be r-cran-janeaustenr", "--out", out, "--deb", tmp_path / "text.deb")
    refused("must be r-cran-janeaustenr", "--out", out, "--deb", tmp_path / "absent.deb")
    monkeypatch.setattr(novels, "LINES_SHA256", "0")
    refused("needed is 0", "--out", out, "--deb", package)
    monkeypatch.setenv("PATH", "")
    refused("apt-get is missing", "--out", out)
    assert list((tmp_path / "out").iterdir()) == []
