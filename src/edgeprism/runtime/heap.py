"""Memory that a device's process frees stays its own for a while, instead of being asked for anew for every array.

glibc gives the free end of its heap back as soon as it is longer than a threshold, which is 128 kB until large arrays
were freed; a process that read only some layers' weights never had such. Then each activation is made of pages that the
kernel has to find and clear: a stage of BERT-Large took 1,376 page faults and 17 % longer, in one process of seven.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h
KEPT_BYTES = 128 * 2**20
"""At most, at the end of the heap."""
MAPPED_BYTES = 32 * 2**20
"""Arrays from this size on are mapped one by one, and given back when freed: where glibc's own threshold ends."""
_SAID = ("TRIM_THRESHOLD_", "MMAP_THRESHOLD_", "TOP_PAD_", "MMAP_MAX_", "ARENA_MAX")
"""As glibc's environment variables go on after MALLOC_."""


def keep_freed() -> None:
    """For processes that are this project's own, before they start threads. One heap for all threads, so that nothing
    is left in those of others. What the environment says of the same settings stays, and so does another C library."""
    tunables = os.environ.get("GLIBC_TUNABLES", "").upper()
    if any(f"MALLOC_{name}" in os.environ or f"MALLOC.{name.rstrip('_')}" in tunables for name in _SAID):
        return
    libc = glibc()
    if libc is not None and libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES) == 1:  # else it would be worse than before
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """What nobody refers to any more is freed, and all that is free given back to the system: a model was dropped."""
    gc.collect()  # a model refers to itself here and there
    trim()


def trim() -> None:
    """All that is free is given back to the system, so that it counts as free there."""
    libc = glibc()
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def glibc() -> Any | None:
    """None where the C library is another one."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
