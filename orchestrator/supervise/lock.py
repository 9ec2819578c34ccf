"""One orchestrator for a spool: a file lock that is never unlinked.

The lock saves work; it is not what keeps a spool right. Where the file system has no locks, a
warning is all. `hold` takes the lock around everything an orchestrator does; `announce` and
`renounce` say in orchestrator.json who holds it, for the message that the next one to come gets.
The only file that imports filelock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from msgspec.structs import asdict
from msgspec.structs import replace as replaced

from gpuspool.spool.codec import pretty
from gpuspool.spool.errors import OrchestratorLive
from gpuspool.spool.holder import is_holder_alive, read_holder
from gpuspool.spool.identity import liveness, myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.open_folder import folder_id
from gpuspool.spool.publish import naming, patiently, replace
from gpuspool.spool.records import Holder
from gpuspool.spool.states import Life
from gpuspool.spool.trust import user_name

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
    mode = _mode(layout)
    _keep_from_readers(layout, mode)
    lock = FileLock(
        layout.lock, mode=mode, fallback_to_soft=False, preserve_lock_file=True, thread_local=False
    )
    warning = _acquire(lock, layout)
    try:
        yield warning
    finally:
        if warning is None:
            # If this fails the end of the process gives the lock back as well.
            with contextlib.suppress(OSError):
                patiently(lock.release)


def refuse_held(layout: Layout) -> None:
    """Raise OrchestratorLive where an orchestrator on this host is seen to hold the spool.

    Takes no lock, and so writes nothing and is in nobody's way. An orchestrator on another host is
    not seen.
    """
    if is_holder_alive(layout) or any(_lockers(layout)):
        raise OrchestratorLive(f"{layout.root} is held by {describe_holder(layout)}")


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
    folder = folder_id(layout.root)
    holder = Holder(**asdict(myself()), epoch=epoch, since=time.time(), folder=folder)
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
    if not _may_hold(holder):
        # Nobody who announced himself has the lock, so somebody has it who did not.
        lockers = list(_lockers(layout))
        if lockers:
            return (
                f"{' and '.join(lockers)}, which did not announce itself as an orchestrator. If it "
                f"is not about to do so, end it, and see who may open {layout.lock}: whoever may "
                "can hold it."
            )
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


def _may_hold(holder: Holder | None) -> bool:
    """Whether the orchestrator that announced itself last may still be the one with the lock."""
    if holder is None or holder.until is not None:
        return False
    return liveness(holder) is not Life.DEAD


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
