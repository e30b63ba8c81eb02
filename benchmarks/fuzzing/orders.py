"""What a coordinator and a peer say to a worker with a tiny model: right orders, made by the classes of runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.fuzzing.corpus import Message, messages
from edgeprism.models.load import no_progress_bar
from edgeprism.models.manifest import fingerprint
from edgeprism.models.registry import adapt
from edgeprism.runtime.messages import Introduction, Job, LoadOrder
from edgeprism.specs.codec import CodecSpec
from edgeprism.strategies.greedy import GreedySettings
from edgeprism.wire.frame import Buffer, Frame, Kind

Said = tuple[Kind, Mapping[str, Any], Sequence[Buffer]]

WAIT_S = 0.02  # for rows that never come: a sequence request keeps the worker from the messages behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model, inputs for it, and transformers' own logits for them."""

    directory: Path
    architecture: str
    inputs: dict[str, Tensor]
    wanted: Tensor
    model: PreTrainedModel
    dead_addresses: ClassVar[set[str]] = {
        "tcp://127.0.0.1:1", "tcp://127.0.0.1:99999", "tcp://127.0.0.1", "tcp://", "tcp://127.0.0.1:x",
    }  # fmt: skip
    """Where a mutated introduction may send the worker: nobody is there, or it is no address."""

    @classmethod
    def save(cls, model: PreTrainedModel, inputs: dict[str, Tensor], folder: Path) -> Loaded:
        """Writes it where the worker finds it."""
        architecture = type(model).__name__
        with no_progress_bar():
            model.save_pretrained(folder / architecture)
        with torch.no_grad():
            wanted = model(**inputs).logits
        directory = folder / architecture
        return cls(directory=directory, architecture=architecture, inputs=inputs, wanted=wanted, model=model)

    def load_order(self) -> Said:
        """LOAD."""
        order = LoadOrder(
            model=str(self.directory), dtype="float32", device="cpu", fingerprint=fingerprint(self.directory)
        )
        return Kind.LOAD, order.to_json(), ()

    def request(self) -> Said:
        """REQUEST for the whole batch."""
        job = Job(
            kind="replica", tensors=tuple(self.inputs), timeout_s=5.0, devices=(1,), bounds=((0, len(self.wanted)),)
        )
        return Kind.REQUEST, job.to_json(), [_buffer(tensor) for tensor in self.inputs.values()]

    def sequence_requests(self) -> list[Said]:
        """REQUESTs for a part of the tokens, with each codec; and to generate where the model can."""
        tokens = adapt(self.model).tokens(dict(self.inputs))
        half = tokens.num_tokens // 2
        job = Job(
            kind="sequence", tensors=tuple(tokens.features), timeout_s=WAIT_S, devices=(1, 2),
            bounds=((0, half), (half, tokens.num_tokens)), reads=tokens.reads,
        )  # fmt: skip
        ways = [(job, 0, half)]
        ways += [(replace(job, codec=CodecSpec.parse(codec)), 0, half) for codec in ("int8", "kv:int4", "means:2+int8")]
        ways += [(replace(job, devices=(2, 1)), half, tokens.num_tokens)]
        alone = replace(job, devices=(1,), bounds=((0, tokens.num_tokens),))
        ways += [(alone, 0, tokens.num_tokens)]
        if self.architecture.startswith("GPT2"):
            settings = GreedySettings(max_new_tokens=3, stop_ids=(2,), padding_id=3)
            ways += [(replace(alone, greedy=settings), 0, tokens.num_tokens)]
        return [
            (Kind.REQUEST, way.to_json(), [_buffer(part) for part in tokens.features_of(start, stop).values()])
            for way, start, stop in ways
        ]


def of_coordinator(model: Loaded, introduction: Introduction, order_number: int) -> list[Message]:
    """Every kind of frame, orders above all."""
    rows = _rows(model)
    chunk = Buffer("uint8", np.arange(1000, dtype=np.uint8))
    orders: list[Said] = [
        (Kind.EPOCH, {"introduction": introduction.to_json()}, ()),
        (Kind.EPOCH, {}, ()),
        model.load_order(),
        model.request(),
        model.request(),
        *model.sequence_requests(),
        (Kind.CHUNK, {"files": {"config.json": 700, "model.safetensors": 5000}}, ()),
        (Kind.CHUNK, {"file": "model.safetensors", "offset": 0}, (chunk,)),
        (Kind.CLOSE, {}, ()),
        (Kind.DATA, {}, (rows,)),
    ]
    return messages(0, [*orders, *_answers()])


def of_peer(model: Loaded) -> list[Message]:
    """Rows above all; and what a peer has no business to say."""
    rows = _rows(model)
    return messages(
        2, [(Kind.DATA, {}, (rows,))] * 8 + [model.load_order(), model.request(), (Kind.CLOSE, {}, ()), *_answers()]
    )


def addresses_in(frame: Frame) -> set[str]:
    """Addresses that a frame would make a worker dial."""
    introduction = frame.info.get("introduction")
    peers = introduction.get("peers") if isinstance(introduction, dict) else None
    found = [peer.get("address") for peer in peers if isinstance(peer, dict)] if isinstance(peers, list) else []
    return {address for address in found if isinstance(address, str) and address.startswith("tcp://")}


def _answers() -> list[Said]:
    """What only workers say."""
    return [
        (Kind.READY, {"links": [0, 1], "holds": 7}, ()),
        (Kind.FAULT, {"message": "no", "blamed": [2], "cause": "lost"}, ()),
        (Kind.RESULT, {"names": ["logits"]}, (Buffer("float32", np.zeros((2, 3), np.float32)),)),
        (Kind.TOKEN, {}, (Buffer("int64", np.zeros(2, np.int64)),)),
        (Kind.LOADED, {"macs_per_s": 1e9}, ()),
        (Kind.FETCH, {"file": "model.safetensors", "offset": 0}, ()),
    ]


def _rows(model: Loaded) -> Buffer:
    batch = len(model.wanted)
    return Buffer("float32", np.ones((batch, 6, model.model.config.hidden_size), np.float32))


def _buffer(tensor: Tensor) -> Buffer:
    return Buffer.of(tensor.detach().contiguous().numpy())
