"""The text forms of codecs, and how many rows they send."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprism.errors import PlanError
from edgeprism.specs.codec import EXACT, CodecSpec

rates = st.floats(min_value=1, max_value=1e9)
codecs = st.builds(
    lambda travels, means, bits: CodecSpec(travels=travels, means_rate=means[0], num_means=means[1], bits=bits),
    st.sampled_from(["rows", "keys_values"]),
    st.one_of(st.just((None, None)), st.tuples(rates, st.none()), st.tuples(st.none(), st.integers(1, 10**6))),
    st.sampled_from([32, 8, 4]),
)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("exact", CodecSpec()),
        ("means:9.9", CodecSpec(means_rate=9.9)),
        ("means:L=10", CodecSpec(num_means=10)),
        ("int8", CodecSpec(bits=8)),
        ("int4", CodecSpec(bits=4)),
        ("means:4+int8", CodecSpec(means_rate=4.0, bits=8)),
        ("means:L=3+int4", CodecSpec(num_means=3, bits=4)),
        ("kv:exact", CodecSpec(travels="keys_values")),
        ("kv:int4", CodecSpec(travels="keys_values", bits=4)),
        ("kv:means:9.9", CodecSpec(travels="keys_values", means_rate=9.9)),
    ],
)
def test_every_form_is_read_and_written(text: str, spec: CodecSpec) -> None:
    """Each documented form parses to its fields and is its own canonical text."""
    assert CodecSpec.parse(text) == spec
    assert str(spec) == text


@settings(deadline=None)
@given(codecs)
def test_canonical_text_loses_nothing(spec: CodecSpec) -> None:
    """Any codec survives its text, whatever its rate."""
    assert CodecSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    [
        *("", "means", "means:", "means:L=", "means:-1", "means:nan", "means:٣", "means:" + "9" * 200, "means:4+exact"),
        *("int3", "int16", "exact+int8", "int8+means:4", "kv:", "kv:kv:int8", "EXACT"),
    ],
)
def test_other_texts_are_refused_with_the_forms(text: str) -> None:
    """What is no codec is refused by a message that lists the codecs."""
    with pytest.raises(PlanError, match=r"unknown codec .* accepted: exact, means:RATE, means:L=COUNT, int8, int4"):
        CodecSpec.parse(text)


@settings(deadline=None)
@given(st.text(max_size=90))
def test_arbitrary_text_raises_nothing_else(text: str) -> None:
    """Whatever is typed, the only error is PlanError."""
    with suppress(PlanError):
        CodecSpec.parse(text)


@pytest.mark.parametrize("text", ["means:0.5", "means:0", "means:1e999", "means:L=0"])
def test_impossible_numbers_are_refused(text: str) -> None:
    """A mean stands for at least one token, and a partition sends at least one mean."""
    with pytest.raises(PlanError, match="at least"):
        CodecSpec.parse(text)


def test_rate_and_number_exclude_each_other() -> None:
    """A codec cannot say how many means it sends in two ways."""
    with pytest.raises(PlanError, match="not both"):
        CodecSpec(means_rate=2.0, num_means=3)


@pytest.mark.parametrize(
    ("text", "num_tokens", "num_rows"),
    [
        *(("exact", 98, 98), ("int4", 98, 98), ("means:9.9", 98, 10), ("means:9.9", 99, 10), ("means:L=10", 98, 10)),
        *(("means:98", 98, 1), ("means:60", 98, 2), ("means:1", 98, 98), ("means:L=5", 0, 0), ("means:9", 0, 0)),
    ],
)
def test_rows_that_travel(text: str, num_tokens: int, num_rows: int) -> None:
    """round(N_p / R) rows, at least one; L rows; or all of them; none of an empty partition."""
    assert CodecSpec.parse(text).num_rows(num_tokens) == num_rows


@pytest.mark.parametrize("text", ["means:99", "means:L=99", "kv:means:98.5+int8"])
def test_means_beyond_the_partition_are_refused(text: str) -> None:
    """A mean of more tokens than there are, or more means than tokens, is an error that names the partition."""
    with pytest.raises(PlanError, match="partition of 98"):
        CodecSpec.parse(text).num_rows(98)


@settings(deadline=None)
@given(codecs, st.integers(1, 5000))
def test_means_never_lengthen(spec: CodecSpec, num_tokens: int) -> None:
    """Between one row and all of them travel, wherever the codec fits the partition."""
    try:
        assert 1 <= spec.num_rows(num_tokens) <= num_tokens
    except PlanError:
        assert (spec.means_rate or spec.num_means or 0) > num_tokens


def test_exact_means_every_bit_of_every_row() -> None:
    """Only codecs that drop neither rows nor bits count as exact, whatever it is that travels."""
    assert EXACT.is_exact
    assert CodecSpec.parse("kv:exact").is_exact
    assert not CodecSpec.parse("means:1").is_exact
    assert not CodecSpec.parse("int8").is_exact
