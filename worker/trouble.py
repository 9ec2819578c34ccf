"""What an exception of user code says about the world rather than about the task.

A full disk, a read-only or vanished file system would fail every task that follows; so would a
device whose context is broken, or a process without descriptors. Then the attempt ends and the
tasks stay. The judgement is by type and errno and by looking, never by text: numpy and torch report
a full disk without any errno.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpuspool.spool.errors import Unusable as Unusable
from gpuspool.spool.publish import probe_folder
from gpuspool.worker.devices import is_device_broken
from gpuspool.worker.results import to_error

FULL = (errno.ENOSPC, errno.EDQUOT)  # no input is to blame for these
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
CAUSES = 10  # of an exception that are looked at: libraries wrap what the system said
LOW_BYTES, LOW_INODES = (
    1024 * 1024,
    64,
)  # a neighbour may have made room since a write failed for want of it


def raise_trouble(raised: BaseException, folders: Iterable[Path]) -> None:
    """Returns where the task is to blame. Raises OSError for a file system in trouble, Unusable for
    this process.

    `folders` are those that the tasks in hand were to write to.
    """
    places = set(folders)
    for error in _causes(raised):
        if is_device_broken(error):
            raise Unusable(
                f"{to_error(raised).traceback}gpuspool: its device is unusable after this"
            )
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
            raise Unusable(f"{to_error(raised).traceback}gpuspool: it has no file descriptors left")
        if isinstance(error, OSError) and error.errno in FULL:
            where = error.filename or str(next(iter(places), "somewhere in the job"))
            raise OSError(error.errno, os.strerror(error.errno), where)
    _look_at_log()
    for folder in places:
        probe_folder(folder)
        _refuse_full(os.statvfs(folder), str(folder), LOW_BYTES, LOW_INODES)


def _causes(raised: BaseException) -> Iterator[BaseException]:
    """The exception, and those behind it."""
    error: BaseException | None = raised
    for _ in range(CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _look_at_log() -> None:
    """A job that prints fails where its log cannot be written; one that closed its stdout did so
    itself.
    """
    try:
        path, stat = os.readlink("/proc/self/fd/1"), os.fstatvfs(1)
    except OSError:
        return
    _refuse_full(stat, path, 1, 0)
    try:
        os.write(
            1, b""
        )  # tells of a file system that an error has made read-only, which statvfs does not
    except OSError as error:
        if error.errno != errno.EBADF:
            raise OSError(error.errno, error.strerror, path) from None


def _refuse_full(stat: os.statvfs_result, path: str, low_bytes: int, low_inodes: int) -> None:
    if stat.f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    if stat.f_blocks and stat.f_bavail * stat.f_frsize < low_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    if stat.f_files and stat.f_favail < low_inodes:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (inodes)", path)
