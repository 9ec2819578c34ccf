"""Which process is meant, and whether it is proved dead on this host.

On the same kernel and in the same pid namespace, a process is dead when its pid is free, is a
zombie, or belongs to a process with another start time. Of a process elsewhere nothing is known
here; `liveness` tells how a lease proves it dead. Clocks and mtimes of different machines are never
compared.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from pathlib import Path

from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import Identity
from gpuspool.spool.states import Life

# A start time that was shifted by a time namespace may be off by so many ticks of 10 ms. No pid is
# given to another process as soon as that.
ROUNDING = 1

# The pid namespace that the kernel begins with: that of processes in no container.
HOST_PID_NS = "pid:[4026531836]"

# What a host is called that nobody gave a name.
NO_NAMES = frozenset(("", "(none)", "localhost", "localhost.localdomain"))


@functools.cache
def _here() -> tuple[str, str, str]:
    """(host name, boot id, pid namespace) of this process. Raises OSError."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return os.uname().nodename, boot_id, os.readlink("/proc/self/ns/pid")


@functools.cache
def _machine() -> str:
    """What names this machine whatever is booted on it, hashed; "" where nothing does.

    A container may have the file of its image, which others have too. So it counts only for
    processes of the host itself. Machines that were cloned have one id, and each would take the
    others for what it was before a boot. Their names tell them apart, unless they have none.
    """
    if os.readlink("/proc/self/ns/pid") != HOST_PID_NS or os.uname().nodename in NO_NAMES:
        return ""
    with contextlib.suppress(OSError):
        machine_id = Path("/etc/machine-id").read_bytes().strip()
        if machine_id:
            return hashlib.sha256(b"gpuspool " + machine_id).hexdigest()[:16]
    return ""


@functools.cache
def _blindness() -> str:
    """Why this process cannot tell which processes of its host live; "" if it can."""
    try:
        _here()
        own = os.readlink("/proc/self")
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    # After `unshare --pid` without `--mount-proc` a pid names one process for kill(2) and another
    # one in /proc.
    if own != str(os.getpid()):
        return "/proc shows the processes of another pid namespace"
    return ""


def _stat(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in clock ticks since boot) of a process.

    None where there is no such process, or /proc hides it.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
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


def own_age_s() -> float:
    """The seconds since this process was started, those of its interpreter's start included."""
    ticks = os.sysconf("SC_CLK_TCK")
    # The clock shows what the kernel adds to it, and the identity holds the start without that.
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME) - _boot_offset() / ticks
    return max(0.0, now_s - myself().pid_start / ticks)


def identity_of(pid: int) -> Identity | None:
    """The identity of a process of this host, None where it does not exist."""
    stat = _stat(pid)
    if stat is None:
        return None
    host, boot_id, pid_ns = _here()
    return Identity(
        host=host, boot_id=boot_id, pid_ns=pid_ns, pid=pid, pid_start=stat[1], machine=_machine()
    )


def myself() -> Identity:
    """The identity of this process. Raises UsageError where it cannot be told.

    Then nothing can be run here: nobody could tell a dead worker from a living one, so a task could
    be run twice, or a stranger killed. Whoever only looks takes all processes for those of another
    host.
    """
    mine = None
    why = _blindness()
    if not why:
        mine = identity_of(os.getpid())
    if mine is None:
        raise UsageError(
            f"Processes cannot be told apart here: {why or '/proc does not show this one'}. "
            "gpuspool needs the /proc of its own pid namespace, with "
            "/proc/sys/kernel/random/boot_id. Mount it (`unshare --mount-proc`, or `mount -t proc "
            "proc /proc` in a container or chroot), then run the same command again."
        )
    return mine


def is_here(who: Identity) -> bool:
    """Whether its pid means something to this process."""
    return not _blindness() and (who.host, who.boot_id, who.pid_ns) == _here()


def is_same_host(one: Identity, other: Identity) -> bool:
    """Whether two processes see the same process table: that of one boot and one pid namespace."""
    return (one.host, one.boot_id, one.pid_ns) == (other.host, other.boot_id, other.pid_ns)


def is_myself(who: Identity) -> bool:
    """Whether this very process is meant."""
    if who.pid != os.getpid() or not is_here(who):
        return False
    stat = _stat(who.pid)
    return stat is not None and abs(stat[1] - who.pid_start) <= ROUNDING


def liveness(who: Identity) -> Life:
    """ALIVE or DEAD with proof, ELSEWHERE where this process cannot tell."""
    if not is_here(who):
        return Life.DEAD if _was_rebooted(who) else Life.ELSEWHERE
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


def _was_rebooted(who: Identity) -> bool:
    """Whether a process ran on this very machine before it was booted anew."""
    if _blindness() or not who.machine or who.machine != _machine():
        return False
    host, boot_id, _ = _here()
    return who.host == host and who.boot_id != boot_id


def is_stopped(pid: int) -> bool:
    """Whether a process of this host is stopped, by a signal or a debugger, and runs nothing."""
    stat = _stat(pid)
    return stat is not None and stat[0] in "Tt"


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process that /proc does not show (hidepid).

    It may be another user's, or one of ours that we may not trace (hidepid=ptraceable).
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        # There is no such process, or this number cannot be that of one.
        return False
    # It was born since /proc was looked at, or it is hidden. A later look tells these apart.
    return True
