"""Whether the kernel killed a process of this job since memory ran out, by the kernel's counters.

A SIGKILL does not say who sent it: a user, a scheduler, or the kernel. The counters do. `oom_kill`
counts the kills in this process's memory cgroup (version 1 or 2), which schedulers make for each
job, or where no cgroup counts, on the whole machine. Workers and the children of a job are in the
same cgroup as their parent.

The kernel counts before a large process is gone, so the count may be seen before the death or with
it, never long after. Used by whoever waits for a process: a parent for its workers, a worker for
the command that it runs.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

# A kill explains a death that is seen within this time. So long a large process may take to be gone
# after the kernel has counted it.
MEMORY_S = 10.0

# How a process that was killed by SIGKILL ended: as its parent sees it, and as a shell tells it.
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)

# The counter of the whole machine.
_MACHINE = Path("/proc/vmstat")

_COUNT = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


def find_counter(cgroups: str, mounts: Path = Path("/sys/fs/cgroup")) -> Path:
    """The file with the counter for this process.

    cgroups: what /proc/self/cgroup says. mounts: where the file systems of cgroups are.
    """
    for path in _candidates(cgroups, mounts):
        if read_counter(path) is not None:
            return path
    return _MACHINE


# A line of /proc/self/cgroup is `hierarchy:controllers:group`. Of version 1 the one with the
# controller "memory" counts. Inside a container the group may be named as the host sees it, and the
# container's own cgroup is then the root of the mount; so that is tried next. Of version 2 there
# is one line, without controllers; where both versions are used it is mounted at `unified`.
def _candidates(cgroups: str, mounts: Path) -> Iterator[Path]:
    """The files that may hold the counter, the best first."""
    for line in cgroups.splitlines():
        _, controllers, group = line.split(":", 2)
        below = group.removeprefix("/")
        if "memory" in controllers.split(","):
            yield mounts / "memory" / below / "memory.oom_control"
            yield mounts / "memory" / "memory.oom_control"
        elif not controllers:
            yield mounts / below / "memory.events"
            yield mounts / "unified" / below / "memory.events"


def read_counter(path: Path) -> int | None:
    """How many processes were killed, None where this file does not say."""
    try:
        match = _COUNT.search(path.read_bytes())
    except OSError:
        return None
    if match is None:
        return None
    return int(match[1])


class OomWatch:
    """Tells which deaths by SIGKILL were the kernel's.

    Look often: a kill explains one death, and only for MEMORY_S.
    """

    def __init__(self, counter: Path | None = None) -> None:
        """counter: the file to watch, None for the one of this process."""
        if counter is None:
            counter = find_counter(_cgroups())
        self._counter = counter
        self._seen = read_counter(counter) or 0
        # When each kill was seen that has explained no death yet, oldest first.
        self._unexplained: list[float] = []

    def look(self, now: float) -> None:
        """Note the kills since the last look; now: on the monotonic clock, in seconds."""
        count = read_counter(self._counter) or 0
        if count > self._seen:
            self._unexplained += [now] * (count - self._seen)
            self._seen = count

    def explains(self, exit_code: int, now: float) -> bool:
        """Whether a process that ended with this code was killed by the kernel.

        exit_code: -N for signal N. now: on the monotonic clock, in seconds. Each kill explains one
        death, the oldest first.
        """
        self.look(now)
        self._unexplained = [seen for seen in self._unexplained if now - seen <= MEMORY_S]
        if exit_code not in _KILLED or not self._unexplained:
            return False
        self._unexplained.pop(0)
        return True


def _cgroups() -> str:
    try:
        # The name of a group may be in any encoding.
        return os.fsdecode(Path("/proc/self/cgroup").read_bytes())
    except OSError:
        return ""
