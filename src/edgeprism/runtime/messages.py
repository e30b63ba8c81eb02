"""What coordinator and workers say to each other: the JSON part of control frames, checked on arrival.

LOAD     path or key of a model, dtype, accelerator
         -> LOADED (speed, versions, what its first block makes of seeded rows) or FAULT, with the order's number
REQUEST  a Job, with tensors                            -> RESULT (a DeviceTrace, tensors), TOKEN..., or FAULT
FAULT    message; blamed: the devices that failed the sender; cause: timeout, lost, input or nothing
EPOCH    the epoch, in the header: drop all older work. order: the number of the order to load. For a worker that was
         started by itself, an Introduction.
         -> READY (links: the devices that it is connected with; holds: the number of the order that it has loaded;
         or busy: it serves another coordinator)
FETCH    (worker) nothing, or file and offset, with the order's number -> CHUNK: names and sizes of files, or bytes
CLOSE    end
PING     what ``probe`` says: bytes and facts that are asked for -> PONG
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from edgeprism.errors import FrameError, InputError
from edgeprism.models.reads import Reads
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.plan import MAX_DEVICES
from edgeprism.strategies.greedy import GreedySettings
from edgeprism.wire.frame import Frame
from edgeprism.wire.keys import Peer

_Made = TypeVar("_Made")
Kind = Literal["sequence", "replica"]

MAX_TIMEOUT_S = 86400.0  # of a request


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """Which model a worker must hold. ``model`` is a directory, or the key of a model that threads share."""

    model: str
    dtype: str
    device: str
    """Where it computes; empty where the worker decides."""
    fingerprint: str = ""
    """Of the model in that directory; empty where the worker is sure to read the same files."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LoadOrder:
        """FrameError when a field is missing or of another type."""
        return _checked("LOAD", lambda: cls(**{field.name: _text(document[field.name]) for field in fields(cls)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a worker that was started by itself learns from the coordinator: its rank, and everybody's."""

    rank: int
    peers: tuple[Peer, ...]

    def __post_init__(self) -> None:
        if not 0 < self.rank < MAX_DEVICES or len(self.peers) > MAX_DEVICES:
            raise InputError(f"rank {self.rank} among {len(self.peers)}: a cluster has at most {MAX_DEVICES} devices")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"rank": self.rank, "peers": [peer.to_json() for peer in self.peers]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Introduction:
        """FrameError when a field is missing or of another type."""
        return _checked(
            "EPOCH",
            lambda: cls(rank=int(document["rank"]), peers=tuple(Peer.from_json(peer) for peer in document["peers"])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One device's part of a request. The frame's tensors are named by ``tensors``, in order.

    sequence: features of the device's own tokens, and everybody's ``mask`` if there is padding,
    ``all_positions`` if the family rotates by others than the indices.
    replica: the inputs of the device's own samples; ``options`` are inputs that are no tensors. Those in ``levels``
    travel as numbers of levels, whose tables come after all tensors.
    """

    kind: Kind
    tensors: tuple[str, ...]
    timeout_s: float
    devices: tuple[int, ...] = ()
    bounds: tuple[tuple[int, int], ...] = ()
    codec: CodecSpec = EXACT
    reads: Reads | None = None
    greedy: GreedySettings | None = None
    options: tuple[tuple[str, bool], ...] = ()
    levels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "tensors": list(self.tensors),
            "timeout_s": self.timeout_s,
            "devices": list(self.devices),
            "bounds": [list(bound) for bound in self.bounds],
            "codec": str(self.codec),
            "reads": None if self.reads is None else self.reads.to_json(),
            "greedy": None if self.greedy is None else self.greedy.to_json(),
            "options": dict(self.options),
            "levels": list(self.levels),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Job:
        """FrameError when a field is missing or of another type."""
        return _checked("REQUEST", lambda: cls._read(document))

    @classmethod
    def _read(cls, document: Mapping[str, Any]) -> Job:
        reads, greedy = document["reads"], document["greedy"]
        if document["kind"] not in ("sequence", "replica"):
            raise ValueError("unknown kind")
        if not 0 <= float(document["timeout_s"]) <= MAX_TIMEOUT_S:  # NaN would be waited for without a pause, for ever
            raise ValueError(f"timeout_s must lie between 0 and {MAX_TIMEOUT_S:g}")
        return cls(
            kind=document["kind"],
            tensors=tuple(_text(name) for name in document["tensors"]),
            timeout_s=float(document["timeout_s"]),
            devices=tuple(int(device) for device in document["devices"]),
            bounds=tuple((int(start), int(stop)) for start, stop in document["bounds"]),
            codec=CodecSpec.parse(document["codec"]),
            reads=None if reads is None else Reads.from_json(reads),
            greedy=None if greedy is None else GreedySettings.from_json(greedy),
            options=tuple((_text(name), bool(value)) for name, value in document["options"].items()),
            levels=tuple(_text(name) for name in document["levels"]),
        )


def linked_ranks(ready: Frame) -> frozenset[int]:
    """The devices that the sender of a READY frame is connected with; none when it does not say so properly."""
    links = ready.info.get("links")
    return frozenset(rank for rank in links if isinstance(rank, int)) if isinstance(links, list) else frozenset()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text was expected, not {type(value).__name__}")
    return value


def _checked(kind: str, read: Callable[[], _Made]) -> _Made:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError) as exc:
        raise FrameError(f"a {kind} message that cannot be used: {type(exc).__name__}: {exc}") from exc
