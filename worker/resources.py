"""What this process has used so far: time and memory, with what it has started.

Called for the statistics of an attempt, and for its lines in usage/.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

# So many files of /proc are looked at to find what this process has started. A command of some
# processes takes a dozen; what starts thousands is counted in part.
MOST_LOOKED_AT = 1000

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


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


class Family(msgspec.Struct, frozen=True):
    """What this process and all that it has started use.

    resident_bytes: of those that live; what two of them share counts twice. cpu_s: the processor
    time of these, and of those that have ended and were waited for.
    """

    resident_bytes: int = 0
    cpu_s: float = 0.0


def family() -> Family:
    """What this process and its descendants use now; nothing where /proc does not tell."""
    resident_bytes = 0
    cpu_s = 0.0
    for pid in (os.getpid(), *_descendants()):
        # One that ends just now counts no more.
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            # Behind the name of the program, which may hold anything.
            words = stat.rpartition(b")")[2].split()
            resident_bytes += int(words[21]) * _PAGE_BYTES
            # Its own in user mode and in the kernel, and that of the children it has waited for: so
            # the time of a command stays in the sum when it ends.
            cpu_s += sum(map(int, words[11:15])) / _TICKS_A_SECOND
    return Family(resident_bytes, cpu_s)


# The kernel tells the children of each thread by itself. Whoever has none, as most jobs on a GPU,
# is asked nothing but that.
def _descendants() -> Iterator[int]:
    """The pids of what this process has started, children first."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    n_looked_at = 0
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        for thread in _names(f"/proc/{pid}/task"):
            n_looked_at += 1
            if n_looked_at > MOST_LOOKED_AT:
                return
            for child in _children(pid, thread):
                yield child
                waiting.append(child)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _children(pid: int, thread: str) -> list[int]:
    """The children of a thread; none where it has ended, or where the kernel does not tell."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split()))
    except OSError:
        return []
