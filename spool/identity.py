"""Which process is meant, and whether it is proved dead on this host.

On the same kernel and in the same pid namespace, a process is dead when its pid is free, is a
zombie, or belongs to a process with another start time. Of a process elsewhere nothing is known
here; `liveness` tells how a lease proves it dead. Clocks and mtimes of different machines are never
compared.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from gpuspool.spool.errors import SpoolError
from gpuspool.spool.records import Identity
from gpuspool.spool.states import Life

# A start time that was shifted by a time namespace may be off by so many ticks of 10 ms. No pid is
# given to another process as soon as that.
ROUNDING = 1


@functools.cache
def _here() -> tuple[str, str, str]:
    """(host name, boot id, pid namespace) of this process."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return os.uname().nodename, boot_id, os.readlink("/proc/self/ns/pid")


def _stat(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in clock ticks since boot); None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name of the program stands in parentheses and may itself hold some, so split behind it.
    fields = text.rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19]) - _boot_offset()


@functools.cache
def _boot_offset() -> int:
    """What the kernel adds to the start times that it shows to this process, in clock ticks.

    A time namespace (`unshare --time`, a container that was restored from a checkpoint) shifts the
    time since boot for those in it. Without the shift all processes of a host tell the same.
    """
    try:
        lines = Path("/proc/self/timens_offsets").read_text().splitlines()
    except FileNotFoundError:
        # A kernel without time namespaces.
        return 0
    for line in lines:
        clock, seconds, nanoseconds = line.split()
        if clock in ("boottime", "7"):
            ticks = os.sysconf("SC_CLK_TCK")
            return int(seconds) * ticks + int(nanoseconds) * ticks // 1_000_000_000
    return 0


def identity_of(pid: int) -> Identity | None:
    """The identity of a process of this host, None where it does not exist."""
    stat = _stat(pid)
    if stat is None:
        return None
    host, boot_id, pid_ns = _here()
    return Identity(host=host, boot_id=boot_id, pid_ns=pid_ns, pid=pid, pid_start=stat[1])


@functools.cache
def _is_proc_ours() -> bool:
    """Whether /proc shows the pid namespace that this process lives in.

    It does not after `unshare --pid` without `--mount-proc`: there a pid names one process for
    kill(2) and another one in /proc.
    """
    return os.readlink("/proc/self") == str(os.getpid())


def myself() -> Identity:
    """The identity of this process. Raises SpoolError where /proc does not show it."""
    mine = identity_of(os.getpid()) if _is_proc_ours() else None
    if mine is None:
        raise SpoolError(
            "/proc shows the processes of another pid namespace, so nothing can be told of any "
            "worker; mount it anew (`unshare --mount-proc`), then run the same command again"
        )
    return mine


def is_here(who: Identity) -> bool:
    """Whether its pid means something to this process."""
    return _is_proc_ours() and (who.host, who.boot_id, who.pid_ns) == _here()


def liveness(who: Identity) -> Life:
    """ALIVE or DEAD with proof, ELSEWHERE where this process cannot tell."""
    if not is_here(who):
        return Life.ELSEWHERE
    stat = _stat(who.pid)
    if stat is None:
        if _is_hidden(who.pid):
            return Life.ELSEWHERE
        return Life.DEAD
    state, pid_start = stat
    # Z is a zombie, X a process that is just being removed: neither runs anything any more.
    is_another = abs(pid_start - who.pid_start) > ROUNDING
    if is_another or state in "ZX":
        return Life.DEAD
    return Life.ALIVE


def is_stopped(pid: int) -> bool:
    """Whether a process of this host is stopped, by a signal or a debugger, and runs nothing."""
    stat = _stat(pid)
    return stat is not None and stat[0] in "Tt"


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, of another user, that /proc does not show (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        # There is no such process, or this number cannot be that of one.
        return False
    return False
