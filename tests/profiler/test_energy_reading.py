"""Readings of a device and of a cluster: nothing that is missing counts as zero."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeprism.errors import InputError
from edgeprism.profiler.energy.reading import EnergyReading, combine


def reading(joules: float | None = 10.0, **values: Any) -> EnergyReading:
    """Of 2.5 s on a Jetson, unless ``values`` say otherwise."""
    usual = {"idle_joules": 4.0, "seconds": 2.5, "num_samples": 26, "num_runs": 5, "source": "INA3221 VDD_IN"}
    return EnergyReading(**{"joules": joules, **usual, "covers": "module", "is_estimate": False, **values})


def test_over_idle_is_gross_less_idle() -> None:
    """Where both are known."""
    assert reading().over_idle_joules == 6
    assert reading(idle_joules=None).over_idle_joules is None
    assert reading(None, missing="gone").over_idle_joules is None


@pytest.mark.parametrize(
    "given",
    [reading(), reading(None, idle_joules=None, missing="gone", machine="6f1e"), reading(7.0, is_estimate=True)],
)
def test_through_json_and_back(given: EnergyReading) -> None:
    """With a schema version, and over idle for those who read the file."""
    document = json.loads(json.dumps(given.to_json()))
    assert document["schema_version"] == 1
    assert document["over_idle_joules"] == given.over_idle_joules
    assert EnergyReading.from_json(document) == given


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema_version 2; this edgeprism reads 1"),
        ({"joules": "10"}, "joules must be a number, not '10'"),
        ({"joules": None}, "it must say what is missing"),
        ({"joules": float("nan")}, "joules must be a number"),
        ({"joules": -1.0}, "joules must be 0 or more"),
        ({"seconds": None}, "seconds must be a number"),
        ({"num_samples": 2.5}, "num_samples must be a whole number"),
        ({"num_samples": -1}, "-1 samples"),
        ({"num_runs": 0}, "0 runs"),
        ({"is_estimate": 0}, "is_estimate must be true or false"),
        ({"source": ""}, "it must say its source"),
        ({"covers": None}, "covers must be a text"),
        ({"watts": 3}, "unknown fields: watts"),
    ],
)
def test_a_document_that_is_wrong(change: dict[str, Any], says: str) -> None:
    """The message names what is."""
    with pytest.raises(InputError, match=says):
        EnergyReading.from_json({**reading().to_json(), **change})


@pytest.mark.parametrize("document", [None, [], "joules", {}])
def test_something_else_is_no_reading(document: Any) -> None:
    """An error of ours, whatever it is."""
    with pytest.raises(InputError, match="energy reading"):
        EnergyReading.from_json(document)


def test_the_total_of_a_cluster() -> None:
    """Joules add up, the fewest samples and the longest window stand for all, one estimate makes an estimate."""
    total = combine(
        {"pi1": reading(), "pi2": reading(5.0, idle_joules=1.0, seconds=2.6, num_samples=12, source="RAPL x")}
    )
    assert (total.joules, total.idle_joules, total.over_idle_joules) == (15, 5, 10)
    assert (total.seconds, total.num_samples, total.num_runs) == (2.6, 12, 5)
    assert total.source == "pi1: INA3221 VDD_IN; pi2: RAPL x"
    assert total.is_complete and not total.is_estimate
    assert combine({"pi1": reading(), "pi2": reading(is_estimate=True)}).is_estimate


def test_a_total_with_a_missing_part_says_so() -> None:
    """A device without a reading, or with a broken one, is named; what is known is not called the whole."""
    total = combine({"pi1": reading(), "pi2": reading(None, missing="Input/output error"), "pi3": None})
    assert total.joules == 10
    assert not total.is_complete
    assert total.missing == "pi3 gave no reading; pi2: Input/output error"
    assert EnergyReading.from_json(total.to_json()) == total


def test_a_total_of_nothing_is_not_zero() -> None:
    """There are no joules then."""
    total = combine({"pi1": None, "pi2": reading(None, missing="gone")})
    assert (total.joules, total.idle_joules, total.over_idle_joules) == (None, None, None)
    assert not total.is_complete
    assert combine({"pi1": None}).joules is None


def test_without_one_idle_power_nothing_is_over_idle() -> None:
    """Gross is still whole."""
    total = combine({"pi1": reading(), "pi2": reading(idle_joules=None)})
    assert (total.joules, total.over_idle_joules, total.is_complete) == (20, None, True)


def test_processes_on_one_machine_do_not_count_it_twice() -> None:
    """Its processor's count is of all of them. Estimates are of one process each, and add up."""
    here = {"source": "RAPL package-0", "machine": "6f1e"}
    total = combine({"0": reading(**here), "1": reading(11.0, **here), "2": reading(**{**here, "machine": "aa00"})})
    assert (total.joules, total.over_idle_joules) == (20, 12)
    assert total.source == "0: RAPL package-0; 1: the same machine as 0, counted there; 2: RAPL package-0"
    short = reading(**here, is_estimate=True)
    assert combine({"0": short, "1": short}).joules == 10
    estimates = reading(source="estimate: x", is_estimate=True)
    assert combine({"0": estimates, "1": estimates}).joules == 20


def test_only_like_windows_add_up() -> None:
    """Of the same number of runs, and of one device at least."""
    with pytest.raises(InputError, match="readings of the same runs"):
        combine({"pi1": reading(), "pi2": reading(num_runs=6)})
    with pytest.raises(InputError, match="one device or more"):
        combine({})
