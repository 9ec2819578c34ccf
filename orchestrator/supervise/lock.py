"""One start at a time: a file lock that is never unlinked.

A start holds it while it is admitted: while it looks who else is there, repairs what is damaged,
and takes its epoch. Then it gives the lock back, and others may come in beside it. The last parent
of all holds it while it cleans up, so that nobody comes in meanwhile. The lock saves work; it is
not what keeps a spool right, since all that matters is decided by a link(2). Where the file system
has no locks, a warning is all. The only file that imports filelock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gpuspool.spool.errors import OrchestratorLive
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import naming, patiently
from gpuspool.spool.trust import user_name

# A start waits so long for another one to be admitted, which takes seconds.
PATIENCE_S = 60.0

# What file systems answer that have no locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def hold(layout: Layout, patience_s: float | None = None) -> Iterator[str | None]:
    """Hold the spool's lock as long as the block lasts; wait for it for PATIENCE_S.

    patience_s: or so long. Yields None, or a warning where the file system has no locks. Raises
    OrchestratorLive where somebody else holds it all the time, OSError.
    """
    # The file of the lock stays when the lock is given back. If it were unlinked, one process could
    # hold the lock on the old file while another makes a new one and locks that, and both would
    # run. No fallback to a soft lock either: a file that is there or not outlives a killed process,
    # and every later start would be refused until somebody deletes it by hand.
    mode = _mode(layout)
    _keep_from_readers(layout, mode)
    lock = FileLock(
        layout.lock, mode=mode, fallback_to_soft=False, preserve_lock_file=True, thread_local=False
    )
    warning = _acquire(lock, layout, PATIENCE_S if patience_s is None else patience_s)
    try:
        yield warning
    finally:
        if warning is None:
            # If this fails the end of the process gives the lock back as well.
            with contextlib.suppress(OSError):
                patiently(lock.release)


# Whoever can open a file, be it for reading only, can lock it, and would keep every orchestrator
# out for as long as he likes. So the lock is for those alone who may write to the spool: they could
# stop a run in other ways too.
def _mode(layout: Layout) -> int:
    """The permissions of the lock's file: those of the spool's folder, but without its readers."""
    if os.stat(layout.root).st_mode & stat.S_IWGRP:
        return 0o660
    return 0o600


def _keep_from_readers(layout: Layout, mode: int) -> None:
    """Give a lock file of this user's that is there already its permissions.

    An older version, or a folder that was not shared then, may have given it others. Somebody
    else's file stays as it is.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        fd = os.open(layout.lock, flags)
        try:
            there = os.fstat(fd)
            is_plain = stat.S_ISREG(there.st_mode) and there.st_nlink == 1
            if is_plain and stat.S_IMODE(there.st_mode) != mode:
                os.fchmod(fd, mode)
        finally:
            os.close(fd)


def _acquire(lock: FileLock, layout: Layout, patience_s: float) -> str | None:
    try:
        with naming(layout.lock):
            lock.acquire(timeout=patience_s)
    except Timeout:
        raise OrchestratorLive(
            f"{layout.lock} was not to be had for {patience_s:.0f} s: it is held by "
            f"{describe_holder(layout)}"
        ) from None
    except NotImplementedError as error:
        return _warning(error)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return _warning(error)
    return None


def _warning(error: Exception) -> str:
    return (
        f"no file locks on this file system ({error}): starts of this run at the same moment may "
        "do some work twice"
    )


def describe_holder(layout: Layout) -> str:
    """Who holds the lock and what to do about it, for a message."""
    lockers = list(_lockers(layout))
    if lockers:
        return (
            f"{' and '.join(lockers)}. A start holds it for some seconds; if this one does not "
            f"end, end it, and see who may open {layout.lock}: whoever may can hold it."
        )
    return (
        "another start, on another host or in another container. It holds it for some seconds; "
        "find it with `ps` on the hosts that share this folder."
    )


def _lockers(layout: Layout) -> Iterator[str]:
    """The processes of this host that hold the lock's file, each in words, as the kernel tells.

    None where /proc/locks does not tell: the holder is on another host, or in another container.
    """
    with contextlib.suppress(OSError):
        there = os.stat(layout.lock)
        file = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}:{there.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            # A line of a process that waits has an arrow behind its number, and is not of interest.
            if len(words) > 5 and words[1] != "->" and words[5] == file and int(words[4]) > 0:
                yield _describe_process(int(words[4]))


def _describe_process(pid: int) -> str:
    """A process in words: its number, its program and its user, as far as they can be told."""
    text = f"process {pid}"
    with contextlib.suppress(OSError):
        folder = Path(f"/proc/{pid}")
        owner = user_name(folder.stat().st_uid)
        text += f" ({folder.joinpath('comm').read_text().strip()!r} of user {owner})"
    return text
