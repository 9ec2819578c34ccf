"""Which process is meant, and whether it is proved dead.

On the same kernel and in the same pid namespace, a process is dead when its pid is free, is a
zombie, or belongs to a process with another start time. Of a process elsewhere nothing is known
here: only a beat that does not move for a whole lease, on our own monotonic clock, proves it dead
(`LeaseWatch`). Clocks and mtimes of different machines are never compared.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Container, Iterator
from pathlib import Path

from gpuspool.spool.records import Identity

# in the environment of a worker and so of all that it starts: <run>/<attempt>
MARK = "GPUSPOOL_ATTEMPT"
BLIND = 0.3  # of a lease
ALIVE, DEAD, ELSEWHERE = "alive", "dead", "elsewhere"


@functools.cache
def _here() -> tuple[str, str, str]:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return os.uname().nodename, boot_id, os.readlink("/proc/self/ns/pid")


def _stat(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in clock ticks since boot), or None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])


def identity_of(pid: int) -> Identity | None:
    """The identity of a process of this host, None where it does not exist."""
    stat = _stat(pid)
    if stat is None:
        return None
    host, boot_id, pid_ns = _here()
    return Identity(host=host, boot_id=boot_id, pid_ns=pid_ns, pid=pid, pid_start=stat[1])


def myself() -> Identity:
    mine = identity_of(os.getpid())
    assert mine is not None
    return mine


def is_here(who: Identity) -> bool:
    """Whether its pid means something to this process."""
    return (who.host, who.boot_id, who.pid_ns) == _here()


def liveness(who: Identity) -> str:
    """ALIVE or DEAD with proof, ELSEWHERE where this process cannot tell."""
    if not is_here(who):
        return ELSEWHERE
    stat = _stat(who.pid)
    if stat is None and _is_hidden(who.pid):
        return ELSEWHERE
    if stat is None or stat[1] != who.pid_start or stat[0] in "ZX":
        return DEAD
    return ALIVE


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, of another user, that /proc does not show (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):  # or no number of a process
        return False
    return False


def run_mark(root: Path, run_id: str) -> str:
    """The run of one spool, and not that of a copy of it, whose attempts have the same names."""
    return f"{run_id}.{os.stat(root).st_ino}"


def mark_of(run: str, attempt: str) -> str:
    return f"{run}/{attempt}"


def kill_marked(marked_run: str, attempts: Container[str], spare: Container[int] = ()) -> int:
    """SIGKILL what these attempts of a run started, but for the spared pids; returns how many.

    It finds what a job started in a session of its own, which no process group reaches.
    """
    count = 0
    for pid, mark in _marked():
        run, _, attempt = mark.partition("/")
        if run == marked_run and attempt in attempts and pid not in spare:
            count += 1
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    return count


def kill_descendants(pid: int) -> int:
    """SIGKILL the children of a process, and theirs, whatever their environment; returns how many."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(name)] = int(
                Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1]
            )
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    for child in found - {pid}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
    return len(found) - 1


def _marked() -> Iterator[tuple[int, str]]:
    """(pid, mark) of every process that this user may look into and that bears one."""
    begin = f"{MARK}=".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid != os.geteuid():
                continue
            for entry in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                if entry.startswith(begin):
                    yield int(name), entry[len(begin) :].decode(errors="replace")


class LeaseWatch:
    """Since when, on this process's own clock, each watched beat has not moved."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._seen: dict[str, tuple[object, float, float]] = {}

    def is_expired(self, name: str, beats: object, now: float, lease_s: float = 0.0) -> bool:
        """Whether `beats` (any value that changes while its owner lives) has been the same for a
        lease, in all looks.

        Between two looks at most BLIND of it counts: who did not look (on a host that was
        suspended) knows nothing.
        """
        lease_s = lease_s or self.lease_s
        seen = self._seen.get(name)
        if seen is None or seen[0] != beats:
            self._seen[name] = (beats, 0.0, now)
            return False
        still_s = seen[1] + min(now - seen[2], BLIND * lease_s)
        self._seen[name] = (beats, still_s, now)
        return still_s > lease_s
