"""The options of `edgeprism lab up` and `lab run`, and the devices that they describe. No root needed."""

from __future__ import annotations

import argparse

from edgeprism.errors import InputError
from edgeprism.lab.device import LabDevice
from edgeprism.specs.staging import PUBLISHED, StagingCost


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    one_or_each = "one for all, or one a device with commas between them"
    parser.add_argument("--devices", type=int, default=2, metavar="N", help="how many, the coordinator included (2)")
    parser.add_argument(
        "--rate", default="none", metavar="MBIT", help=f"Mbit/s of frames on each link: {one_or_each} (none: no limit)"
    )
    parser.add_argument("--delay", default="0", metavar="MS", help=f"of what a device sends: {one_or_each} (0)")
    parser.add_argument("--speed", default="1", metavar="PART", help=f"part of a core: {one_or_each} (1)")
    parser.add_argument("--memory", default="none", metavar="MB", help=f"limit: {one_or_each} (none)")
    parser.add_argument("--shared", action="store_true", help="one medium for all, as WiFi is, instead of a link each")
    parser.add_argument(
        "--frames-at-once",
        type=int,
        metavar="N",
        help="the most frames that a link sends as one packet, 1 to 8 (by the slowest rate; 1 for rates that change)",
    )
    parser.add_argument("--share-cores", action="store_true", help="several devices may have one core")
    parser.add_argument(
        "--staging",
        metavar="published|FIXED_MS,MB_PER_S",
        help="wait at every copy between accelerator and host, as if there were one",
    )
    parser.add_argument("--no-check", action="store_true", help="do not measure rates and speeds first")


def devices_of(args: argparse.Namespace) -> list[LabDevice]:
    """Named device0 (the coordinator), device1, ...; InputError for values that cannot be."""
    if not 2 <= args.devices <= 64:
        raise InputError(f"--devices must be at least 2, not {args.devices}")
    rates = _numbers("--rate", args.rate, args.devices)
    delays = _numbers("--delay", args.delay, args.devices)
    speeds = _numbers("--speed", args.speed, args.devices)
    memories = _numbers("--memory", args.memory, args.devices)
    devices = []
    for index in range(args.devices):
        memory, speed = memories[index], speeds[index]
        devices.append(
            LabDevice(
                name=f"device{index}",
                rate_mbit=rates[index],
                delay_ms=delays[index] or 0.0,
                speed=1.0 if speed is None else speed,
                memory_mb=None if memory is None else round(memory),
            )
        )
    return devices


def staging_of(text: str | None) -> StagingCost | None:
    """What --staging says; InputError for what it cannot be."""
    if text is None:
        return None
    if text == "published":
        return PUBLISHED
    try:
        fixed_ms, mb_per_s = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--staging {text!r} must be published, or FIXED_MS,MB_PER_S as in 2,400") from None
    return StagingCost(fixed_s=fixed_ms / 1e3, bytes_per_s=mb_per_s * 1e6)


def number(option: str, text: str) -> float | None:
    """A number, or None for `none`; InputError for another text."""
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} {text!r} is not a number") from None


def _numbers(option: str, text: str, count: int) -> list[float | None]:
    """One a device."""
    values = [number(option, part.strip()) for part in text.split(",")]
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise InputError(
            f"{option} {text!r} has {len(values)} values for {count} devices; give one for all, or {count}"
        )
    return values
