"""Hashes of weights that are still coming."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from edgeprism.errors import ModelFilesError
from edgeprism.models.manifest import TensorHashes, fingerprint
from tests.families import make


def test_a_file_is_hashed_while_it_grows(tmp_path: Path) -> None:
    """However it comes, in the end the model is the same one; until then it is cut short."""
    make("BertModel").save_pretrained(tmp_path / "whole")
    wanted = fingerprint(tmp_path / "whole")
    weights = (tmp_path / "whole" / "model.safetensors").read_bytes()
    coming = tmp_path / "coming"
    coming.mkdir()
    (coming / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    file, drawn = coming / "model.safetensors", random.Random(0)
    for _ in range(5):
        cuts = sorted({*drawn.sample(range(len(weights)), 20), 0, 3, 8, len(weights)})
        file.write_bytes(b"")
        hashes = TensorHashes(file)
        for start, stop in itertools.pairwise(cuts):
            hashes.advance()
            with pytest.raises(ModelFilesError, match="cut short"):
                fingerprint(coming, {file.name: hashes})
            with file.open("ab") as end:
                end.write(weights[start:stop])
        assert fingerprint(coming, {file.name: hashes}) == wanted


def test_a_byte_that_changed_shows(tmp_path: Path) -> None:
    """In any tensor; and hashes taken while the file came are those of the file."""
    make("BertModel").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    wanted, weights = fingerprint(tmp_path), bytearray(file.read_bytes())
    weights[-1] ^= 1
    file.write_bytes(weights)
    assert fingerprint(tmp_path) != wanted
    assert fingerprint(tmp_path, {file.name: TensorHashes(file)}) == fingerprint(tmp_path)
