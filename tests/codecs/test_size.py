"""Bytes of payloads, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprism.codecs.size import payload_bytes
from edgeprism.specs.codec import CodecSpec


@pytest.mark.parametrize(
    ("codec", "width", "num_bytes"),
    [
        ("exact", 768, 98 * 768 * 4),
        ("int8", 768, 98 * (768 + 4)),
        ("int4", 768, 98 * (384 + 4)),
        ("int4", 7, 98 * (4 + 4)),
        ("means:L=10", 768, 10 * 768 * 4),
        ("means:9.9", 768, 10 * 768 * 4),
        ("means:L=10+int8", 768, 10 * (768 + 4)),
        ("means:9.9+int4", 768, 10 * (384 + 4)),
        ("kv:exact", 1536, 98 * 1536 * 4),
        ("kv:int8", 1536, 98 * (1536 + 2 * 4)),
        ("kv:int4", 1536, 98 * (768 + 2 * 4)),
        ("kv:int4", 14, 98 * (2 * 4 + 2 * 4)),
        ("kv:means:L=10", 1536, 10 * 1536 * 4),
        ("rot+int4", 768, 98 * (384 + 4)),
        ("delta+rot+int4", 768, 98 * 384),
        ("delta+rot+int3", 768, 98 * 288),
        ("delta+int4", 768, 98 * (384 + 4)),
        ("rot+int2", 768, 98 * (192 + 4)),
        ("rot+int1", 7, 98 * (1 + 4)),
        ("pq:16", 768, 98 * 48),
        ("kv:pq:16", 1536, 98 * 96),
        ("means:9.9+delta+pq:5", 768, 10 * 154),
    ],
)
def test_bytes_of_98_tokens(codec: str, width: int, num_bytes: int) -> None:
    """Values, plus one float32 scale for a quantised row, two where keys and values travel."""
    spec = CodecSpec.parse(codec)
    assert payload_bytes(spec, num_tokens=98, width=width, batch=1, element_bytes=4) == num_bytes
    assert payload_bytes(spec, num_tokens=98, width=width, batch=8, element_bytes=4) == 8 * num_bytes


def test_half_precision_halves_only_what_is_not_quantised() -> None:
    """The dtype of the model matters to values that travel as they are."""
    for codec, num_bytes in (("exact", 98 * 768 * 2), ("int8", 98 * 772)):
        spec = CodecSpec.parse(codec)
        assert payload_bytes(spec, num_tokens=98, width=768, batch=1, element_bytes=2) == num_bytes


def test_no_tokens_no_bytes() -> None:
    """An empty partition sends nothing, whatever the codec."""
    assert payload_bytes(CodecSpec.parse("means:L=10"), num_tokens=0, width=768, batch=4, element_bytes=4) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@settings(deadline=None)
@given(
    codec=st.sampled_from(
        ["exact", "int8", "int4", "means:3", "means:L=2+int4", "kv:int4", "rot+int3", "kv:rot+int2", "kv:means:2.5"]
    ),
    num_tokens=st.integers(3, 40),
    half_width=st.integers(1, 20),
    batch=st.integers(1, 4),
)
def test_counts_what_the_codec_sends(dtype: str, codec: str, num_tokens: int, half_width: int, batch: int) -> None:
    """The arithmetic agrees with the shapes and dtypes of the tensors that travel."""
    torch = pytest.importorskip("torch")
    from edgeprism.codecs.codec import make_codec

    spec, width = CodecSpec.parse(codec), 2 * half_width
    made = make_codec(spec, num_tokens=num_tokens, mask=None, width=width, dtype=getattr(torch, dtype))
    parts = made.encode(torch.ones(batch, num_tokens, width, dtype=getattr(torch, dtype)), 0)
    element_bytes = {"float32": 4, "bfloat16": 2}[dtype]
    assert sum(part.numel() * part.element_size() for part in parts) == payload_bytes(
        spec, num_tokens=num_tokens, width=width, batch=batch, element_bytes=element_bytes
    )
