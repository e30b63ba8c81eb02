"""Codecs: what is decoded is what was encoded, but for a bounded loss; and the bytes are those that were counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeprism.codecs.codec import make_codec
from edgeprism.codecs.means import SegmentMeans
from edgeprism.codecs.quantise import Quantised
from edgeprism.codecs.segments import segment_bounds
from edgeprism.codecs.size import payload_bytes
from edgeprism.errors import PlanError
from edgeprism.specs.codec import CodecSpec
from tests.codecs.calibrated import codec_of

SPECS = ["exact", "int8", "int4", "means:3", "means:L=2", "means:2+int8", "means:L=3+int4"]
SPECS += ["rot+int8", "rot+int4", "rot+int3", "rot+int2", "rot+int1", "pq:3", "means:2+pq:4"]
SPECS += [f"kv:{spec}" for spec in SPECS]
SPECS += ["delta+int4", "delta+rot+int3", "means:2+delta+rot+int2", "delta+pq:4"]


def rows_of(*shape: int, seed: int = 0) -> Tensor:
    """Random rows whose sizes differ widely from row to row."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(*shape, generator=generator)
    return rows * torch.rand(*shape[:-1], 1, generator=generator).mul(8).exp()


@pytest.mark.parametrize("width", [2, 8, 14, 18, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("text", SPECS)
def test_what_travels_is_what_was_counted(text: str, is_padded: bool, dtype: torch.dtype, width: int) -> None:
    """`layout` is the dtype and shape of what `encode` gives, and its bytes are those of `payload_bytes`."""
    spec, batch, num_tokens = CodecSpec.parse(text), 3, 7
    mask = torch.arange(num_tokens) < torch.tensor([[7], [0], [4]]) if is_padded else None
    codec = codec_of(text, num_tokens, width, mask, dtype)
    parts = codec.encode(rows_of(batch, num_tokens, width).to(dtype), 0)
    assert codec.layout(batch) == tuple((part.dtype, tuple(part.shape)) for part in parts)
    assert all(part.is_contiguous() for part in parts)
    counted = payload_bytes(
        spec, num_tokens=num_tokens, width=width, batch=batch, element_bytes=torch.finfo(dtype).bits // 8
    )
    assert sum(part.numel() * part.element_size() for part in parts) == counted


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("text", SPECS)
def test_decoded_rows_and_counts(text: str, is_padded: bool) -> None:
    """Decoded rows have the dtype of the model; the counts of each sample add up to its real tokens."""
    spec, lengths = CodecSpec.parse(text), torch.tensor([[7], [0], [4]])
    mask = torch.arange(7) < lengths if is_padded else None
    codec = codec_of(text, 7, 10, mask, torch.bfloat16)
    decoded, counts = codec.decode(codec.encode(rows_of(3, 7, 10).bfloat16(), 0), 0)
    assert decoded.dtype == torch.bfloat16 and decoded.shape == (3, spec.num_rows(7), 10)
    if is_padded:
        assert counts is not None and counts.sum(-1).tolist() == [7, 0, 4]
    elif spec.has_means:
        assert counts is not None and counts.shape[0] == 1 and int(counts.sum()) == 7
    else:
        assert counts is None


def test_exact_is_exact() -> None:
    """Every bit arrives."""
    rows = rows_of(2, 5, 6)
    for text in ("exact", "kv:exact", "means:1", "means:L=5"):
        codec = make_codec(CodecSpec.parse(text), num_tokens=5, mask=None, width=6, dtype=torch.float32)
        assert torch.equal(codec.decode(codec.encode(rows, 0), 0)[0], rows)


@pytest.mark.parametrize("bits", [8, 4])
@given(num_groups=st.integers(1, 2), group_width=st.integers(1, 33), exponent=st.integers(-30, 30), seed=st.integers(0))
@settings(max_examples=60)
def test_quantised_elements_are_off_by_half_a_scale(
    bits: int, num_groups: int, group_width: int, exponent: int, seed: int
) -> None:
    """The scale of a group is its largest magnitude over 127 (or 7), and no element is off by more than half of it."""
    width = num_groups * group_width
    rows = rows_of(2, 3, width, seed=seed % 2**31) * 2.0**exponent
    pack = Quantised(bits=bits, num_groups=num_groups, width=width, dtype=torch.float32)
    parts = pack.pack(rows, 0)
    groups, back = (value.reshape(2, 3, num_groups, group_width) for value in (rows, pack.unpack(parts, 0)))
    scale = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert torch.allclose(parts[1], scale[..., 0], rtol=1e-6, atol=0)
    assert bool(((groups - back).abs() <= scale * 0.5001).all())
    largest = groups.abs().argmax(-1, keepdim=True)
    assert torch.allclose(back.gather(-1, largest), groups.gather(-1, largest), rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_zeros_stay_zeros(bits: int, dtype: torch.dtype) -> None:
    """A row of zeros, which has no scale of its own, decodes to zeros; so do rows too small for a normal scale."""
    rows = torch.zeros(1, 3, 5, dtype=dtype)
    rows[0, 1] = 1
    pack = Quantised(bits=bits, num_groups=1, width=5, dtype=dtype)
    back = pack.unpack(pack.pack(rows, 0), 0)
    assert torch.equal(back, rows)
    tiny = torch.full((1, 1, 5), 1e-40)
    assert torch.isfinite(pack.unpack(pack.pack(tiny, 0), 0)).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_every_code_survives(bits: int) -> None:
    """All integers from -127 to 127 (or -7 to 7) come back as they are, at even and odd widths."""
    top = 2 ** (bits - 1) - 1
    codes = torch.arange(-top, top + 1).float()
    for values in (codes, torch.cat([codes, codes[-1:]])):
        pack = Quantised(bits=bits, num_groups=1, width=len(values), dtype=torch.float32)
        assert torch.equal(pack.unpack(pack.pack(values[None, None], 0), 0)[0, 0], values)


def test_keys_and_values_have_a_scale_each() -> None:
    """Small values beside large keys keep their precision."""
    keys, values = torch.full((1, 1, 8), 1000.0), torch.linspace(-1, 1, 8)[None, None]
    codec = make_codec(CodecSpec.parse("kv:int8"), num_tokens=1, mask=None, width=16, dtype=torch.float32)
    decoded, _ = codec.decode(codec.encode(torch.cat([keys, values], dim=-1), 0), 0)
    assert (decoded[..., 8:] - values).abs().max() <= 0.51 / 127


@given(num_tokens=st.integers(1, 300), data=st.data())
def test_segments_cover_a_partition_evenly(num_tokens: int, data: st.DataObject) -> None:
    """Segments follow each other without gaps, none is empty, and their lengths differ by at most one."""
    num_segments = data.draw(st.integers(1, num_tokens))
    bounds = segment_bounds(num_tokens, num_segments)
    assert len(bounds) == num_segments
    assert [stop for _, stop in bounds[:-1]] == [start for start, _ in bounds[1:]]
    assert (bounds[0][0], bounds[-1][1]) == (0, num_tokens)
    lengths = [stop - start for start, stop in bounds]
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("num_tokens", "num_segments"), [(3, 4), (3, 0), (0, 1), (3, -1)])
def test_impossible_segments_are_refused(num_tokens: int, num_segments: int) -> None:
    """There are at least one and at most as many segments as tokens."""
    with pytest.raises(PlanError, match="cannot be cut into"):
        segment_bounds(num_tokens, num_segments)


@given(num_tokens=st.integers(1, 12), seed=st.integers(0, 2**31), data=st.data())
def test_means_equal_a_plain_loop(num_tokens: int, seed: int, data: st.DataObject) -> None:
    """Each mean is over the real tokens of its segment; a segment without one is zeros with count 0. What stands in
    padded rows, NaN and infinity included, does not matter."""
    num_segments = data.draw(st.integers(1, num_tokens))
    batch = data.draw(st.integers(1, 3))
    bits = st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens)
    mask = torch.tensor(data.draw(st.lists(bits, min_size=batch, max_size=batch)))
    rows = torch.randn(batch, num_tokens, 4, generator=torch.Generator().manual_seed(seed))
    garbage = data.draw(st.sampled_from([float("nan"), float("inf"), -1e38, 7.0]))
    means = SegmentMeans(num_tokens, num_segments, mask)
    reduced = means.reduce(rows.masked_fill(~mask[..., None], garbage))
    for sample in range(batch):
        for index, (start, stop) in enumerate(segment_bounds(num_tokens, num_segments)):
            real = [rows[sample, token] for token in range(start, stop) if mask[sample, token]]
            wanted = sum(real, torch.zeros(4)) / max(1, len(real))
            assert int(means.counts[sample, index]) == len(real)
            assert torch.allclose(reduced[sample, index], wanted, atol=1e-5)


def test_means_in_16_bits_are_as_good_as_rounding() -> None:
    """The mean of three rows in bfloat16 is off by no more than two roundings."""
    rows = rows_of(1, 9, 64).bfloat16()
    reduced = SegmentMeans(9, 3, None).reduce(rows)
    wanted = rows.double().unflatten(1, (3, 3)).mean(2)
    bound = rows.double().unflatten(1, (3, 3)).abs().mean(2) * 2**-7
    assert bool(((reduced.double() - wanted).abs() <= bound).all())


@pytest.mark.parametrize("is_padded", [False, True])
def test_positions_are_means_of_positions(is_padded: bool) -> None:
    """A row that stands for several tokens stands at their mean position, padding left out."""
    mask = torch.tensor([[True] * 6, [False, True, True, True, False, False]]) if is_padded else None
    codec = make_codec(CodecSpec.parse("means:L=2"), num_tokens=6, mask=mask, width=4, dtype=torch.float32)
    positions = codec.positions(10)
    assert torch.allclose(positions[0], torch.tensor([11.0, 14.0]))
    if is_padded:
        assert torch.allclose(positions[1], torch.tensor([11.5, 13.0]))
    plain = make_codec(CodecSpec.parse("int8"), num_tokens=3, mask=None, width=4, dtype=torch.float32)
    assert plain.positions(5).tolist() == [[5.0, 6.0, 7.0]]


def test_positions_need_not_be_indices() -> None:
    """Given positions are averaged in the same way, for each sample, or for all where there is one row of them."""
    given = torch.tensor([[4, 0, 2, 9, 1], [0, 0, 0, 1, 2]])
    mask = torch.tensor([[True, True, False, True, True], [False, False, False, True, True]])
    for batch in (2, 1):
        codec = make_codec(CodecSpec.parse("means:L=2"), num_tokens=5, mask=mask, width=4, dtype=torch.float32)
        expected = [[2.0, 5.0], [0.0, 1.5]] if batch == 2 else [[2.0, 5.0], [0.0, 5.0]]
        assert torch.allclose(codec.mean_positions(given[:batch]), torch.tensor(expected))
    codec = make_codec(CodecSpec.parse("means:L=2"), num_tokens=5, mask=None, width=4, dtype=torch.float32)
    assert torch.allclose(codec.mean_positions(given), torch.tensor([[2.0, 4.0], [0.0, 1.0]]))
    codec = make_codec(CodecSpec.parse("int8"), num_tokens=5, mask=mask, width=4, dtype=torch.float32)
    assert codec.mean_positions(given).tolist() == given.tolist()


@pytest.mark.parametrize("text", ["means:6", "means:L=6", "kv:means:5.5+int8", "means:L=6+int4"])
def test_more_than_a_partition_has_is_refused(text: str) -> None:
    """A rate above the partition's tokens, or more means than tokens, is refused before anything is encoded."""
    with pytest.raises(PlanError, match="partition"):
        make_codec(CodecSpec.parse(text), num_tokens=5, mask=None, width=4, dtype=torch.float32)
