"""Does this device work, before anything else: what ``edgeprism doctor`` looks at here.

Works without torch, whose absence is one of its findings.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import numpy as np

from edgeprism.errors import InputError
from edgeprism.profiler.energy.find import find_sensor
from edgeprism.runtime.cache import cache_root
from edgeprism.runtime.check import Check, Status
from edgeprism.runtime.cores import available_cores
from edgeprism.runtime.machine import (
    cpu_clock,
    cpu_quota,
    has_nvidia_device,
    memory_available_bytes,
)
from edgeprism.runtime.probe import versions
from edgeprism.wire.frame import PROTOCOL

HERE = "this device"
_check = partial(Check.of, HERE)

_LOW_MEMORY_BYTES = 500 * 10**6
_LOW_DISK_BYTES = 10**9
_SIDE = 512  # of the matrices that are multiplied
_MAX_ERROR = 1e-4  # of the largest element; float32 is right to about 1e-6, tf32 to 1e-3
_INSTALL = {
    "torch": 'pip install "edgeprism[torch]", or on a Jetson NVIDIA\'s own build',
    "transformers": "pip install --upgrade edgeprism",
}
_SELF_SCALING_DRIVERS = {"intel_pstate", "amd-pstate", "amd-pstate-epp"}  # under these "powersave" is no slow clock


def device_checks(device: str | None) -> Iterator[Check]:
    """One after the other, as they are done. ``device``: cpu or cuda, or None for all that torch has."""
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InputError(f"--device must be cpu or cuda, not {device!r}")
    yield from _version_checks()
    yield from _kernel_checks(device)
    yield _cores_check()
    yield memory_check(HERE, memory_available_bytes())
    yield _disk_check()
    yield _clock_check()
    yield _energy_check()


def memory_check(about: str, free_bytes: int | None, *, is_of_peer: bool = False) -> Check:
    """Whether there is room for a model at all."""
    if free_bytes is None:
        return Check.of(about, "memory", "ok", "the kernel does not say how much is free", is_of_peer=is_of_peer)
    status: Status = "ok" if free_bytes >= _LOW_MEMORY_BYTES else "warn"
    advice = "close other programs on it, or run it without a desktop: ViT-B in float32 takes 350 MB"
    value = f"{free_bytes / 1e9:.1f} GB free"
    return Check.of(about, "memory", status, value, advice, is_of_peer=is_of_peer, memory_available_bytes=free_bytes)


# Versions


def _version_checks() -> Iterator[Check]:
    found, needed = versions(), _requirements()
    value = f"{found['edgeprism']}, protocol {PROTOCOL}, Python {found['Python']}"
    yield _check("edgeprism", "ok", value, protocol=PROTOCOL)
    for name, install in _INSTALL.items():
        if not found[name]:
            yield _check(name, "FAIL", "not installed", install)
        else:
            fits = _fits(found[name], needed.get(name))
            yield _check(name, "ok" if fits else "warn", found[name], f"{needed.get(name)} is needed: {install}")


def _requirements() -> dict[str, str]:
    """What the installed edgeprism asks for, by name; empty in a source tree."""
    from packaging.requirements import Requirement  # comes with huggingface-hub

    try:
        found = map(Requirement, requires("edgeprism") or [])
    except PackageNotFoundError:
        return {}
    return {requirement.name: f"{requirement.name}{requirement.specifier}" for requirement in found}


def _fits(found: str, needed: str | None) -> bool:
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion

    try:  # a vendor's build is called something like 2.8.0a0+nv25.6
        return needed is None or Requirement(needed).specifier.contains(found, prereleases=True)
    except InvalidVersion:
        return True


# Kernels


def _kernel_checks(device: str | None) -> Iterator[Check]:
    try:
        import torch
    except ModuleNotFoundError:
        return  # said above
    except Exception as exc:  # a library that a build was linked with is missing: OSError, ImportError, RuntimeError...
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[-1]
        yield _check(
            "cpu", "FAIL", f"torch does not start: {reason}", "install torch again, as a build for this device"
        )
        return
    all_devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for name in all_devices if device is None else [device]:
        yield _kernel_check(name)
    if device is None and "cuda" not in all_devices and has_nvidia_device():
        advice = "install a torch that is built for its CUDA (on a Jetson NVIDIA's own), or go on with the CPU"
        yield _check("cuda", "warn", f"there is an NVIDIA GPU, and torch {torch.__version__} cannot use it", advice)


def _kernel_check(device: str) -> Check:
    """Multiplies two matrices there and compares with numpy."""
    import torch

    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((_SIDE, _SIDE), np.float32) for _ in range(2))
    expected = left.astype(np.float64) @ right.astype(np.float64)
    advice = "use --device cpu" if device.startswith("cuda") else "install torch again, as a build for this CPU"
    try:
        there = [torch.from_numpy(matrix).to(device) for matrix in (left, right)]
        seconds = []
        for _ in range(5):
            began_s = time.perf_counter()
            product = (there[0] @ there[1]).cpu().numpy()
            seconds.append(time.perf_counter() - began_s)
    except Exception as exc:  # torch raises what it likes: AssertionError, RuntimeError, its own
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        return _check(device, "FAIL", f"no kernel runs there: {reason}", advice)
    error = float(np.abs(product - expected).max() / np.abs(expected).max())
    flop_per_s = 2 * _SIDE**3 / min(seconds)
    is_right = error < _MAX_ERROR
    value = f"kernels run: {flop_per_s / 1e9:.0f} GFLOP/s in float32, right to {error:.0e}"
    if not is_right:
        value = f"a product of two matrices is off by {error:.0e} of its largest element"
    return _check(device, "ok" if is_right else "FAIL", value, advice, error=error, flop_per_s=flop_per_s)


def _cores_check() -> Check:
    num_cores, quota = len(available_cores()), cpu_quota()
    num_threads = _num_threads()
    value = f"{num_cores} of {os.cpu_count()} for this process"
    if num_threads is not None:
        value += f", torch computes with {num_threads} {'thread' if num_threads == 1 else 'threads'}"
    if quota is not None and quota < num_cores:
        value += f"; the time of {quota:g} is granted"
        advice = f"more threads are held up in turns: edgeprism worker --threads {max(1, int(quota))}"
        return _check("cores", "warn", value, advice, num_cores=num_cores, core_quota=quota)
    too_many = num_threads is not None and num_threads > num_cores
    advice = f"threads that share a core wait for each other: set OMP_NUM_THREADS={num_cores}"
    return _check("cores", "warn" if too_many else "ok", value, advice, num_cores=num_cores)


def _num_threads() -> int | None:
    try:
        import torch
    except Exception:  # said above
        return None
    return int(torch.get_num_threads())


# Memory, disk, clock, energy


def _disk_check() -> Check:
    cache = cache_root() / "weights"
    place = next(path for path in (cache, *cache.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        advice = "weights that are sent need a place: set EDGEPRISM_CACHE to a directory of yours"
        return _check("disk", "FAIL", f"{place} is no directory that this user may write to", advice)
    free_bytes = shutil.disk_usage(place).free
    return _check(
        "disk",
        "ok" if free_bytes >= _LOW_DISK_BYTES else "warn",
        f"{free_bytes / 1e9:.1f} GB free for weights in {_short(cache)}",
        "make room, or set EDGEPRISM_CACHE to a directory on a larger disk",
        disk_free_bytes=free_bytes,
    )


def _clock_check() -> Check:
    clock = cpu_clock()
    if clock is None:
        return _check("cpu clock", "ok", "cannot be read here, as in most virtual machines")
    value = f"{clock.current_mhz:.0f} of {clock.hardware_mhz:.0f} MHz now, governor {' and '.join(clock.governors)}"
    measured: dict[str, Any] = {"current_mhz": clock.current_mhz, "hardware_mhz": clock.hardware_mhz}
    if "powersave" in clock.governors and not _SELF_SCALING_DRIVERS & set(clock.drivers):
        advice = (
            "it stays at its lowest clock: echo schedutil | sudo tee /sys/devices/system/cpu/cpufreq/*/scaling_governor"
        )
        return _check("cpu clock", "warn", value, advice, **measured)
    is_capped = clock.allowed_mhz < 0.95 * clock.hardware_mhz
    advice = (
        f"it is held to {clock.allowed_mhz:.0f} MHz: look at the board's power mode (Jetson: sudo nvpmodel -m 0) "
        "and power supply"
    )
    return _check("cpu clock", "warn" if is_capped else "ok", value, advice, **measured)


def _energy_check() -> Check:
    sensor = find_sensor()
    return _check("energy", "warn" if sensor.notes else "ok", sensor.source, "; ".join(sensor.notes))


def _short(path: Path) -> str:
    return str(path).replace(str(Path.home()), "~", 1) if path.is_relative_to(Path.home()) else str(path)
