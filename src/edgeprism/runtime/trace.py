"""What one request did: which plan ran, and where its time and bytes went, device by device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgeprism.errors import FrameError
from edgeprism.specs.plan import Plan, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTrace:
    """One device's part. Seconds of its own thread; they add up to ``total_s``."""

    device: int
    work: int
    """Tokens of each sample under `sequence`, samples under `replica`."""
    total_s: float
    compute_s: float
    codec_s: float
    """Encoding and decoding what travels."""
    staging_s: float
    """Copies between accelerator and host memory."""
    wire_s: float
    """Laying out, queueing and parsing messages."""
    wait_s: float
    """Blocked, waiting for other devices."""
    bytes_sent: int
    bytes_received: int

    @classmethod
    def from_json(cls, document: object, *, device: int) -> DeviceTrace:
        """Reads what `dataclasses.asdict` made of one on ``device``. ValueError where it is none."""
        if not isinstance(document, Mapping) or document.keys() != {field.name for field in fields(cls)}:
            raise ValueError("its fields are not those of a trace")
        if not all(isinstance(value, int | float) and 0 <= value < 1e18 for value in document.values()):
            raise ValueError("its values must be numbers")
        return cls(**{**document, "device": device})

    @classmethod
    def of_sender(cls, device: int, num_bytes: int) -> DeviceTrace:
        """One that sent something, and did nothing else that was counted."""
        return cls(
            device=device, work=0, total_s=0.0, compute_s=0.0, codec_s=0.0, staging_s=0.0, wire_s=0.0, wait_s=0.0,
            bytes_sent=num_bytes, bytes_received=0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One request. ``devices`` are those that took part, the coordinator first."""

    plan: Plan
    dtype: str
    batch: int
    num_tokens: int
    total_s: float
    devices: tuple[DeviceTrace, ...]
    queued_s: float = 0.0
    """Seconds that it waited before it was begun; not part of ``total_s``."""
    failures: tuple[str, ...] = ()
    """Devices that failed during the request, and why; it was then finished by the coordinator."""
    left_out: tuple[str, ...] = ()
    """Devices of the plan that could not be used when the request began, and why."""
    versions: Mapping[int, str] = field(default_factory=dict)
    """What each device that took part runs, such as "edgeprism 0.1.0, Python 3.11.7, torch 2.13.0"."""
    note: str = ""

    @property
    def bytes_sent(self) -> int:
        """Bytes that all devices sent, frame headers included; before encryption and TCP."""
        return sum(device.bytes_sent for device in self.devices)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "plan": self.plan.to_json(), "bytes_sent": self.bytes_sent}

    def summary(self) -> str:
        """A small table for people; milliseconds and kilobytes."""
        plan = self.plan.strategy
        if plan in ("sequence", "pipeline"):
            plan += f" {self.plan.codec}{'' if self.plan.narrowest is None else f'..{self.plan.narrowest}'}"
        lines = [
            f"{plan}, {self.dtype}, batch {self.batch}, {self.num_tokens} tokens: {self.total_s * 1e3:.1f} ms, "
            f"{self.bytes_sent / 1e3:.1f} kB sent",
            f"{'device':>8}{'work':>6}{'compute':>9}{'codec':>8}{'staging':>9}{'wire':>8}{'wait':>8}{'kB sent':>10}",
        ]
        for d in self.devices:
            times = f"{d.compute_s * 1e3:9.1f}{d.codec_s * 1e3:8.1f}{d.staging_s * 1e3:9.1f}"
            times += f"{d.wire_s * 1e3:8.1f}{d.wait_s * 1e3:8.1f}"
            lines.append(f"{d.device:>8}{d.work:>6}{times}{d.bytes_sent / 1e3:10.1f}")
        lines += [f"left out: {device}" for device in self.left_out]
        lines += [f"failed: {failure}" for failure in self.failures]
        return "\n".join(lines + ([self.note] if self.note else []))


def traces_of(documents: object, stages: Sequence[Stage]) -> list[DeviceTrace]:
    """What the first stages did, as they say. FrameError where they say something else."""
    if not isinstance(documents, list | tuple) or len(documents) > len(stages):
        raise FrameError("traces that are not those of the stages")
    try:
        return [
            DeviceTrace.from_json(document, device=stage.device)
            for document, stage in zip(documents, stages, strict=False)
        ]
    except ValueError as exc:
        raise FrameError(f"a trace that cannot be read: {exc}") from exc
