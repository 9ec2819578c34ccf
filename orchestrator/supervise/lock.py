"""One orchestrator for a spool: a file lock that is never unlinked. The only file that imports
filelock.

The lock saves work, it is not what keeps a spool right: where the file system has no locks, a
warning is all.
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

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def hold(layout: Layout) -> Iterator[str | None]:
    """Hold the spool's lock; yields a warning where locks do not work. Raises OrchestratorLive."""
    lock = FileLock(
        layout.lock, fallback_to_soft=False, preserve_lock_file=True, thread_local=False
    )
    warning = None
    try:
        with naming(layout.lock):
            lock.acquire(timeout=0)
    except Timeout:
        raise OrchestratorLive(f"{layout.root} is held by {describe_holder(layout)}") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        warning = f"no file locks on this file system ({error}): be sure that no other gpuspool runs this spool"
    try:
        yield warning
    finally:
        if warning is None:
            with contextlib.suppress(OSError):  # the end of this process gives it back as well
                patiently(lock.release)


def announce(layout: Layout, epoch: int) -> None:
    """Tell who comes second whom to ask."""
    holder = Holder(**asdict(myself()), epoch=epoch, since=time.time())
    replace(layout.holder, pretty(holder))


def renounce(layout: Layout) -> None:
    """The same, once it is over: a process that called the Python API may live on."""
    holder = read_holder(layout)
    if holder is not None and (holder.host, holder.pid) == (myself().host, myself().pid):
        replace(layout.holder, pretty(replaced(holder, until=time.time())))


def describe_holder(layout: Layout) -> str:
    holder = read_holder(layout)
    if holder is None:
        return "another orchestrator. Wait for it, or find it with `ps` on the hosts that share this folder."
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return (
        f"an orchestrator on host {holder.host}, pid {holder.pid}, since {since}. "
        "Wait for it (`gpuspool wait`), or stop it (`gpuspool drain`)."
    )
