"""Tensors to wire buffers and back, through host memory where they live on an accelerator.

On a CPU nothing is copied: the buffer is the tensor's own memory. On CUDA a tensor is copied into a pinned host buffer,
which is kept and used again: staging costs a fixed time a call rather than a time a byte, and allocating pinned memory
is the dearest part of it. The wait is for the copy's own event, never for the whole device.

Where EDGEPRISM_EMULATED_STAGING declares a cost (``specs.staging``), each call waits for it besides, on any device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from edgeprism.errors import PeerFault
from edgeprism.specs.staging import VARIABLE, StagingCost
from edgeprism.strategies.meter import Meter
from edgeprism.wire.frame import Buffer, Frame

Layout = tuple[torch.dtype, tuple[int, ...]]

_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
    torch.float64: "float64",
}


class Staging:
    """The way between one device and its host memory; one for each worker."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pinned: dict[int, Tensor] = {}  # by place in the message; each as large as the largest so far
        self._emulated = _declared()

    def to_wire(self, tensors: Sequence[Tensor], meter: Meter) -> tuple[Buffer, ...]:
        """Contiguous tensors as buffers. They are good until the next call: transports copy what they send."""
        self._emulate(sum(tensor.nbytes for tensor in tensors), meter)
        if self._stream is None:
            return tuple(_buffer(tensor) for tensor in tensors)
        start = time.perf_counter()
        with torch.cuda.stream(self._stream):
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            hosts = [
                self._pin(index, tensor) if tensor.is_cuda else tensor for index, tensor in enumerate(tensors)
            ]  # what is in host memory stays there
            for host, tensor in zip(hosts, tensors, strict=True):
                if tensor.is_cuda:
                    host.copy_(tensor, non_blocking=True)
                    tensor.record_stream(self._stream)
            copied = self._stream.record_event()
        copied.synchronize()
        meter.staging_s += time.perf_counter() - start
        return tuple(_buffer(host) for host in hosts)

    def from_wire(self, frame: Frame, meter: Meter, expected: Sequence[Layout] | None = None) -> tuple[Tensor, ...]:
        """The arrays of a frame as tensors on the device; PeerFault when they are not the ``expected`` ones."""
        hosts = tuple(_tensor(buffer) for buffer in frame.arrays)
        if expected is not None:
            _check(frame.sender, hosts, expected)
        self._emulate(sum(host.nbytes for host in hosts), meter)
        if self._stream is None:
            return hosts
        start = time.perf_counter()
        tensors = tuple(host.to(self._device) for host in hosts)
        meter.staging_s += time.perf_counter() - start
        return tensors

    def _emulate(self, num_bytes: int, meter: Meter) -> None:
        """Waits as long as was declared, in the place of a copy that this device does not make."""
        if self._emulated is None:
            return
        start = time.perf_counter()
        time.sleep(self._emulated.seconds(num_bytes))
        meter.staging_s += time.perf_counter() - start

    def _pin(self, index: int, tensor: Tensor) -> Tensor:
        if index not in self._pinned or self._pinned[index].numel() < tensor.nbytes:
            self._pinned[index] = torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=True)
        return self._pinned[index][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


@cache
def _declared() -> StagingCost | None:
    """The emulated cost, read once in a process."""
    text = os.environ.get(VARIABLE)
    return StagingCost.parse(text) if text else None


def _buffer(tensor: Tensor) -> Buffer:
    array = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return Buffer(_NAMES[tensor.dtype], np.ascontiguousarray(array))


def _tensor(buffer: Buffer) -> Tensor:
    tensor = torch.from_numpy(buffer.data)
    return tensor.view(torch.bfloat16) if buffer.dtype == "bfloat16" else tensor


def _check(sender: int, tensors: Sequence[Tensor], expected: Sequence[Layout]) -> None:
    got = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
    if got != tuple(expected):
        raise PeerFault(f"device {sender} sent {_words(got)} where {_words(expected)} was expected", (sender,))


def _words(layout: Sequence[Layout]) -> str:
    return " + ".join(f"{_NAMES.get(dtype, dtype)}{list(shape)}" for dtype, shape in layout) or "nothing"
