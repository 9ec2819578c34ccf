"""What this process has used so far: time and memory. Called for the statistics of an attempt."""

from __future__ import annotations

import os
import time
from pathlib import Path

from gpuspool.spool.identity import myself


def age_s() -> float:
    """The seconds since this process was started, those of its interpreter's start included."""
    started_s = myself().pid_start / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)


def peak_resident_bytes() -> int:
    """The most memory that this program held at once; 0 where /proc does not tell.

    Not by getrusage(2): its peak begins as high as the parent's was when it forked.
    """
    # As bytes: the name of a program, which stands there too, may be in any encoding.
    for line in Path("/proc/self/status").read_bytes().splitlines():
        name, _, value = line.partition(b":")
        if name == b"VmHWM":
            return 1024 * int(value.split()[0])
    return 0
