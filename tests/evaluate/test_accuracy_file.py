"""Writers of one accuracy file do not lose each other's measurements, and leave nothing half written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgeprism.errors import InputError
from edgeprism.evaluate.accuracy_file import add_records
from edgeprism.specs.accuracy import AccuracyFile
from tests.specs.test_accuracy import RECORD

NUM_WRITERS, NUM_EACH = 4, 15

WRITER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from edgeprism.evaluate.accuracy_file import add_records
from edgeprism.specs.accuracy import AccuracyRecord
record = AccuracyRecord.from_json(json.loads(sys.argv[2]))
for number in range(int(sys.argv[4])):
    add_records(Path(sys.argv[1]), [replace(record, dataset=f"{sys.argv[3]}-{number}")])
"""


def test_many_writers(tmp_path: Path) -> None:
    """Processes that add to it at the same time: all is there, and every read in between was of a whole file."""
    path = tmp_path / "new" / "accuracy.json"
    words = [sys.executable, "-c", WRITER, str(path), json.dumps(RECORD.to_json())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    writers = [
        subprocess.Popen([*words, f"writer{number}", str(NUM_EACH)], env=environment) for number in range(NUM_WRITERS)
    ]
    num_reads = 0
    while any(writer.poll() is None for writer in writers):
        AccuracyFile.read(path)
        num_reads += 1
    assert [writer.wait() for writer in writers] == [0] * NUM_WRITERS and num_reads > 1
    wanted = {f"writer{writer}-{number}" for writer in range(NUM_WRITERS) for number in range(NUM_EACH)}
    assert {record.dataset for record in AccuracyFile.read(path).records} == wanted
    assert sorted(os.listdir(path.parent)) == ["accuracy.json", "accuracy.json.lock"]


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    """It may be anybody's."""
    path = tmp_path / "notes.json"
    path.write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"notes.json is no accuracy file"):
        add_records(path, [RECORD])
    assert path.read_text() == '{"mine": 1}'


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    """One line, and no temporary file is left."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        add_records(tmp_path / "file" / "accuracy.json", [RECORD])
    add_records(tmp_path / "accuracy.json", [RECORD])
    add_records(tmp_path / "accuracy.json", [replace(RECORD, split="train")])
    assert len(AccuracyFile.read(tmp_path / "accuracy.json").records) == 2
