"""Weights that are sent: chunk by chunk, resumed after a break, whole or not at all, within the cache's bounds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeprism.errors import FrameError, InputError, ModelFilesError, PeerLost
from edgeprism.models.manifest import fingerprint
from edgeprism.models.partial import load_partial
from edgeprism.runtime import piece_weights, weights
from edgeprism.runtime.piece_weights import PieceWeights
from edgeprism.runtime.weights import WeightCache, WeightFiles
from edgeprism.wire.frame import Buffer, Frame, Kind, dump_meta
from tests.families import make

pytestmark = pytest.mark.alone

ARCHITECTURE = "BertForSequenceClassification"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of some 700 kB in two files, sent in chunks of 10 kB."""
    monkeypatch.setattr(weights, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(piece_weights, "CHUNK_BYTES", 10_000)
    make(ARCHITECTURE).save_pretrained(tmp_path / "source", max_shard_size="300KB")
    (tmp_path / "source" / "tokenizer.json").write_text("not part of the model")
    return tmp_path / "source"


class Link:
    """Coordinator and link in one: answers in order, breaks after some chunks, or spoils one."""

    def __init__(self, files: WeightFiles, breaks_after: int = 10**9, spoils: int = -1) -> None:
        self.files, self.breaks_after, self.spoils = files, breaks_after, spoils
        self.asked: list[Mapping[str, Any]] = []
        self.under_way: list[Mapping[str, Any]] = []
        self.num_sent = 0

    def ask(self, question: Mapping[str, Any]) -> None:
        """A FETCH frame."""
        self.asked.append(question)
        self.under_way.append(question)
        assert len(self.under_way) <= weights.WINDOW

    def next_chunk(self) -> Frame:
        """The CHUNK frame of the oldest question."""
        if self.num_sent == self.breaks_after:
            raise PeerLost("device 0 is gone", (0,))
        meta, buffers = self.files.answer(self.under_way.pop(0))
        if self.num_sent == self.spoils:
            buffers = (Buffer("uint8", np.zeros_like(buffers[0].data)),)
        self.num_sent += 1
        return Frame(kind=Kind.CHUNK, epoch=1, sender=0, meta=dump_meta(meta), arrays=buffers)


def test_a_broken_transfer_goes_on_where_it_broke(source: Path, tmp_path: Path) -> None:
    """Nothing is asked for twice but what was under way; in the end the same model is there, and found again."""
    wanted, cache, files = fingerprint(source), WeightCache(tmp_path / "cache"), WeightFiles(source)
    assert cache.find(wanted) is None
    broken = Link(files, breaks_after=30)
    with pytest.raises(PeerLost):
        cache.fetch(wanted, broken.ask, broken.next_chunk)
    assert cache.find(wanted) is None
    whole = Link(files)
    directory = cache.fetch(wanted, whole.ask, whole.next_chunk)
    assert fingerprint(directory) == wanted
    assert cache.find(wanted) == directory
    assert not (directory / "tokenizer.json").exists()
    num_chunks = sum(-(-path.stat().st_size // weights.CHUNK_BYTES) for path in directory.iterdir())
    assert num_chunks > 40
    assert len(whole.asked) <= num_chunks + 1 - 29 + 1  # the list again; 29 chunks had come
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [wanted]


def test_what_is_not_the_model_is_thrown_away(source: Path, tmp_path: Path) -> None:
    """One spoilt chunk, or another model than was ordered: nothing stays, and the next attempt starts anew."""
    cache, files = WeightCache(tmp_path / "cache"), WeightFiles(source)
    for wanted, spoils in ((fingerprint(source), 2), (fingerprint(source), 20), ("0" * 64, -1)):
        link = Link(files, spoils=spoils)
        with pytest.raises(ModelFilesError, match="not the model that it ordered"):
            cache.fetch(wanted, link.ask, link.next_chunk)
        assert cache.find(wanted) is None
        assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "model.bin", "model_evil.py", "config.json/x"])
def test_names_of_files_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    """The list that a coordinator sends may hold the files of a model and nothing else."""
    raw = f'{{"files": {{"{name}": 3}}}}'.encode()
    cache = WeightCache(tmp_path / "cache")
    with pytest.raises(FrameError, match="list of files"):
        cache.fetch("0" * 64, lambda _: None, lambda: Frame(kind=Kind.CHUNK, epoch=1, sender=0, meta=raw))


@pytest.mark.parametrize(
    "question",
    [{"file": "tokenizer.json", "offset": 0}, {"file": "../x", "offset": 0}, {"file": "config.json", "offset": -1},
     {"file": "config.json", "offset": 10**9}, {"file": "config.json", "offset": "0"}, {"file": 7, "offset": 0}],
)  # fmt: skip
def test_a_worker_gets_the_models_files_only(source: Path, question: dict[str, Any]) -> None:
    """Whatever it asks for."""
    with pytest.raises(FrameError, match="is not there"):
        WeightFiles(source).answer(question)


def test_the_cache_has_a_size(source: Path, tmp_path: Path) -> None:
    """A model larger than the cache is refused; the least recently used goes first."""
    files, size = WeightFiles(source), WeightFiles(source).num_bytes
    link = Link(files)
    with pytest.raises(ModelFilesError, match="--cache-gb"):
        WeightCache(tmp_path / "small", size - 1).fetch(fingerprint(source), link.ask, link.next_chunk)
    cache = WeightCache(tmp_path / "cache", 2 * size + size // 2)
    kept: list[str] = []
    for seed in range(3):
        make(ARCHITECTURE, seed=seed).save_pretrained(tmp_path / str(seed), max_shard_size="300KB")
        link = Link(WeightFiles(tmp_path / str(seed)))
        kept.append(fingerprint(tmp_path / str(seed)))
        cache.fetch(kept[-1], link.ask, link.next_chunk)
        if seed == 1:
            assert cache.find(kept[0]) is not None  # used again: now the second is the oldest
    assert [cache.find(wanted) is not None for wanted in kept] == [True, False, True]
    with pytest.raises(InputError, match="fingerprint"):
        cache.find("../..")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB, where this machine lets us mount one."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_is_one_clear_line(source: Path, full_disk: Path) -> None:
    """It says so, and leaves nothing half-written."""
    link = Link(WeightFiles(source))
    with pytest.raises(ModelFilesError, match="No space left on device"):
        WeightCache(full_disk / "cache").fetch(fingerprint(source), link.ask, link.next_chunk)
    assert not list((full_disk / "cache").iterdir())


PIECES = (4, 8)


def pieces_over(
    link: Link, cache: WeightCache, wanted: str, check: Callable[[Path], object] = lambda place: None
) -> PieceWeights:
    """Those of the second block, over that link."""
    return PieceWeights(cache, wanted, PIECES, link.ask, link.next_chunk, check)


def test_of_some_pieces_only_their_tensors_are_sent(source: Path, tmp_path: Path) -> None:
    """Checked one by one, kept, found again, and what a stage computes with."""
    wanted, cache, link = fingerprint(source), WeightCache(tmp_path / "cache"), Link(WeightFiles(source))
    directory = pieces_over(link, cache, wanted).directory()
    sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
    assert (directory / "model.safetensors").stat().st_size < 0.45 * sum(sizes)
    shown = [had for had in map(link.files.had_before, link.asked) if had is not None]
    assert {wanted_bytes for _, wanted_bytes in shown} == {shown[0][1]} and shown[0] == (0, shown[0][1])
    assert sum(sizes) > shown[0][1] > shown[-1][0] >= 0.9 * shown[0][1] and shown == sorted(shown)
    ours, theirs = (load_partial(one, *PIECES).state_dict() for one in (directory, source))
    held = [name for name, value in theirs.items() if not value.is_meta]
    assert held and all(torch.equal(ours[name], theirs[name]) for name in held)
    assert {name for name, value in ours.items() if not value.is_meta} == {*held}
    again = Link(WeightFiles(source))
    assert pieces_over(again, cache, wanted).directory() == directory and not again.asked


def test_what_does_not_fit_the_memory_is_not_sent(source: Path, tmp_path: Path) -> None:
    """The configuration is enough to refuse it."""

    def refuse(place: Path) -> None:
        assert (place / "config.json").exists()
        raise ModelFilesError("3 MB of memory are missing")

    link, root = Link(WeightFiles(source)), tmp_path / "cache"
    with pytest.raises(ModelFilesError, match="3 MB of memory"):
        pieces_over(link, WeightCache(root), fingerprint(source), refuse).directory()
    assert not [question for question in link.asked if str(question.get("file", "")).endswith(".safetensors")]
    assert not list(root.iterdir())


def test_pieces_that_were_damaged_are_sent_anew(source: Path, tmp_path: Path) -> None:
    """One byte of a card that forgets."""
    wanted, cache = fingerprint(source), WeightCache(tmp_path / "cache")
    path = pieces_over(Link(WeightFiles(source)), cache, wanted).directory() / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    link = Link(WeightFiles(source))
    pieces_over(link, cache, wanted).directory()
    assert link.asked and path.read_bytes() != content


@pytest.mark.parametrize("spoils", [0, 2, 3, 12])
def test_pieces_that_come_damaged_are_thrown_away(spoils: int, source: Path, tmp_path: Path) -> None:
    """Manifest, configuration, header or a tensor: nothing half is left."""
    wanted, root = fingerprint(source), tmp_path / "cache"
    link = Link(WeightFiles(source), spoils=spoils)
    with pytest.raises(ModelFilesError):
        pieces_over(link, WeightCache(root), wanted).directory()
    assert not list(root.iterdir())


def test_pieces_of_a_broken_transfer_leave_nothing(source: Path, tmp_path: Path) -> None:
    """It begins anew: a stage's part is small."""
    wanted, root = fingerprint(source), tmp_path / "cache"
    with pytest.raises(PeerLost):
        pieces_over(Link(WeightFiles(source), breaks_after=20), WeightCache(root), wanted).directory()
    assert not list(root.iterdir())


def test_pieces_that_have_no_room_are_refused(source: Path, tmp_path: Path) -> None:
    """With the size of the cache."""
    wanted = fingerprint(source)
    with pytest.raises(ModelFilesError, match="give it more with --cache-gb"):
        pieces_over(Link(WeightFiles(source)), WeightCache(tmp_path / "cache", 50_000), wanted).directory()
