"""What a device's process frees and takes again and again, counted in page faults of real processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgeprism.runtime.heap import glibc

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(glibc() is None, reason="only glibc has these settings"),
]

TURNS = 50
NUM_PAGES = 4 * 2**21 // os.sysconf("SC_PAGE_SIZE")
"""That a turn's arrays have."""
PROGRAM = f"""
import ctypes, resource, threading
import numpy as np
from edgeprism.runtime import heap
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: PR_SET_THP_DISABLE
heap.keep_freed()

def turn():
    arrays = [np.ones(2**18) for _ in range(4)]  # 2 MB each

def num_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

turn()
before = num_faults()
for _ in range({TURNS}):
    turn()
print(num_faults() - before)

def many():
    arrays = [np.ones(2**18) for _ in range(32)]

def in_threads():
    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

before = resident()
many()
in_threads()
heap.give_back()
print(resident() - before)
"""


def numbers(**environment: str) -> tuple[int, int]:
    """Page faults of all turns together; and bytes that a process has more, after much was freed and given back."""
    others = ("MALLOC_", "GLIBC_T", "LD_PREL")
    known = {name: value for name, value in os.environ.items() if name[:7] not in others}
    command = [sys.executable, "-c", PROGRAM]
    found = subprocess.run(command, env=known | environment, capture_output=True, text=True, check=True).stdout
    num_faults, num_bytes = found.split()
    return int(num_faults), int(num_bytes)


def test_freed_memory_is_used_again() -> None:
    """Arrays of 2 MB, taken and freed, cost next to no page faults."""
    assert numbers()[0] < TURNS * NUM_PAGES / 50


def test_an_environment_that_says_so_decides() -> None:
    """Who has set a threshold keeps it, and pays for each array; a setting of something else changes nothing."""
    low = {"MALLOC_TRIM_THRESHOLD_": "100000", "MALLOC_MMAP_THRESHOLD_": "100000"}
    assert numbers(**low)[0] > TURNS * NUM_PAGES / 2
    assert numbers(MALLOC_PERTURB_="0")[0] < TURNS * NUM_PAGES / 50


def test_what_is_given_back_is_free() -> None:
    """Of 320 MB that were taken and freed, in threads as well, next to nothing is left."""
    assert numbers()[1] < 16 * 2**20
