"""A memory cgroup of our own, v1 or v2, in which a run has little memory, as under a scheduler.

`memory_group` makes it below the group of this process, so that we escape no limit, and removes it
at the end. `why_not` says why this machine does not allow that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/sys/fs/cgroup")
LIMITS = {
    "memory.limit_in_bytes": 1,
    "memory.memsw.limit_in_bytes": 1,
    "memory.max": 1,
    "memory.swap.max": 0,
}
# How long killed processes may take to leave a group.
EMPTY_S = 10.0


@dataclass(frozen=True)
class Group:
    """One group; `program` before a command runs the command in it."""

    path: Path

    @property
    def program(self) -> tuple[str, ...]:
        return "sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs")

    def processes(self) -> list[int]:
        """The pids of all processes in it, whatever their session; zombies do not count."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def remove(self) -> None:
        """Kill what is left in it and remove it."""
        deadline = time.monotonic() + EMPTY_S
        while time.monotonic() < deadline:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.01)


def _parents(controller: str = "memory") -> Iterator[Path]:
    """Where a group could be made: below our own, in v1 or v2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controller in controllers.split(","):
            yield MOUNTS / controller / group[1:]
        elif not controllers:
            yield from (top / group[1:] for top in (MOUNTS, MOUNTS / "unified"))


def make(limit: int) -> Group:
    """A new group with at most so many bytes of memory. Raises OSError if none can be made."""
    for parent in _parents():
        path = parent / f"torture-{os.getpid()}-{time.monotonic_ns()}"
        with contextlib.suppress(OSError):
            path.mkdir()
            if _limit(path, limit):
                return Group(path)
            path.rmdir()
    raise OSError("no memory cgroup can be made below our own")


def _limit(path: Path, limit: int) -> bool:
    """Whether the group has a memory controller. In v2 its parent may have to hand it down."""
    if not any((path / name).exists() for name in LIMITS):
        with contextlib.suppress(OSError):
            (path.parent / "cgroup.subtree_control").write_text("+memory")
    there = [name for name in LIMITS if (path / name).exists()]
    for name in there:
        (path / name).write_text(str(limit * LIMITS[name]))
    return bool(there)


def cpu_groups(cores: int) -> list[Group]:
    """A group with so many cores' worth of time, and one below it without a limit of its own.

    Raises OSError if none can be made.
    """
    for parent in _parents("cpu"):
        path = parent / f"torture-{os.getpid()}-{time.monotonic_ns()}"
        with contextlib.suppress(OSError):
            path.mkdir()
            if _limit_time(path, cores):
                (path / "inner").mkdir()
                return [Group(path), Group(path / "inner")]
            path.rmdir()
    raise OSError("no cpu cgroup can be made below our own")


def _limit_time(path: Path, cores: int) -> bool:
    """Whether the group has a cpu controller, which now has a quota."""
    if (path / "cpu.cfs_quota_us").exists():
        (path / "cpu.cfs_quota_us").write_text(str(100_000 * cores))
        (path / "cpu.cfs_period_us").write_text("100000")
        return True
    if not (path / "cpu.max").exists():
        with contextlib.suppress(OSError):
            (path.parent / "cgroup.subtree_control").write_text("+cpu")
    if (path / "cpu.max").exists():
        (path / "cpu.max").write_text(f"{100_000 * cores} 100000")
        return True
    return False


def why_not() -> str:
    """Why no group can be made here; "" if one can."""
    try:
        make(1 << 30).remove()
    except OSError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Group]:
    """A group that is removed at the end, and every process in it killed."""
    group = make(limit)
    try:
        yield group
    finally:
        group.remove()
