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

from gpuspool.spool.records import Identity
from gpuspool.spool.states import Life


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
    return fields[0].decode(), int(fields[19])


def identity_of(pid: int) -> Identity | None:
    """The identity of a process of this host, None where it does not exist."""
    stat = _stat(pid)
    if stat is None:
        return None
    host, boot_id, pid_ns = _here()
    return Identity(host=host, boot_id=boot_id, pid_ns=pid_ns, pid=pid, pid_start=stat[1])


def myself() -> Identity:
    """The identity of this process."""
    mine = identity_of(os.getpid())
    assert mine is not None
    return mine


def is_here(who: Identity) -> bool:
    """Whether its pid means something to this process."""
    return (who.host, who.boot_id, who.pid_ns) == _here()


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
    if pid_start != who.pid_start or state in "ZX":
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
