"""A process that makes a core slower: run as a script, it imports nothing of edgeprism.

It takes the core for the rest of each half millisecond, by real-time priority, and leaves the device its part. Quotas,
which the kernel accounts for at its clock ticks of 1 to 4 ms, are too coarse for a block, and stop signals wake every
thread of a device (docs/explanation/lab.md has the figures). It ends with the lab that started it.

Arguments: core, speed, pid of the lab.
"""

from __future__ import annotations

import gc
import os
import sys
import time

PRIORITY = 20
PERIOD_S, MIN_SLOT_S = 0.5e-3, 0.1e-3
WINDOW_S = 0.05  # after which it looks what it has left of the core, and corrects itself
CORRECTION, MAX_ERROR = 0.2, 0.05  # of the error in the next window; a disturbance counts for no more than so much


def main() -> None:
    """Until the lab has ended."""
    core, speed, owner = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    gc.disable()
    print("ready", flush=True)
    period_s = max(PERIOD_S, MIN_SLOT_S / speed)
    slot_s = speed * period_s
    now, own, sleep = time.perf_counter, time.thread_time, time.sleep
    window_s, own_s = now(), own()
    while os.getppid() == owner:
        begin_s = now()
        sleep(slot_s)
        end_s = begin_s + period_s
        while now() < end_s:
            pass
        if end_s - window_s > WINDOW_S:
            left = 1 - (own() - own_s) / (now() - window_s)
            error = max(-MAX_ERROR, min(MAX_ERROR, speed - left))
            slot_s = max(0.0, min(period_s, slot_s + CORRECTION * error * period_s))
            window_s, own_s = now(), own()


if __name__ == "__main__":
    main()
