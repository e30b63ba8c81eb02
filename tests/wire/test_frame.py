"""The frame format: what is encoded comes back, and nothing else is accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeprism.errors import FrameError
from edgeprism.wire.frame import PROTOCOL, Buffer, Frame, Kind, Limits, decode, dump_meta, encode

U32 = st.integers(0, 2**32 - 1)
ARRAYS = st.sampled_from(["<f4", "<f2", "|i1", "|u1", "<i2", "<i4", "<i8", "|b1", "<f8"]).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)
METAS = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.none()), max_size=3)


def frame_of(*arrays: np.ndarray, kind: Kind = Kind.RESULT, meta: bytes = b"") -> Frame:
    """A frame that carries these arrays."""
    return Frame(kind=kind, epoch=1, request=2, block=3, sender=4, meta=meta, arrays=tuple(map(Buffer.of, arrays)))


@given(st.sampled_from(Kind), U32, U32, st.integers(-1, 2**31 - 1), st.integers(0, 65535), METAS, st.lists(ARRAYS))
def test_round_trip(kind, epoch, request, block, sender, meta, arrays) -> None:
    """Every field and every bit of every array survives."""
    raw = b"" if kind is Kind.DATA else dump_meta(meta)
    buffers = tuple(map(Buffer.of, arrays[:32]))
    sent = Frame(kind=kind, epoch=epoch, request=request, block=block, sender=sender, meta=raw, arrays=buffers)
    parts = [bytes(part) for part in encode(sent)]
    assert sent.num_bytes == sum(map(len, parts))
    got = decode(parts)
    for name in ("kind", "epoch", "request", "block", "sender", "meta"):
        assert getattr(got, name) == getattr(sent, name)
    assert got.info == ({} if kind is Kind.DATA else meta)
    for one, other in zip(got.arrays, buffers, strict=True):
        assert (one.dtype, one.data.shape) == (other.dtype, other.data.shape)
        assert one.data.tobytes() == other.data.tobytes()


def test_bfloat16_keeps_its_name() -> None:
    """bfloat16 travels as uint16 bits under its own name."""
    sent = Frame(kind=Kind.DATA, epoch=0, sender=0, arrays=(Buffer("bfloat16", np.arange(6, dtype=np.uint16)),))
    assert decode(encode(sent)).arrays[0].dtype == "bfloat16"


def test_nothing_is_copied() -> None:
    """An encoded array is the array's own memory, and a decoded one the part's."""
    array = np.zeros(4, np.float32)
    parts = encode(frame_of(array))
    array[0] = 7
    assert decode(parts).arrays[0].data[0] == 7


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_arbitrary_bytes_are_refused_by_name(parts: list[bytes]) -> None:
    """Noise raises FrameError, never another error."""
    with pytest.raises(FrameError):
        decode(parts)


@given(st.lists(ARRAYS, max_size=3), METAS, st.data())
def test_damaged_frames_raise_nothing_else(arrays, meta, data) -> None:
    """A frame with bytes changed, cut or added is refused, or is another frame; no other error escapes."""
    parts = [bytearray(part) for part in encode(frame_of(*arrays, meta=dump_meta(meta)))]
    for _ in range(data.draw(st.integers(1, 4))):
        part = parts[data.draw(st.integers(0, len(parts) - 1))]
        match data.draw(st.sampled_from(["change", "cut", "add"])):
            case "change" if part:
                part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
            case "cut":
                del part[data.draw(st.integers(0, len(part))) :]
            case _:
                part += data.draw(st.binary(min_size=1, max_size=4))
    try:
        decode(parts)
    except FrameError:
        pass


def damaged(position: int, value: int) -> list[bytes]:
    """A good frame of one array with one byte of its first part changed."""
    head, *rest = (bytes(part) for part in encode(frame_of(np.zeros((2, 3), np.float32))))
    return [head[:position] + bytes([value]) + head[position + 1 :], *rest]


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ([], "shorter than the header"),
        (damaged(0, 0), "not with b'EPRM'"),
        (damaged(4, PROTOCOL + 1), f"it speaks protocol {PROTOCOL + 1}, this device {PROTOCOL}"),
        (damaged(5, 99), "unknown kind 99"),
        (damaged(6, 2), "2 arrays announced, 1 came"),
        (damaged(7, 1), "reserved"),
        (damaged(24, 5), "5 bytes of meta announced"),
        (damaged(28, 77), "unknown dtype code 77"),
        (damaged(29, 9), "9 dimensions"),
        (damaged(30, 3), r"shape \(3, 3\) needs 36 bytes, 24 came"),
        ([*damaged(0, ord("E")), b""], "1 arrays announced, 2 came"),
        (encode(frame_of(meta=b"[" * 100_000)), "meta is not JSON"),
        (encode(frame_of(meta=b'{"a":NaN}')), "NaN is not JSON"),
        (encode(frame_of(meta=b'{"a":-1e999}')), "larger than any float"),
        (encode(frame_of(meta='{"a":1}'.encode("utf-16"))), "meta is not JSON"),
        (encode(frame_of(meta=b"[]")), "must be a JSON object"),
        (encode(frame_of(meta=b"\xff\xff")), "meta is not JSON"),
        ([encode(frame_of(np.zeros(2, np.bool_)))[0], b"\x00\x02"], "bool"),
    ],
)
def test_a_refusal_says_what_was_wrong(parts, what: str) -> None:
    """Each broken field is named."""
    with pytest.raises(FrameError, match=what):
        decode(parts)


def test_an_empty_array_of_impossible_shape_is_refused() -> None:
    """Zero bytes, but other dimensions that overflow."""
    head = bytearray(encode(frame_of(np.zeros((0, 1, 1), np.float32)))[0])
    head[34:42] = b"\xff" * 8
    with pytest.raises(FrameError, match="cannot exist"):
        decode([head, b""])


def test_limits_hold_on_both_sides() -> None:
    """What is larger than the limits is neither sent nor taken."""
    small = Limits(max_array_bytes=16, max_meta_bytes=8, max_arrays=1)
    big_array, much_meta = frame_of(np.zeros(5, np.float32)), frame_of(meta=b'{"a":12345}')
    two = frame_of(np.zeros(1, np.int8), np.zeros(1, np.int8))
    for frame, what in ((big_array, "20 bytes"), (much_meta, "bytes of meta"), (two, "2 arrays")):
        with pytest.raises(FrameError, match=what):
            encode(frame, small)
        with pytest.raises(FrameError, match=what):
            decode(encode(frame), small)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Buffer.of(np.zeros(2, np.complex64)), "complex64"),
        (lambda: Buffer("bfloat16", np.zeros(2, np.float32)), "bfloat16 travels as a numpy array of uint16"),
        (lambda: Buffer.of(np.zeros((2, 2), np.float32).T[:1].T), "C-contiguous"),
        (lambda: Frame(kind=Kind.DATA, epoch=-1, sender=0), "epoch -1"),
        (lambda: Frame(kind=Kind.DATA, epoch=0, sender=70000), "sender 70000"),
        (lambda: Frame(kind=Kind.DATA, epoch=0, sender=0, meta=b"{}"), "no meta"),
        (lambda: dump_meta({"a": float("nan")}), "not JSON"),
        (lambda: dump_meta({"a": object()}), "not JSON"),
    ],
)
def test_what_cannot_travel_is_refused_when_made(make, what: str) -> None:
    """A frame that exists is valid."""
    with pytest.raises(FrameError, match=what):
        make()
