"""A plan: which strategy runs, what share of the work each device takes, and what travels between them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprism.errors import PlanError
from edgeprism.specs.codec import EXACT, CodecSpec

STRATEGIES = ("local", "replica", "sequence", "pipeline")
"""Every strategy that can run, from the fewest devices' point of view to the most."""

SCHEMA_VERSION = 1
SHARES_TOLERANCE = 1e-6
MAX_DEVICES = 16


PIECES_A_BLOCK = 4
"""Where a pipeline may cut a block: attention; its output layer; the wide half of the MLP; the narrow half. These are
the cut points of EdgePipe (arXiv 2110.14895)."""


ACTIVATIONS = (EXACT, CodecSpec(bits=16), CodecSpec(bits=8), CodecSpec(bits=4))
"""What may travel between the stages of a pipeline, the widest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The pieces [start, stop) of a model on one device. Without pieces it is a relay: it hands on what comes."""

    device: int
    start: int
    stop: int

    def __str__(self) -> str:
        """As a command line takes it: device, first and last piece."""
        return f"{self.device}:{self.start}-{self.stop}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one request is carried out.

    ``shares`` are fractions of the work, by device, the coordinator (device 0) first; they sum to 1 within 1e-6, and a
    device with share 0 is left out. ``codec`` is what travels between devices under `sequence` and `pipeline`.
    `pipeline`: ``stages`` in their order, every piece of the model in one of them; a batch goes through them in
    micro-batches of at most ``micro_batch`` samples. What travels follows the bandwidth, from ``codec`` to
    ``narrowest`` where that is given. Raises PlanError on a bad value.
    """

    strategy: str
    shares: tuple[float, ...]
    codec: CodecSpec = EXACT
    stages: tuple[Stage, ...] = ()
    micro_batch: int = 1
    narrowest: CodecSpec | None = None

    def __post_init__(self) -> None:
        _check_strategy(self.strategy)
        _check_shares(self.shares)
        if self.strategy == "pipeline":
            _check_stages(self.stages, len(self.shares))
            for codec in (self.codec, self.narrowest or self.codec):
                if codec not in ACTIVATIONS:
                    raise PlanError(f"between stages travel {', '.join(map(str, ACTIVATIONS))} rows, not {codec}")
            if self.narrowest is not None and not self.codecs:
                raise PlanError(f"{self.narrowest} is no narrower than {self.codec}; name the wider one first")
            if not 1 <= self.micro_batch < 2**31:
                raise PlanError(f"a micro-batch has at least one sample, not {self.micro_batch}")
        elif self.stages:
            raise PlanError(f"strategy {self.strategy} has no stages; only pipeline has")
        if self.strategy == "local" and len(self.shares) != 1:
            raise PlanError(f"strategy local runs on one device, but {len(self.shares)} shares were given")

    @property
    def codecs(self) -> tuple[CodecSpec, ...]:
        """What may travel between stages, the widest first."""
        if self.narrowest is None:
            return (self.codec,)
        return ACTIVATIONS[ACTIVATIONS.index(self.codec) : ACTIVATIONS.index(self.narrowest) + 1]

    @classmethod
    def local(cls) -> Plan:
        """Everything on the coordinator."""
        return cls(strategy="local", shares=(1.0,))

    @classmethod
    def pipeline(
        cls,
        stages: Sequence[Stage] | str,
        num_devices: int,
        codec: CodecSpec | str = EXACT,
        *,
        micro_batch: int = 1,
        narrowest: CodecSpec | None = None,
    ) -> Plan:
        """These stages; a device's share is its part of all pieces. Both as a command line has them, too: stages as
        ``0:0-24,1:24-48`` (device, first piece, piece after the last), a codec as ``int8`` or ``exact..int4``."""
        if isinstance(stages, str):
            stages = parse_stages(stages)
        if isinstance(codec, str):
            codec, last = parse_codecs(codec)
            narrowest = last or narrowest
        pieces = [0] * num_devices
        for stage in stages:
            if not 0 <= stage.device < num_devices:
                raise PlanError(f"stage {stage} is on device {stage.device}, and there are {num_devices}")
            pieces[stage.device] += max(0, stage.stop - stage.start)
        total = sum(pieces)
        if not total:
            raise PlanError("the stages hold no piece of the model")
        shares = tuple(count / total for count in pieces)
        return cls(
            strategy="pipeline", shares=shares, codec=codec, stages=tuple(stages), micro_batch=micro_batch,
            narrowest=narrowest,
        )  # fmt: skip

    @classmethod
    def among(
        cls, strategy: str, devices: Sequence[int], num_devices: int, codec: CodecSpec = EXACT
    ) -> Plan:  # fmt: skip
        """Equal shares for some of ``num_devices`` devices."""
        shares = tuple(1 / len(devices) if device in devices else 0.0 for device in range(num_devices))
        return cls(strategy=strategy, shares=shares, codec=codec)

    @classmethod
    def even(cls, strategy: str, num_devices: int, codec: CodecSpec = EXACT) -> Plan:
        """The same share for every device."""
        check_num_devices(num_devices)
        return cls(strategy=strategy, shares=(1 / num_devices,) * num_devices, codec=codec)

    @property
    def num_devices(self) -> int:
        """Devices that have a place in the plan, those with share 0 included."""
        return len(self.shares)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values that ``from_json`` reads back."""
        return {
            "schema_version": SCHEMA_VERSION,
            "strategy": self.strategy,
            "shares": list(self.shares),
            "codec": str(self.codec),
            **({"stages": list(map(str, self.stages)), "micro_batch": self.micro_batch} if self.stages else {}),
            **({} if self.narrowest is None else {"narrowest": str(self.narrowest)}),
        }

    @classmethod
    def from_json(cls, document: object) -> Plan:
        """Read what ``to_json`` wrote; PlanError names the field that is wrong."""
        if not isinstance(document, Mapping):
            raise PlanError(f"a plan is a JSON object, not {type(document).__name__}")
        version = document.get("schema_version")
        if version != SCHEMA_VERSION:
            raise PlanError(f"plan with schema_version {version!r}; this edgeprism reads version {SCHEMA_VERSION}")
        unknown = sorted(set(document) - _FIELDS)
        if unknown:
            raise PlanError(f"plan has unknown fields: {', '.join(map(str, unknown))}")
        strategy, shares, codec = document.get("strategy"), document.get("shares"), document.get("codec", "exact")
        if not isinstance(strategy, str):
            raise PlanError(f"plan field strategy must be text, not {strategy!r}")
        if not isinstance(shares, list | tuple) or not all(map(_is_number, shares)):
            raise PlanError(f"plan field shares must be a list of numbers, not {shares!r}")
        if not isinstance(codec, str):
            raise PlanError(f"plan field codec must be text, not {codec!r}")
        stages, micro_batch = document.get("stages", []), document.get("micro_batch", 1)
        if not isinstance(stages, list | tuple) or not all(isinstance(stage, str) for stage in stages):
            raise PlanError(f"plan field stages must be a list such as ['0:0-24', '1:24-48'], not {stages!r}")
        narrowest = document.get("narrowest")
        if narrowest is not None and not isinstance(narrowest, str):
            raise PlanError(f"plan field narrowest must be text, not {narrowest!r}")
        if not isinstance(micro_batch, int) or isinstance(micro_batch, bool):
            raise PlanError(f"plan field micro_batch must be a count, not {micro_batch!r}")
        return cls(
            strategy=strategy, shares=tuple(map(float, shares)), codec=CodecSpec.parse(codec),
            stages=parse_stages(",".join(stages)) if stages else (), micro_batch=micro_batch,
            narrowest=None if narrowest is None else CodecSpec.parse(narrowest),
        )  # fmt: skip


def check_num_devices(num_devices: int) -> None:
    """PlanError unless a cluster, or a plan, may have that many devices."""
    if not 1 <= num_devices <= MAX_DEVICES:
        raise PlanError(f"a cluster has 1 to {MAX_DEVICES} devices, not {num_devices}")


def parse_shares(text: str) -> tuple[float, ...]:
    """Read shares as a command line gives them: ``0.6,0.4``."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise PlanError(f"shares {text!r} are not numbers with commas between them, as in 0.6,0.4") from None


def parse_codecs(text: str) -> tuple[CodecSpec, CodecSpec | None]:
    """Read what may travel between stages: ``int8``, or the widest and the narrowest of a range, ``exact..int4``."""
    widest, dots, narrowest = text.partition("..")
    known = {str(codec): codec for codec in ACTIVATIONS}
    for name in (widest, narrowest) if dots else (widest,):
        if name.strip() not in known:
            accepted = f"{', '.join(known)}, or a range of them as exact..int4"
            raise PlanError(f"unknown codec {text[:60]!r} between stages; accepted: {accepted}")
    return known[widest.strip()], known[narrowest.strip()] if dots else None


_FIELDS = {"schema_version", "strategy", "shares", "codec", "stages", "micro_batch", "narrowest"}
_STAGE = re.compile(r"(\d{1,4}):(\d{1,6})-(\d{1,6})", re.ASCII)


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read stages as a command line gives them, device, first and last piece: ``0:0-24,1:24-48``."""
    found = [_STAGE.fullmatch(part.strip()) for part in text.split(",")]
    stages = [Stage(device=int(one[1]), start=int(one[2]), stop=int(one[3])) for one in found if one is not None]
    if len(stages) < len(found):
        raise PlanError(f"stages {text!r} are not devices with pieces, as in 0:0-24,1:24-48")
    return tuple(stages)


def _check_stages(stages: tuple[Stage, ...], num_devices: int) -> None:
    """PlanError unless every piece up to the last is in one stage, in order, on devices that differ."""
    if not stages:
        raise PlanError("a pipeline needs stages, such as 0:0-24,1:24-48")
    at = 0
    for stage in stages:
        if stage.start != at or stage.stop < stage.start:
            what = "skips pieces" if stage.start > at else "repeats pieces, or ends before it begins"
            raise PlanError(f"stage {stage} {what}: the next one is {at}")
        if not 0 <= stage.device < num_devices:
            raise PlanError(f"stage {stage} is on device {stage.device}, and there are {num_devices}")
        at = stage.stop
    devices = [stage.device for stage in stages]
    if len(set(devices)) < len(devices):
        raise PlanError("a device has two stages; it computes one at a time, so give it one")
    if stages[-1].start == stages[-1].stop or (stages[0].start == stages[0].stop and not stages[0].device):
        raise PlanError(
            "a stage without pieces hands on from one device to another: it is not the last, nor here first"
        )


def _check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise PlanError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}")


def _check_shares(shares: tuple[float, ...]) -> None:
    if not isinstance(shares, tuple) or not shares:
        raise PlanError("a plan needs a tuple with one share for each device")
    check_num_devices(len(shares))
    for index, share in enumerate(shares):
        if not _is_number(share) or not math.isfinite(share):
            raise PlanError(f"the share of device {index} is {share!r}; it must be a number")
        if share < 0:
            raise PlanError(f"the share of device {index} is {share:g}; it must not be negative")
    total = math.fsum(shares)
    if abs(total - 1) > SHARES_TOLERANCE:
        raise PlanError(f"shares {', '.join(f'{share:g}' for share in shares)} add up to {total:g}, not to 1")


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**53  # larger ones may not fit a float
    return isinstance(value, float)
