"""Writes Jane Austen's six novels as running text: `python -m study.novels --out DIR`.

The novels (public domain) are in Debian's package r-cran-janeaustenr (MIT), which apt downloads and nothing installs.
train.txt is Emma, Mansfield Park, Pride and Prejudice, and Sense and Sensibility; valid.txt is Northanger Abbey;
test.txt is Persuasion. A paragraph is a line, an empty line ends a chapter; headings, notes of the editors and the
underscores of italics are left out. study.cloze makes questions of the same chapters.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgeprism.runtime.cache import cache_root
from study.r_data import Unreadable, read_database

NAME = "austen"
PACKAGE = "r-cran-janeaustenr"
LINES_SHA256 = "07bc78e9fbbbb9b2cf8209ff5f279db83e8c9b2db214d1d71cd927f9a3f12a20"
"""Of all lines of the six novels, in the order of SPLITS, each with a line feed: the same in any packaging."""
SPLITS = {
    "train": ("emma", "mansfieldpark", "prideprejudice", "sensesensibility"),
    "valid": ("northangerabbey",),
    "test": ("persuasion",),
}
RECORD_NAME = "novels.json"
LAYOUT_VERSION = 1
"""Raised when the same lines are to give other texts."""

_HEADING = re.compile(r"chapter (\d+|[ivxl]+)", re.IGNORECASE)
_VOLUME = re.compile(r"volume [ivx]+", re.IGNORECASE)
_END = re.compile(r"the end|finis|a note on the text", re.IGNORECASE)
_ADDED = re.compile(r"\[|\*|\(end of volume", re.IGNORECASE)
"""How a paragraph begins that is an editor's note, a footnote, or a row of asterisks."""

Chapters = list[list[str]]
"""Paragraphs by chapter."""


class CannotBuild(RuntimeError):
    """Something is missing, in the way, or another text than the pinned one. The message is one line."""


def texts(directory: Path | None = None) -> dict[str, str]:
    """The running text of each split, from ``directory`` (by default in the cache), made first if it is not there."""
    directory = build(directory)
    return {split: (directory / f"{split}.txt").read_text(encoding="utf-8") for split in SPLITS}


def chapters_of(text: str) -> Chapters:
    """The paragraphs of such a text, by chapter."""
    return [chapter.splitlines() for chapter in text.split("\n\n")]


def build(directory: Path | None = None, deb: Path | None = None) -> Path:
    """The directory with the texts, written first if it is not there; ``deb``: the package's file, if it is here."""
    directory = directory if directory is not None else cache_root() / "data" / NAME
    if is_current(directory):
        return directory
    if directory.exists() and any(directory.iterdir()) and not (directory / RECORD_NAME).is_file():
        raise CannotBuild(f"{directory} exists and was not written by study.novels; name another one with --out")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as name:
        work = Path(name)
        package = deb if deb is not None else download(work)
        write(unpack(package, work / "unpacked"), work / "made", {"package": package.name})
        directory.mkdir(exist_ok=True)
        for path in sorted((work / "made").iterdir(), key=lambda path: path.name == RECORD_NAME):  # the record last
            os.replace(path, directory / path.name)
    return directory


def is_current(directory: Path) -> bool:
    """Whether ``directory`` holds these texts, whole."""
    try:
        record = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
        found = {split: sha256((directory / f"{split}.txt").read_bytes()) for split in SPLITS}
        wanted = {split: record["texts"][split]["sha256"] for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return _inputs().items() <= record.items() and found == wanted


def download(folder: Path) -> Path:
    """The package's file (1.6 MB), fetched by apt into ``folder``."""
    print(f"study.novels: downloading {PACKAGE} (1.6 MB)", file=sys.stderr)
    _run(["apt-get", "--quiet=2", "download", PACKAGE], folder, "give a file that you have with --deb")
    files = sorted(folder.glob("*.deb"))
    if not files:
        raise CannotBuild(f"apt-get wrote no file of {PACKAGE}; give one that you have with --deb")
    return files[0]


def unpack(package: Path, folder: Path) -> dict[str, list[str]]:
    """The lines of each novel out of the package, their sha256 checked."""
    folder.mkdir()
    _run(["dpkg-deb", "--extract", str(package.resolve()), str(folder)], folder, f"{package} must be {PACKAGE}")
    found = next((path.parent for path in folder.rglob("Rdata.rdx")), folder)
    try:
        read = read_database(found)
    except Unreadable as exc:
        raise CannotBuild(f"{package.name}: {str(exc).replace(str(folder), '')}") from exc
    titles = [title for names in SPLITS.values() for title in names]
    lines = {title: list(read.get(title, ())) for title in titles}
    digest = sha256("".join(f"{line}\n" for title in titles for line in lines[title]).encode())
    if digest != LINES_SHA256:
        raise CannotBuild(f"the novels in {package.name} have sha256 {digest}, needed is {LINES_SHA256}")
    return lines


def chapters(lines: list[str]) -> Chapters:
    """A novel without its headings: what stands before the first chapter and after the end is left out."""
    found: Chapters = []
    paragraph: list[str] = []
    for line in [*lines, ""]:
        words = line.replace("_", "").split()
        text = " ".join(words)
        if _END.fullmatch(text):
            break
        if words and not (_HEADING.fullmatch(text) or _VOLUME.fullmatch(text)):
            paragraph += words
            continue
        if paragraph and found and not _ADDED.match(" ".join(paragraph)):
            found[-1].append(" ".join(paragraph).replace("*", ""))
        paragraph = []
        if _HEADING.fullmatch(text):
            found.append([])
    return [chapter for chapter in found if chapter]


def write(lines: dict[str, list[str]], directory: Path, source: dict[str, Any]) -> None:
    """Writes the texts and the record of where they come from into ``directory``, which is made."""
    directory.mkdir()
    account: dict[str, Any] = {}
    for split, titles in SPLITS.items():
        parts = [chapter for title in titles for chapter in chapters(lines[title])]
        text = "\n\n".join("\n".join(chapter) for chapter in parts) + "\n"
        (directory / f"{split}.txt").write_text(text, encoding="utf-8")
        counts = {"num_chapters": len(parts), "num_words": len(text.split()), "num_bytes": len(text.encode())}
        account[split] = {"novels": titles, "sha256": sha256(text.encode()), **counts}
    record = {**_inputs(), **source, "texts": account}
    (directory / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def sha256(content: bytes) -> str:
    """Its digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _inputs() -> dict[str, Any]:
    """What decides the directory."""
    return {"layout_version": LAYOUT_VERSION, "lines_sha256": LINES_SHA256}


def _run(command: list[str], folder: Path, remedy: str) -> None:
    if shutil.which(command[0]) is None:
        raise CannotBuild(f"{command[0]} is missing: the novels are in a package of Debian; {remedy}")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        raise CannotBuild(f"{command[0]} fails ({reason}); {remedy}")


def main() -> None:
    """Builds and prints where; what is missing or in the way is one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m study.novels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write it (default: the user's cache)")
    parser.add_argument("--deb", type=Path, metavar="FILE", help=f"the file of {PACKAGE}, instead of a download")
    arguments = parser.parse_args()
    try:
        print(build(arguments.out, arguments.deb))
    except CannotBuild as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
