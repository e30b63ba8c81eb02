"""The pages of the project point only at what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("requirements/*.md")])

FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)>\s]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    """Every relative link names a file of the repository, and a heading in it where it names one."""
    broken = [target for target in links_of(page) if not resolves(page, target)]
    assert not broken, f"{page.relative_to(ROOT)} points at {', '.join(broken)}"


def test_every_page_is_reached_from_the_index() -> None:
    """A reader who starts at docs/index.md finds every page of docs/."""
    reached = {path_of(ROOT / "docs/index.md", target) for target in links_of(ROOT / "docs/index.md")}
    missed = set(ROOT.glob("docs/**/*.md")) - reached - {ROOT / "docs/index.md"}
    assert not missed, f"docs/index.md has no link to {', '.join(sorted(page.name for page in missed))}"


def test_broken_links_are_found(tmp_path: Path) -> None:
    """The check itself tells a good link from a bad one, and leaves code and addresses alone."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A head\n[a](page.md) [b](#a-head) [c](gone.md) [d](#gone) `[e](gone.md)` [f](https://x.example)\n"
    )
    assert [target for target in links_of(page) if not resolves(page, target)] == ["gone.md", "#gone"]


def links_of(page: Path) -> list[str]:
    """Targets of the links in a page, those to other hosts and those in code left out."""
    text = CODE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    targets = [inline or reference for inline, reference in LINK.findall(text)]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def resolves(page: Path, target: str) -> bool:
    """Whether the file is there, and the heading that a fragment names."""
    path, _, fragment = target.partition("#")
    file = path_of(page, path) if path else page
    if not file.exists():
        return False
    return not fragment or file.suffix != ".md" or fragment in anchors_of(file)


def path_of(page: Path, target: str) -> Path:
    """The file that a link in ``page`` names."""
    return (page.parent / target.partition("#")[0]).resolve()


def anchors_of(page: Path) -> set[str]:
    """Names of a page's headings, as they are linked to: lower case, hyphens for spaces, no other punctuation."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
