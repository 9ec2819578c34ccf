"""What this process has used so far: time and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

from gpuspool.spool.identity import myself


def age_s() -> float:
    """For how long this process has been there, its interpreter's start included."""
    since_boot_s = myself().pid_start / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s)


def peak_resident_bytes() -> int:
    """The most memory that this program held at once; 0 where /proc does not tell.

    Not by getrusage(2), whose peak is as high as the parent's was at the fork.
    """
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields.get("VmHWM", "0").split()[0])
