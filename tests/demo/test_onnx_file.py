"""The small ONNX reader, on a file written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demo.onnx_file import read_graph


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field of up to 127 bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


def tensor(dims: bytes, data_type: int = 1) -> bytes:
    """A TensorProto named w that holds 0, 1, 2, 3, 4, 5."""
    values = np.arange(6, dtype="<f4").tobytes()
    return dims + bytes([2 << 3, data_type]) + field(8, b"w") + field(9, values)


PACKED = field(1, bytes([2, 3]))
UNPACKED = bytes([1 << 3, 2, 1 << 3, 3])


@pytest.mark.parametrize("dims", [PACKED, UNPACKED], ids=["packed", "unpacked"])
def test_tensors_and_nodes_are_read(tmp_path: Path, dims: bytes) -> None:
    """Shapes may be written in two ways; node inputs keep their order; other fields are stepped over."""
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(3, b"/MatMul")
    graph = field(1, node) + field(5, tensor(dims))
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes([1 << 3, 0x88, 0x01]) + field(7, graph))
    read = read_graph(path)
    assert read.node_inputs == {"/MatMul": ["x", "w"]}
    np.testing.assert_array_equal(read.tensors["w"], [[0, 1, 2], [3, 4, 5]])


def test_other_data_types_are_refused(tmp_path: Path) -> None:
    """Bytes of another type are not taken for float32."""
    path = tmp_path / "model.onnx"
    path.write_bytes(field(7, field(5, tensor(PACKED, data_type=10))))
    with pytest.raises(ValueError, match="data type 10"):
        read_graph(path)
