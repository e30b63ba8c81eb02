"""Makes cloze questions of Jane Austen's novels, as the Children's Book Test does: `python -m study.cloze --out DIR`.

Hill et al. (2016, "The Goldilocks Principle"): twenty sentences that follow each other in a chapter, then one in which
a word is XXXXX, and ten candidates of the same kind from all of them: names (NE), common nouns (CN), verbs (V) and
prepositions (P), as a tagger tells them. Here contexts have at most MAX_WORDS words, and the answer stands in the
context too, so what a codec makes of the context counts. Test questions are from Persuasion, the valid ones from
Northanger Abbey; none are from study.novels' training texts. A language model may have read the novels before.

The files are named and written as the official ones, for `edgeprism evaluate MODEL --dataset cbt-ne --data DIR`, with
fewer questions than their names say.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgeprism.runtime.cache import cache_root
from study.novels import LINES_SHA256, SPLITS, CannotBuild, Chapters, chapters_of, sha256, texts

NAME = "austen-cloze"
TAGGER = "HanTa==1.2.1"
TAGGER_MODEL = "morphmodel_en.pgz"
TAGGER_SHA256 = "99ddc9b14b3fe604b245e2d7a3aef59ab1bdd06b1bae4f4ce74738902e2a0265"
RECORD_NAME = "cloze.json"
LAYOUT_VERSION = 1
"""Raised when the same novels are to give other questions."""
SEED = 20
NUM_SENTENCES, NUM_CANDIDATES = 20, 10
MAX_WORDS = 400
FILES = {"valid": "cbtest_{kind}_valid_2000ex.txt", "test": "cbtest_{kind}_test_2500ex.txt"}

KINDS = {
    "NE": re.compile(r"NP0"),
    "CN": re.compile(r"NN[012]"),
    "V": re.compile(r"V[BDHV]."),
    "P": re.compile(r"PRP|PRF"),
}
"""Kinds of words and their tags in the British National Corpus' set C5."""
TITLES = frozenset(("Mr", "Mrs", "Miss", "Dr", "Sir", "Lady", "Lord", "Captain", "Colonel", "Admiral", "Madam", "St"))
MIN_NAMED, MIN_RATIO = 2, 20
"""A name is seen so often inside a sentence, and so many times as often as the same letters in lower case (Bath)."""

_SHORT = r"(?:Mr|Mrs|Dr|St|Rev|Esq|Hon|No|Vol|&c)\."
_END = re.compile(r"[.!?][\"')]*\s+(?=[\"'(]*[A-Z])")
_NO_END = re.compile(rf"(?:\b|(?=&)){_SHORT}$|\b(?!I\b)[A-Z]\.$")
_TOKEN = re.compile(
    rf"{_SHORT}|&c|can(?=not\b)|\w+(?=n't\b)|n't\b|'(?:s|ll|ve|re|m)\b|\w+(?:-\w+)*(?='(?:s|ll|ve|re|m)\b)|\w+(?:['-]\w+)*|-{{2,}}|[^\w\s]"
)
_OPENING = re.compile(r"\"(?=[\w'(])")

Tag = Callable[[list[str]], list[str]]
"""Gives each token of a sentence its tag."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """``kinds``: of each token, the kind that may stand in a gap, or None."""

    tokens: list[str]
    kinds: list[str | None]

    def words(self, kind: str) -> set[str]:
        """Those of this kind."""
        return {token for token, its in zip(self.tokens, self.kinds, strict=True) if its == kind}

    def num_words(self) -> int:
        """Without punctuation."""
        return sum(token[0].isalnum() for token in self.tokens)


def build(directory: Path | None = None) -> Path:
    """The directory with the questions, written first if it is not there."""
    directory = directory if directory is not None else cache_root() / "data" / NAME
    if is_current(directory):
        return directory
    if directory.exists() and any(directory.iterdir()) and not (directory / RECORD_NAME).is_file():
        raise CannotBuild(f"{directory} exists and was not written by study.cloze; name another one with --out")
    tag = tagger()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as name:
        write({split: chapters_of(text) for split, text in texts().items()}, tag, Path(name))
        directory.mkdir(exist_ok=True)
        for path in sorted(Path(name).iterdir(), key=lambda path: path.name == RECORD_NAME):  # the record last
            os.replace(path, directory / path.name)
    return directory


def is_current(directory: Path) -> bool:
    """Whether ``directory`` holds these questions, whole."""
    try:
        record = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
        same = all(sha256((directory / name).read_bytes()) == one["sha256"] for name, one in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return same and _inputs().items() <= record.items()


def tagger() -> Tag:
    """HanTa with its English model, whose sha256 is checked before it is read: it is a pickle."""
    try:
        from HanTa import HanoverTagger as hanta
    except ImportError as exc:
        raise CannotBuild(f"words are told apart by HanTa, which is missing; install it: pip install {TAGGER}") from exc
    model = Path(str(hanta.__file__)).with_name(TAGGER_MODEL)
    if not model.is_file() or (digest := sha256(model.read_bytes())) != TAGGER_SHA256:
        found = f"has sha256 {digest}" if model.is_file() else "is not there"
        raise CannotBuild(f"HanTa's {TAGGER_MODEL} {found}, needed is {TAGGER_SHA256}: pip install {TAGGER}")
    loaded = hanta.HanoverTagger(TAGGER_MODEL)
    return lambda tokens: [tag for _, _, tag in loaded.tag_sent(tokens)]


def sentences(paragraph: str) -> Iterator[str]:
    """Ended by . ! or ? and what closes with it, where a capital follows; "Mr." and initials end none."""
    start = 0
    for match in _END.finditer(paragraph):
        if not _NO_END.search(paragraph[start : match.start() + 1]):
            yield paragraph[start : match.end()].strip()
            start = match.end()
    if paragraph[start:].strip():
        yield paragraph[start:].strip()


def tokens(sentence: str) -> list[str]:
    """Words and punctuation, cut as in the official files: do n't, can not, Anne 's, quotes as `` and ''."""
    cut = _TOKEN.findall(_OPENING.sub("\N{LEFT DOUBLE QUOTATION MARK}", sentence))
    return [{"\N{LEFT DOUBLE QUOTATION MARK}": "``", '"': "''"}.get(token, token) for token in cut]


def names(cut: Iterable[list[str]]) -> set[str]:
    """Words with a capital inside sentences, that (almost) never have a small letter there."""
    capital, small = Counter[str](), Counter[str]()
    for sentence in cut:
        for before, token in pairwise(sentence):
            if token.islower():
                small[token] += 1
            elif len(token) > 1 and token.istitle() and token.isalpha() and before.isalpha():
                capital[token] += 1
    found = {one for one, often in capital.items() if often >= max(MIN_NAMED, MIN_RATIO * small[one.lower()])}
    return found - TITLES


def tagged(chapters: Chapters, tag: Tag, known: set[str]) -> list[list[Sentence]]:
    """The sentences of each chapter, with the kinds of their words; ``known``: the names."""

    def kind_of(token: str, its_tag: str) -> str | None:
        kind = next((kind for kind, tags in KINDS.items() if tags.fullmatch(its_tag)), None)
        return kind if (token in known if kind == "NE" else token.islower() and token.isalpha()) else None

    def one(text: str) -> Sentence:
        cut = tokens(text)
        return Sentence(cut, [kind_of(*pair) for pair in zip(cut, tag(cut), strict=True)])

    return [[one(text) for paragraph in chapter for text in sentences(paragraph)] for chapter in chapters]


def questions(chapters: list[list[Sentence]], kind: str, rng: random.Random) -> list[str]:
    """Every question that can be made, one of a sentence, in random order."""
    made: list[str] = []
    for chapter in chapters:
        for end in range(NUM_SENTENCES, len(chapter)):
            context, query = chapter[end - NUM_SENTENCES : end], chapter[end]
            in_context = set().union(*(sentence.words(kind) for sentence in context))
            listed = in_context | query.words(kind)
            gaps = [at for at, word in enumerate(query.tokens) if query.kinds[at] == kind and word in in_context]
            few_words = sum(sentence.num_words() for sentence in context) <= MAX_WORDS
            if gaps and few_words and len(listed) >= NUM_CANDIDATES:
                made.append(_question(context, query, rng.choice(gaps), listed, rng))
    rng.shuffle(made)
    return made


def _question(context: list[Sentence], query: Sentence, gap: int, listed: set[str], rng: random.Random) -> str:
    """In the official form."""
    answer = query.tokens[gap]
    candidates = [answer, *rng.sample(sorted(listed - {answer}), NUM_CANDIDATES - 1)]
    rng.shuffle(candidates)
    asked = [*query.tokens[:gap], "XXXXX", *query.tokens[gap + 1 :]]
    lines = [f"{number} {' '.join(sentence.tokens)}" for number, sentence in enumerate(context, start=1)]
    return "\n".join([*lines, f"{NUM_SENTENCES + 1} {' '.join(asked)}\t{answer}\t\t{'|'.join(candidates)}"]) + "\n"


def write(splits: dict[str, Chapters], tag: Tag, directory: Path) -> None:
    """Writes the questions of "valid" and "test" and their record into ``directory``, which is there and empty.

    All splits together say which words are names.
    """
    everything = (
        tokens(text) for part in splits.values() for chapter in part for p in chapter for text in sentences(p)
    )
    known = names(everything)
    account: dict[str, Any] = {}
    for split, pattern in FILES.items():
        chapters = tagged(splits[split], tag, known)
        for kind in KINDS:
            made = questions(chapters, kind, random.Random(f"{SEED} {split} {kind}"))
            text, name = "\n".join(made), pattern.format(kind=kind)
            (directory / name).write_text(text, encoding="utf-8")
            account[name] = {"num_questions": len(made), "sha256": sha256(text.encode())}
    record = {**_inputs(), "novels": {split: SPLITS[split] for split in FILES}, "files": account}
    (directory / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _inputs() -> dict[str, Any]:
    """What decides the questions."""
    return {
        "layout_version": LAYOUT_VERSION,
        "novels_lines_sha256": LINES_SHA256,
        "tagger": TAGGER,
        "tagger_sha256": TAGGER_SHA256,
        "seed": SEED,
        "max_words": MAX_WORDS,
    }


def main() -> None:
    """Builds and prints where; what is missing or in the way is one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m study.cloze", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write it (default: the user's cache)")
    try:
        print(build(parser.parse_args().out))
    except CannotBuild as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
