"""Running text of one's own: a file, or a folder whose files follow one another in the order of their names."""

from __future__ import annotations

from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset, wrong
from edgeprism.tasks.frames import natural

FORMATS = "running text is a file in UTF-8, or a folder with .txt files (--split test is test.txt in it)"

ALL = "all"


def load(path: Path, name: str, split: str) -> Dataset | None:
    """One text, with an empty line between files; None for a folder without any. A part has its name."""
    if split != ALL:
        files = [file for file in [path / f"{split}.txt"] if file.is_file()]
    else:
        files = [path] if path.is_file() else sorted(path.glob("*.txt"), key=lambda file: natural(file.name))
    if not files:
        return None
    text = "\n\n".join(read_text(file) for file in files)
    return Dataset(name=name, split=split, kind="stream", inputs=[text], targets=None, metrics=("perplexity",))


def read_text(path: Path) -> str:
    """What a file holds; InputError where that is nothing, or not in UTF-8."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise wrong(path, "it is not UTF-8", line=content[: exc.start].count(b"\n") + 1) from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if not text.strip():
        raise wrong(path, "it is empty")
    return text
