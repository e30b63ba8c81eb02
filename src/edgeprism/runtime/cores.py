"""Which processor cores a device may use: each device of one machine gets its own, so that none slows another."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgeprism.errors import PlanError
from edgeprism.specs.plan import check_num_devices


def available_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def divide_cores(num_devices: int, *, share: bool = False) -> tuple[tuple[int, ...], ...]:
    """Disjoint, equal sets of cores, the coordinator's first. PlanError when there are fewer cores than devices, unless
    they may ``share`` (then device i gets core i modulo their number)."""
    check_num_devices(num_devices)
    cores = available_cores()
    if num_devices > len(cores):
        if not share:
            raise PlanError(
                f"{num_devices} devices on this machine need {num_devices} cores, and this process may use "
                f"{len(cores)}; use at most {len(cores)} devices, or other machines"
            )
        return tuple((cores[index % len(cores)],) for index in range(num_devices))
    each = len(cores) // num_devices
    return tuple(cores[index * each : (index + 1) * each] for index in range(num_devices))


def settle(cores: tuple[int, ...] | None) -> None:
    """The calling thread computes on these cores from now on, with one torch thread each. Other threads are left as
    they are, and so is what a new one starts with. None changes nothing."""
    if cores is None:
        return
    import torch

    num_threads = torch.get_num_threads()
    _set(cores, len(cores))
    if num_threads != len(cores):  # that was set for new threads too, which another one sets back
        thread = threading.Thread(target=torch.set_num_threads, args=(num_threads,))
        thread.start()
        thread.join()


@contextmanager
def on_cores(cores: tuple[int, ...] | None) -> Iterator[None]:
    """Runs the calling thread on these cores, with one torch thread each; what was set before is set again after.

    None leaves everything as it is.
    """
    if cores is None:
        yield
        return
    import torch

    num_threads, affinity = torch.get_num_threads(), available_cores()
    _set(cores, len(cores))
    try:
        yield
    finally:
        _set(affinity, num_threads)


def _set(cores: tuple[int, ...], num_threads: int) -> None:
    if hasattr(os, "sched_setaffinity") and cores != available_cores():
        os.sched_setaffinity(0, cores)
    import torch

    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
