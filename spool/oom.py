"""Whether the kernel killed a process of this job because memory ran out, by the kernel's own
counters.

A SIGKILL does not say who sent it. The counters do: `oom_kill` of this process's memory cgroup (v1
or v2), which schedulers give to each job, else that of the whole machine. Workers and the children
of a job share it with the parent.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

MEMORY_S = 10.0  # for a large process to be gone after the kernel counted its death

_COUNT = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


def find_counter(cgroups: str, mounts: Path = Path("/sys/fs/cgroup")) -> Path:
    """The file with the counter, from what /proc/self/cgroup says; /proc/vmstat where no cgroup
    counts.
    """
    candidates = []
    for line in cgroups.splitlines():
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            candidates += [
                mounts / "memory" / group[1:] / "memory.oom_control",
                mounts / "memory/memory.oom_control",
            ]
        elif not controllers:
            candidates += [
                top / group[1:] / "memory.events" for top in (mounts, mounts / "unified")
            ]
    return next(
        (path for path in candidates if read_counter(path) is not None), Path("/proc/vmstat")
    )


def read_counter(path: Path) -> int | None:
    """How many processes were killed, None where that is not counted."""
    try:
        match = _COUNT.search(path.read_bytes())
    except OSError:
        return None
    return int(match[1]) if match else None


class OomWatch:
    """Which deaths by SIGKILL were the kernel's. Look often: a kill explains one death of the next
    seconds.
    """

    def __init__(self, counter: Path | None = None) -> None:
        self._counter = counter or find_counter(_cgroups())
        self._seen = read_counter(self._counter) or 0
        self._unexplained: list[float] = []

    def look(self, now: float) -> None:
        """Note the kills since the last look; `now` on the monotonic clock."""
        count = read_counter(self._counter) or 0
        self._unexplained += [now] * max(count - self._seen, 0)
        self._seen = max(count, self._seen)

    def explains(self, exit_code: int, now: float) -> bool:
        """Whether this death was one of them; each explains one."""
        self.look(now)
        self._unexplained = [at for at in self._unexplained if now - at <= MEMORY_S]
        if exit_code not in (-signal.SIGKILL, 128 + signal.SIGKILL) or not self._unexplained:
            return False
        self._unexplained.pop(0)
        return True


def _cgroups() -> str:
    try:
        return Path("/proc/self/cgroup").read_text()
    except OSError:
        return ""
