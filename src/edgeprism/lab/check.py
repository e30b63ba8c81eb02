"""Is the lab what it says? Transfers over plain TCP after a second of idleness, and the speed of every device.

A message of n bytes that one device sends to the next must arrive after

    its delay + (its frames on the wire - one full bucket) / rate, and at most what the machine itself takes more

within 10 % of n / rate + delay, or within 0.1 ms, which is how much a message of a few bytes scatters (more on a device
of less than a core, which takes longer to receive it). What the machine itself takes is measured first, by such
messages, and reported: the least of three. The full bucket is the one place where a token bucket is no cable: after a
pause, so many bytes pass at once (``buckets.burst_bytes``), or nearly so: up to a cable's time is right as well. The
relay has none. A transfer that is off is measured six times more, and the lower quartile counts: a busy machine makes
some of them late, and none early.

A device's speed is the processor time over the time that blocks of 5 and 25 ms of computing take (25 and 100 where
devices have parts of one core), and must be within 3 %, in the median of three where the first is off. A quota that was
not used is a full bucket, too: a block that begins with one may be done so much earlier.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgeprism.errors import LabError
from edgeprism.lab import probe
from edgeprism.lab.buckets import burst_bytes, wire_bytes
from edgeprism.lab.groups import quota_ms

if TYPE_CHECKING:
    from edgeprism.lab.lab import Lab

IDLE_S = 1.0
SMALLEST_BYTES = 4
SIZES_BYTES = (4096, 32768, 262144, 4194304)
MAX_TRANSFER_S = 4.0  # longer ones are left out
WITHIN, SCATTER_S = 0.10, 0.1e-3
MAX_OWN_S = 0.5e-3  # of the machine itself, for a few bytes
BLOCKS_MS, NUM_BLOCKS = (5.0, 25.0), 16
QUOTA_BLOCKS_MS = (25.0, 100.0)  # where devices share a core: five periods of a quota, and twenty
SPEED_WITHIN = 0.03
REPEATS = 3
NUM_TRANSFERS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Seconds of messages of one size over one link; ``own_s``: what the machine itself takes."""

    sender: str
    receiver: str
    num_bytes: int
    took_s: float
    expected_s: float
    at_most_s: float
    """Without what a full bucket lets pass at once: a cable's time."""
    own_s: float
    allowed_s: float

    @property
    def is_off(self) -> bool:
        """Whether it took too long, or too short."""
        return not self.expected_s - self.allowed_s <= self.took_s <= self.at_most_s + self.allowed_s

    def __str__(self) -> str:
        size = f"{self.num_bytes / 1024:g} kB" if self.num_bytes >= 1024 else f"{self.num_bytes} B"
        return (
            f"{self.sender} to {self.receiver}: {size} took {1e3 * self.took_s:.2f} ms, expected "
            f"{1e3 * self.expected_s:.2f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The part of a core that a device had in blocks of one length."""

    device: str
    block_ms: float
    target: float
    measured: float
    at_most: float
    """What the target becomes in a block that begins with a whole quota."""

    @property
    def is_off(self) -> bool:
        """Whether it is too fast, or too slow."""
        return not (1 - SPEED_WITHIN) * self.target <= self.measured <= (1 + SPEED_WITHIN) * self.at_most

    def __str__(self) -> str:
        return f"{self.device}: speed {self.measured:.3f} in blocks of {self.block_ms:g} ms, expected {self.target:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was measured."""

    transfers: tuple[Transfer, ...]
    speeds: tuple[Speed, ...]
    relay_cpu_s: float
    """Processor time of the relay during the transfers."""
    seconds: float
    """That the transfers took together."""
    frames_at_once: int
    """The most that a link sends as one packet."""

    @property
    def off(self) -> tuple[Transfer | Speed, ...]:
        """What is not as it should be."""
        return tuple(each for each in self.all if each.is_off)

    @property
    def all(self) -> tuple[Transfer | Speed, ...]:
        """Speeds, then transfers."""
        return (*self.speeds, *self.transfers)

    def require(self) -> None:
        """LabError in one line when something is off."""
        if self.off:
            others = f", and {len(self.off) - 1} more (edgeprism lab check)" if len(self.off) > 1 else ""
            raise LabError(f"the lab is not what it should be: {self.off[0]}{others}; is the machine busy otherwise?")

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "off": [str(each) for each in self.off]}


def check(lab: Lab) -> Report:
    """Some seconds in which nothing else should run on the devices. LabError when a device cannot be measured."""
    with ExitStack() as stack:
        probes = [stack.enter_context(_Probe(lab, index)) for index in range(len(lab.devices))]
        speeds = _speeds(lab, probes)
        began_s, relay_s = time.monotonic(), lab.relay_cpu_s()
        transfers = _Ring(lab, probes).transfers()
        return Report(
            transfers=tuple(transfers),
            speeds=tuple(speeds),
            relay_cpu_s=round(lab.relay_cpu_s() - relay_s, 2),
            seconds=round(time.monotonic() - began_s, 2),
            frames_at_once=1 if lab.state.is_relayed else lab.state.frames_at_once,
        )


def _speeds(lab: Lab, probes: Sequence[_Probe]) -> list[Speed]:
    """All devices compute at once, as they will."""
    state = lab.state
    found = []
    has_quotas = any(
        device.speed < 1 and state.cores.count(core) > 1
        for device, core in zip(state.devices, state.cores, strict=True)
    )
    for block_ms in QUOTA_BLOCKS_MS if has_quotas else BLOCKS_MS:
        rounds: list[list[Speed]] = []
        while len(rounds) < REPEATS and (not rounds or any(speed.is_off for speed in rounds[0])):
            for each in probes:
                each.tell("compute", block_ms, NUM_BLOCKS)
            parts = [each.answer() for each in probes]
            targets = [
                device.speed if device.speed < 1 else 1 / state.cores.count(core)
                for device, core in zip(state.devices, state.cores, strict=True)
            ]
            rounds.append(
                [
                    Speed(
                        device=device.name,
                        block_ms=block_ms,
                        target=target,
                        measured=part,
                        at_most=target / (1 - quota_ms(target) / block_ms) if has_quotas else target,
                    )
                    for device, target, part in zip(state.devices, targets, parts, strict=True)
                ]
            )
        found += [sorted(same, key=lambda speed: speed.measured)[len(same) // 2] for same in zip(*rounds, strict=True)]
    return found


class _Ring:
    """Every device sends to the next one, one after the other, each after a pause."""

    def __init__(self, lab: Lab, probes: Sequence[_Probe]) -> None:
        self._lab, self._probes, self._state = lab, probes, lab.state
        self._used_s = [0.0] * len(probes)

    def transfers(self) -> list[Transfer]:
        """Of all links and sizes."""
        count = len(self._probes)
        for index, each in enumerate(self._probes):
            each.tell("connect", self._lab.address((index + 1) % count))
            self._probes[(index + 1) % count].ask("accept")
            each.answer()
        for index in range(count):
            self._send(index, self._largest(index))  # opens TCP's windows
        found = [self._own(index) for index in range(count)]
        owns_s = [transfer.own_s for transfer in found]
        for size in SIZES_BYTES:
            found += [
                self._measure(index, size, own_s) for index, own_s in enumerate(owns_s) if size <= self._largest(index)
            ]
        return found

    def _largest(self, index: int) -> int:
        rate_mbit = self._state.devices[index].rate_mbit
        fitting = [size for size in SIZES_BYTES if not rate_mbit or size * 8e-6 / rate_mbit <= MAX_TRANSFER_S]
        return max(fitting, default=SIZES_BYTES[0])

    def _own(self, index: int) -> Transfer:
        """Of a message of a few bytes: what it takes besides the delay is the machine's own."""
        count = len(self._probes)
        delay_s = self._state.devices[index].delay_ms / 1e3
        took_s = min(self._send(index, SMALLEST_BYTES) for _ in range(REPEATS))
        return Transfer(
            sender=self._state.devices[index].name,
            receiver=self._state.devices[(index + 1) % count].name,
            num_bytes=SMALLEST_BYTES,
            took_s=took_s,
            expected_s=delay_s,
            at_most_s=delay_s,
            own_s=took_s - delay_s,
            allowed_s=MAX_OWN_S / self._speed(index + 1) + WITHIN * delay_s,
        )

    def _measure(self, index: int, num_bytes: int, own_s: float) -> Transfer:
        device = self._state.devices[index]
        receiver = self._state.devices[(index + 1) % len(self._probes)]
        rates = [each.rate_mbit for each in (device, receiver) if each.rate_mbit is not None]
        delay_s, ideal_s, rate_s, cable_s = device.delay_ms / 1e3, 0.0, 0.0, 0.0
        if rates:
            rate = min(rates) * 1e6 / 8
            ideal_s, cable_s = num_bytes / rate, wire_bytes(num_bytes) / rate
            at_once = 0 if self._state.is_relayed else burst_bytes(min(rates), self._state.frames_at_once)
            rate_s = max(0, wire_bytes(num_bytes) - at_once) / rate
        took_s: list[float] = []
        while True:
            took_s.append(self._send(index, num_bytes))
            transfer = Transfer(
                sender=device.name,
                receiver=receiver.name,
                num_bytes=num_bytes,
                took_s=sorted(took_s)[len(took_s) // 4],
                expected_s=delay_s + rate_s,
                at_most_s=delay_s + own_s + cable_s,
                own_s=own_s,
                allowed_s=max(WITHIN * (ideal_s + delay_s), SCATTER_S / self._speed(index + 1)),
            )
            if not rates or len(took_s) == NUM_TRANSFERS or (len(took_s) == 1 and not transfer.is_off):
                return transfer

    def _speed(self, index: int) -> float:
        """Of who receives."""
        return min(1.0, self._state.devices[index % len(self._probes)].speed)

    def _send(self, index: int, num_bytes: int) -> float:
        used_s = max(self._used_s) if self._state.is_shared else self._used_s[index]
        time.sleep(max(0.0, used_s + IDLE_S - time.monotonic()))
        receiver = self._probes[(index + 1) % len(self._probes)]
        receiver.tell("arrive")
        time.sleep(0.01)  # until it waits
        began_s = self._probes[index].ask("send", num_bytes)
        arrived_s = receiver.answer()
        self._used_s[index] = time.monotonic()
        return float(arrived_s) - float(began_s)


class _Probe:
    """The process on one device."""

    def __init__(self, lab: Lab, index: int) -> None:
        self._name = lab.devices[index].name
        command = [sys.executable, "-I", probe.__file__, lab.address(index)]
        self._process = lab.popen(
            index, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> _Probe:
        self.answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"the lab cannot be measured: the probe on {self._name} has ended; its words are above")
        return json.loads(line)

    def ask(self, *words: object) -> Any:
        self.tell(*words)
        return self.answer()
