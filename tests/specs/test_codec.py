"""The text forms of codecs, and how many rows they send."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprism.errors import PlanError
from edgeprism.specs.codec import EXACT, CodecSpec

rates = st.floats(min_value=1, max_value=1e9)
packs = [{"bits": 32}, {"bits": 8}, {"bits": 4}, *({"bits": bits, "is_rotated": True} for bits in (8, 4, 3, 2, 1))]
packs += [{"bits": 4, "is_delta": True}, {"bits": 2, "is_rotated": True, "is_delta": True}]
packs += [{"group": 2}, {"group": 64, "is_delta": True}]
codecs = st.builds(
    lambda travels, means, pack: CodecSpec(
        travels="rows" if "is_delta" in pack else travels, means_rate=means[0], num_means=means[1], **pack
    ),
    st.sampled_from(["rows", "keys_values"]),
    st.one_of(st.just((None, None)), st.tuples(rates, st.none()), st.tuples(st.none(), st.integers(1, 10**6))),
    st.sampled_from(packs),
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
        ("rot+int3", CodecSpec(is_rotated=True, bits=3)),
        ("kv:rot+int2", CodecSpec(travels="keys_values", is_rotated=True, bits=2)),
        ("delta+rot+int1", CodecSpec(is_delta=True, is_rotated=True, bits=1)),
        ("pq:16", CodecSpec(group=16)),
        ("means:4+delta+pq:8", CodecSpec(means_rate=4.0, is_delta=True, group=8)),
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
        *(
            "int16",
            "rot",
            "delta",
            "delta+means:4+int8",
            "rot+pq:4",
            "rot+delta+int4",
            "pq:",
            "exact+int8",
            "int8+means:4",
            "kv:",
            "kv:kv:int8",
            "EXACT",
        ),
    ],
)
def test_other_texts_are_refused_with_the_forms(text: str) -> None:
    """What is no codec is refused by a message that lists the codecs."""
    with pytest.raises(
        PlanError, match=r"unknown codec .* accepted: exact, bfloat16, means:RATE, means:L=COUNT, int8, int4"
    ):
        CodecSpec.parse(text)


@settings(deadline=None)
@given(st.text(max_size=90))
def test_arbitrary_text_raises_nothing_else(text: str) -> None:
    """Whatever is typed, the only error is PlanError."""
    with suppress(PlanError):
        CodecSpec.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int3", "use rot\\+int3"),
        ("kv:int1", "use rot\\+int1"),
        ("pq:1", "2 to 64"),
        ("pq:65", "2 to 64"),
        ("kv:delta+rot+int4", "without kv:"),
    ],
)
def test_what_cannot_be_combined_is_refused(text: str, says: str) -> None:
    """With the form to use instead."""
    with pytest.raises(PlanError, match=says):
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
