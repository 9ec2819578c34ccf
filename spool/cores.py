"""How many cores this process may keep busy.

Three things bound them: the cores of the machine, the set of cores to which the process is bound
(`taskset`, a cpuset), and the quota of its cgroup and of every cgroup above that: containers and
schedulers give "two cores' worth of time" without saying which. Called wherever threads or
processes are counted out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Where the file systems of cgroups are mounted.
MOUNTS = Path("/sys/fs/cgroup")

_OWN = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """How many cores this process may keep busy, at least 1; a part of a core does not count."""
    return max(1, int(min(_bound_cores(), quota_cores())))


def _bound_cores() -> int:
    """How many cores this process is bound to, or was told to count (`PYTHON_CPU_COUNT`)."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0))


def quota_cores(groups: Path = _OWN, mounts: Path = MOUNTS) -> float:
    """How many cores' worth of time the cgroups of this process have; infinity without a limit.

    groups: the file that tells the groups of this process.
    """
    least = float("inf")
    for folder in _folders(groups, mounts):
        least = min(least, _limit(folder))
    return least


# A line of /proc/self/cgroup is `hierarchy:controllers:group`. Of version 1 the one with the
# controller "cpu" counts; of version 2 there is one line, without controllers, and where both
# versions are used it is mounted at `unified`. Inside a container the group may be named as the
# host sees it while the mount shows the container's own group at its top, so folders that are not
# there are passed over, and the top is always looked at.
def _folders(groups: Path, mounts: Path) -> Iterator[Path]:
    """The folder of each group that this process is in, and those of all groups above."""
    try:
        lines = groups.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = os.fsdecode(line).split(":", 2)
        tops: tuple[Path, ...] = ()
        if "cpu" in controllers.split(","):
            tops = (mounts / "cpu",)
        elif not controllers:
            tops = (mounts, mounts / "unified")
        for top in tops:
            folder = top / group.lstrip("/")
            yield folder
            yield from (above for above in folder.parents if above.is_relative_to(top))


def _limit(folder: Path) -> float:
    """The cores' worth of time that one group may use; infinity where it does not say."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        # Without a limit version 2 says "max", and version 1 says -1.
        if quota in ("max", "-1"):
            return float("inf")
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return float("inf")
