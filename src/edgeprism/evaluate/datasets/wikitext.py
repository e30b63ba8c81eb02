"""WikiText-2 and WikiText-103 (Merity et al., 2016): one running text for each split, raw or as the official tokens."""

from __future__ import annotations

from pathlib import Path

from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.datasets.text import read_text

FORMATS = "WikiText is a folder with wiki.valid.raw or wiki.valid.tokens, or one file of text"


def load(path: Path, name: str, split: str) -> Dataset | None:
    """The text of a split, from its folder or any file of text; None where there is none.

    Raw text is preferred to the official tokens, in which rare words are <unk>.
    """
    names = (f"wiki.{split}.raw", f"wiki.{split}.tokens", f"{split}.txt")
    files = [path] if path.is_file() else [path / name for name in names if (path / name).is_file()]
    if not files:
        return None
    text = read_text(files[0])
    return Dataset(name=name, split=split, kind="stream", inputs=[text], targets=None, metrics=("perplexity",))
