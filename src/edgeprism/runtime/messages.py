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
HANDOVER a Handover, with tensors: a micro-batch for the next stage of a pipeline, from the one before -> HANDOVER
         to the one after it, or RESULT from the last
CREDIT   idle_s, busy_s: the receiver of a HANDOVER has begun with it, so its sender may send one more; how long it had
         nothing to do before, and how long the one before took it
PING     what ``probe`` says: bytes and facts that are asked for -> PONG
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from edgeprism.errors import FrameError, InputError
from edgeprism.models.reads import Reads
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.plan import ACTIVATIONS, MAX_DEVICES, Stage, parse_stages
from edgeprism.strategies.greedy import GreedySettings
from edgeprism.wire.frame import Frame
from edgeprism.wire.keys import Peer

_Made = TypeVar("_Made")
Kind = Literal["sequence", "replica"]

MAX_PIECES = 10**6
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
    pieces: tuple[int, int] | None = None
    """The pieces [start, stop) that it must hold; None for the whole model."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LoadOrder:
        """FrameError when a field is missing or of another type."""
        return _checked("LOAD", lambda: cls._read(document))

    @classmethod
    def _read(cls, document: Mapping[str, Any]) -> LoadOrder:
        model, dtype, device = (_text(document[name]) for name in ("model", "dtype", "device"))
        start, stop = (0, 0) if document["pieces"] is None else map(int, document["pieces"])
        if not 0 <= start <= stop <= MAX_PIECES:
            raise ValueError(f"pieces {start} to {stop}")
        pieces = None if document["pieces"] is None else (start, stop)
        return cls(model=model, dtype=dtype, device=device, fingerprint=_text(document["fingerprint"]), pieces=pieces)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """One micro-batch on its way to the stage at ``index`` of ``stages``.

    The frame's tensors are named by ``tensors``, those that travel at a cut come behind them: inputs (with ``levels``
    and ``options`` as in `Job`) on the way to the first piece, else ``mask`` and ``positions`` where there are any.
    ``traces``: of the stages so far. ``codec``: what its rows are written in; each sender takes one of ``codecs``, the
    widest first, as its link allows. ``room``: of a text that is continued, the tokens that it may come to have (0: of
    anything else); stages keep its keys and values under the number of its micro-batch. It comes as ids, positions and,
    where there is padding, their mask; ``reads`` nothing where it is the next token of one that has come. ``ended``:
    texts of the same stream of which no more will come.
    """

    stages: tuple[Stage, ...]
    index: int
    codec: CodecSpec
    codecs: tuple[CodecSpec, ...]
    batch: int
    num_tokens: int
    timeout_s: float
    tensors: tuple[str, ...]
    levels: tuple[str, ...] = ()
    options: tuple[tuple[str, bool], ...] = ()
    reads: Reads | None = None
    room: int = 0
    ended: tuple[int, ...] = ()
    traces: tuple[dict[str, Any], ...] = ()

    @property
    def stage(self) -> Stage:
        """The one that it goes to."""
        return self.stages[self.index]

    @property
    def next_device(self) -> int:
        """Whom its stage hands on to: the coordinator after the last one."""
        return self.stages[self.index + 1].device if self.index + 1 < len(self.stages) else 0

    @property
    def begins_text(self) -> bool:
        """Whether it is a prompt, not the next token of one."""
        return self.room > 0 and self.reads is not None and not self.reads.every_row

    @property
    def is_last(self) -> bool:
        """Whether no stage comes after."""
        return self.index + 1 == len(self.stages)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "stages": ",".join(map(str, self.stages)),
            "index": self.index,
            "codec": str(self.codec),
            "codecs": list(map(str, self.codecs)),
            "batch": self.batch,
            "num_tokens": self.num_tokens,
            "timeout_s": self.timeout_s,
            "tensors": list(self.tensors),
            "levels": list(self.levels),
            "options": dict(self.options),
            "reads": None if self.reads is None else self.reads.to_json(),
            "room": self.room,
            "ended": list(self.ended),
            "traces": list(self.traces),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Handover:
        """FrameError when a field is missing or of another type."""
        return _checked("HANDOVER", lambda: cls._read(document))

    @classmethod
    def _read(cls, document: Mapping[str, Any]) -> Handover:
        stages, index, reads = parse_stages(_text(document["stages"])), int(document["index"]), document["reads"]
        if not 0 <= index < len(stages) <= MAX_DEVICES:
            raise ValueError(f"stage {index} of {len(stages)}")
        if not 0 <= float(document["timeout_s"]) <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s must lie between 0 and {MAX_TIMEOUT_S:g}")
        codecs = tuple(CodecSpec.parse(codec) for codec in document["codecs"])
        if not codecs or not {*codecs} <= {*ACTIVATIONS}:
            raise ValueError(f"between stages travel {', '.join(map(str, ACTIVATIONS))} rows")
        traces = document["traces"]
        if not isinstance(traces, list) or len(traces) > index or not all(isinstance(one, dict) for one in traces):
            raise ValueError("traces are those of earlier stages")
        return cls(
            stages=stages,
            index=index,
            codec=CodecSpec.parse(document["codec"]),
            codecs=codecs,
            batch=int(document["batch"]),
            num_tokens=int(document["num_tokens"]),
            timeout_s=float(document["timeout_s"]),
            tensors=tuple(_text(name) for name in document["tensors"]),
            levels=tuple(_text(name) for name in document["levels"]),
            options=tuple((_text(name), bool(value)) for name, value in document["options"].items()),
            reads=None if reads is None else Reads.from_json(reads),
            room=int(document["room"]),
            ended=tuple(int(number) for number in document["ended"]),
            traces=tuple(traces),
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
