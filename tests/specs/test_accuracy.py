"""The accuracy file: what is kept, what is refused, and what a policy finds in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprism.errors import InputError
from edgeprism.specs.accuracy import AccuracyFile, AccuracyRecord
from edgeprism.specs.codec import CodecSpec

RECORD = AccuracyRecord(
    model="0123456789abcdef" * 4,
    codec="means:4+int8",
    shares=(0.5, 0.5),
    dtype="float32",
    dataset="cifar10",
    split="test",
    metric="accuracy",
    num_inputs=500,
    num_alone=0,
    exact=0.932,
    value=0.922,
    low=-0.02,
    high=0.001,
    agreement=0.97,
    relative_bytes=0.0632,
)
WAY: dict[str, Any] = {
    "model": RECORD.model,
    "codec": CodecSpec.parse("means:4+int8"),
    "num_devices": 2,
    "dtype": "float32",
}


def test_round_trip() -> None:
    """What is written is read, and thirds stay the same shares."""
    regression = replace(RECORD, metric="pearson", agreement=None, shares=(1 / 3,) * 3)
    file = AccuracyFile(records=(RECORD, regression))
    assert AccuracyFile.from_json(json.loads(json.dumps(file.to_json()))) == file
    assert file.to_json()["records"][1]["num_devices"] == 3


def test_other_tables_are_another_measurement() -> None:
    """What was measured with tables that have been made anew since says nothing of the new ones."""
    old, new = (replace(RECORD, codec="pq:8", calibration=digit * 64) for digit in "ab")
    file = AccuracyFile().merged([old, new])
    assert file.records == (old, new)
    way = {**WAY, "codec": CodecSpec.parse("pq:8")}
    assert file.find(**way, calibration=new.calibration) == (new,)
    assert file.points_lost(**way, calibration="c" * 64) is None
    assert file.points_lost(**way) == pytest.approx(1.0)
    without = {name: value for name, value in old.to_json().items() if name != "calibration"}
    assert AccuracyRecord.from_json(without).calibration == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vit"}, "model must be a sha256 in hex"),
        ({"calibration": "vit"}, "calibration must be a sha256 in hex or empty"),
        ({"codec": "means:4.0+int8"}, "codec 'means:4.0.int8' is written means:4.int8"),
        ({"codec": "zip"}, "unknown codec 'zip'"),
        ({"codec": 4}, "codec must be a text, not 4"),
        ({"shares": [0.5, 0.6]}, "add up to 1.1"),
        ({"shares": "0.5"}, "shares must be a list of numbers"),
        ({"dtype": ""}, "dtype is empty"),
        ({"num_inputs": 0}, "0 of 0 inputs cannot be"),
        ({"num_inputs": 5.5}, "num_inputs must be a whole number"),
        ({"num_alone": 501}, "501 of 500 inputs cannot be"),
        ({"exact": "high"}, "exact must be a number"),
        ({"low": -(10**400)}, "low must be a number"),
        ({"metric": "perplexity", "exact": 0}, "a perplexity, must be above 0"),
        ({"value": float("nan")}, "value must be a number"),
        ({"low": 0.5}, "an interval from 0.5 to 0.001"),
        ({"agreement": 1.5}, "agreement must lie between 0 and 1"),
        ({"colour": "red"}, "missing or unknown fields: colour"),
    ],
)
def test_bad_records(change: dict[str, Any], message: str) -> None:
    """Each says which field is wrong."""
    with pytest.raises(InputError, match=message):
        AccuracyRecord.from_json({**RECORD.to_json(), **change})


def test_bad_files(tmp_path: Path) -> None:
    """Another version, another thing, damaged, twice the same; none at all is empty."""
    record = RECORD.to_json()
    for text, message in (
        ("[]", "file.json is no accuracy file: an accuracy file is a JSON object, not list"),
        ('{"schema_version": 2, "records": []}', "schema_version 2; this edgeprism reads 1"),
        ('{"schema_version": 1}', "holds schema_version and records"),
        ('{"schema_version": 1, "records": [', "file.json is no accuracy file: "),
        (json.dumps({"schema_version": 1, "records": [record, record]}), "the same measurement twice"),
        ('{"schema_version": 1, "records": [7]}', "an accuracy record is a JSON object, not int"),
    ):
        (tmp_path / "file.json").write_text(text)
        with pytest.raises(InputError, match=message):
            AccuracyFile.read(tmp_path / "file.json")
    assert AccuracyFile.read(tmp_path / "none.json") == AccuracyFile()
    with pytest.raises(InputError, match="cannot be read"):
        AccuracyFile.read(tmp_path)


def test_merging() -> None:
    """The one on more inputs stays, else the newer one; another split is another measurement."""
    few, newer, other = replace(RECORD, num_inputs=20), replace(RECORD, value=0.9), replace(RECORD, split="train")
    file = AccuracyFile(records=(few,)).merged([RECORD, few, newer, other])
    assert set(file.records) == {newer, other}


def test_what_a_policy_finds() -> None:
    """The most that was measured in this way of running; None where nothing was, 0 for exact codecs."""
    file = AccuracyFile(records=(RECORD, replace(RECORD, dataset="own", value=0.912)))
    assert file.points_lost(**WAY) == pytest.approx(2.0)
    assert file.points_lost(**WAY, dataset="cifar10") == pytest.approx(1.0)
    assert file.points_lost(**WAY, shares=(0.5, 0.5)) == pytest.approx(2.0)
    for miss in (
        {"codec": CodecSpec.parse("int4")},
        {"num_devices": 3},
        {"dtype": "bfloat16"},
        {"model": "f" * 64},
        {"shares": (0.4, 0.6)},
        {"shares": (0.5, 0.25, 0.25)},
        {"dataset": "sst2"},
        {"metric": "f1"},
    ):
        assert file.points_lost(**{**WAY, **miss}) is None
    assert file.points_lost(**{**WAY, "codec": CodecSpec.parse("kv:exact")}) == 0


def test_a_handful_of_inputs_is_not_relied_on() -> None:
    """What is known to within 1 point counts, what was seen of five inputs does not; of a perplexity, in per cent."""
    five = replace(RECORD, dataset="own", num_inputs=5, value=0.932, low=-0.396, high=0.396)
    assert RECORD.interval == pytest.approx((-0.1, 2.0))
    file = AccuracyFile(records=(RECORD, five))
    assert file.points_lost(**WAY, max_uncertainty=5.0) == pytest.approx(1.0)
    assert AccuracyFile(records=(five,)).points_lost(**WAY, max_uncertainty=5.0) is None
    record = replace(RECORD, metric="perplexity", exact=16.0, value=20.0, low=3.0, high=5.0)
    assert record.interval == pytest.approx((300 / 16, 500 / 16))


def test_a_great_loss_counts_however_roughly_it_is_known() -> None:
    """40 points, give or take 8, on other data: at least 32."""
    bad = replace(RECORD, dataset="own", num_inputs=60, value=0.532, low=-0.48, high=-0.32)
    file = AccuracyFile(records=(RECORD, bad))
    assert file.points_lost(**WAY, max_uncertainty=5.0) == pytest.approx(32.0)
    assert file.points_lost(**WAY) == pytest.approx(40.0)


def test_a_perplexity_is_lost_in_per_cent() -> None:
    """20 instead of 16 is 25 % up."""
    record = replace(RECORD, metric="perplexity", exact=16.0, value=20.0, low=3.0, high=5.0)
    assert record.points_lost == pytest.approx(25)
