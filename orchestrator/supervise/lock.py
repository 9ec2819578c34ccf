"""One orchestrator for a spool: a file lock that is never unlinked.

The lock saves work; it is not what keeps a spool right. Where the file system has no locks, a
warning is all. `hold` takes the lock around everything an orchestrator does; `announce` and
`renounce` say in orchestrator.json who holds it, for the message that the next one to come gets.
The only file that imports filelock.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout
from msgspec.structs import asdict
from msgspec.structs import replace as replaced

from gpuspool.spool.codec import pretty
from gpuspool.spool.errors import OrchestratorLive
from gpuspool.spool.holder import read_holder
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import naming, patiently, replace
from gpuspool.spool.records import Holder

# What file systems answer that have no locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def hold(layout: Layout) -> Iterator[str | None]:
    """Hold the spool's lock as long as the block lasts.

    Yields None, or a warning where the file system has no locks. Raises OrchestratorLive where
    somebody else holds it, OSError.
    """
    # The file of the lock stays when the lock is given back. If it were unlinked, one process could
    # hold the lock on the old file while another makes a new one and locks that, and both would
    # run. No fallback to a soft lock either: a file that is there or not outlives a killed process,
    # and every later start would be refused until somebody deletes it by hand.
    lock = FileLock(
        layout.lock, fallback_to_soft=False, preserve_lock_file=True, thread_local=False
    )
    warning = _acquire(lock, layout)
    try:
        yield warning
    finally:
        if warning is None:
            # If this fails the end of the process gives the lock back as well.
            with contextlib.suppress(OSError):
                patiently(lock.release)


def _acquire(lock: FileLock, layout: Layout) -> str | None:
    try:
        with naming(layout.lock):
            lock.acquire(timeout=0)
    except Timeout:
        raise OrchestratorLive(f"{layout.root} is held by {describe_holder(layout)}") from None
    except NotImplementedError as error:
        return _warning(error)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return _warning(error)
    return None


def _warning(error: Exception) -> str:
    return (
        f"no file locks on this file system ({error}): be sure that no other gpuspool runs this "
        "spool"
    )


def announce(layout: Layout, epoch: int) -> None:
    """Write down that this process holds the spool, by rename(2). Raises OSError."""
    holder = Holder(**asdict(myself()), epoch=epoch, since=time.time())
    replace(layout.holder, pretty(holder))


def renounce(layout: Layout) -> None:
    """Write down that this process no longer holds the spool, by rename(2). Raises OSError.

    A process that called the Python API lives on, so its being alive says nothing. What another
    orchestrator announced meanwhile stays.
    """
    holder = read_holder(layout)
    me = myself()
    if holder is None or holder.host != me.host or holder.pid != me.pid:
        return
    ended = replaced(holder, until=time.time())
    replace(layout.holder, pretty(ended))


def describe_holder(layout: Layout) -> str:
    """Who holds the spool and what to do about it, for a message."""
    holder = read_holder(layout)
    if holder is None:
        return (
            "another orchestrator. Wait for it, or find it with `ps` on the hosts that share this "
            "folder."
        )
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return (
        f"an orchestrator on host {holder.host}, pid {holder.pid}, since {since}. "
        "Wait for it (`gpuspool wait`), or stop it (`gpuspool drain`)."
    )
