"""Reads the weights and the node names of an ONNX file, with numpy alone.

An ONNX file is one protobuf message. The demo needs two of its lists, the initialisers and the nodes, from one file
whose sha256 is pinned; a small reader is less to install than `onnx` and what it brings. Field numbers are those of
onnx.proto3 in https://github.com/onnx/onnx; anything but float32 tensors stored as raw bytes is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_INPUT, NODE_NAME = 1, 3
TENSOR_DIMS, TENSOR_DATA_TYPE, TENSOR_NAME, TENSOR_RAW_DATA = 1, 2, 8, 9
FLOAT32 = 1

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxGraph:
    """What the demo reads of a graph: float32 tensors by name, and the input names of each named node."""

    tensors: dict[str, np.ndarray]
    node_inputs: dict[str, list[str]]


def read_graph(path: Path) -> OnnxGraph:
    """The float32 initialisers and the nodes of the graph in `path`."""
    model = memoryview(path.read_bytes())
    graph = next(value for field, value in _fields(model) if field == MODEL_GRAPH)
    tensors, node_inputs = {}, {}
    for field, value in _fields(graph):
        if field == GRAPH_INITIALIZER:
            name, tensor = _tensor(value)
            tensors[name] = tensor
        elif field == GRAPH_NODE:
            name, inputs = _node(value)
            node_inputs[name] = inputs
    return OnnxGraph(tensors=tensors, node_inputs=node_inputs)


def _tensor(message: memoryview) -> tuple[str, np.ndarray]:
    shape, data_type, name, raw = [], None, "", memoryview(b"")
    for field, value in _fields(message):
        if field == TENSOR_DIMS:
            shape.extend(_varints(value))
        elif field == TENSOR_DATA_TYPE:
            data_type = value
        elif field == TENSOR_NAME:
            name = bytes(value).decode()
        elif field == TENSOR_RAW_DATA:
            raw = value
    if data_type != FLOAT32:
        raise ValueError(f"initialiser {name!r} has ONNX data type {data_type}; only float32 (1) is read here")
    return name, np.frombuffer(raw, dtype="<f4").reshape(shape)


def _node(message: memoryview) -> tuple[str, list[str]]:
    name, inputs = "", []
    for field, value in _fields(message):
        if field == NODE_INPUT:
            inputs.append(bytes(value).decode())
        elif field == NODE_NAME:
            name = bytes(value).decode()
    return name, inputs


def _varints(value: int | memoryview) -> list[int]:
    """A repeated integer: one number a field, or (packed) many in one field. Writers may choose either."""
    if isinstance(value, int):
        return [value]
    numbers, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(number)
    return numbers


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of each field of a protobuf message: an int, or the bytes of all that is longer."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield field, value
            continue
        if wire_type == LENGTH_DELIMITED:
            num_bytes, position = _varint(message, position)
        else:
            num_bytes = {FIXED64: 8, FIXED32: 4}[wire_type]
        yield field, message[position : position + num_bytes]
        position += num_bytes


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The base-128 number at `position` and the position after it."""
    number, shift = 0, 0
    while True:
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, position
