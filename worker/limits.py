"""Limits of this process (`ulimit`) that it used up, one task after the other.

A log that grew to the largest size that a file may have makes every task fail that prints. Memory
that earlier tasks left behind makes a later one fail that asks for a little. The tasks in hand are
not to blame: a fresh process, with a log of its own, can do them. So a failure which such a limit
explains ends the attempt, if this process completed anything before; a task that fails so in a
fresh process has failed. Called by `settle` at each failure.
"""

from __future__ import annotations

import errno
import os

from gpuspool.spool.records import Error
from gpuspool.spool.states import ErrorKind

# With less than this part of its address space in use after a failure, a process does not lack
# memory for what others left: the task itself asked for too much.
MUCH = 0.5


def used_up(error: Error) -> OSError | None:
    """The limit of this process that explains a failed task, as an error with words; or None."""
    # Only here: nearly no process fails a task, and still fewer have limits.
    import resource

    most_bytes = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if most_bytes != resource.RLIM_INFINITY and _log_bytes() >= most_bytes:
        words = f"the log is as large as a file may be: {most_bytes} bytes (ulimit -f)"
        return OSError(errno.EFBIG, words)
    most_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
    is_limited = most_bytes != resource.RLIM_INFINITY and error.kind is ErrorKind.HOST_OOM
    if is_limited and _address_space_bytes() > MUCH * most_bytes:
        words = f"this process may have {most_bytes} bytes of address space (ulimit -v)"
        return OSError(errno.ENOMEM, words)
    return None


def _log_bytes() -> int:
    try:
        return os.fstat(1).st_size
    except OSError:
        # The job has closed its stdout.
        return 0


def _address_space_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
