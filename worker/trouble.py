"""What an exception of user code says about the world rather than about the task.

A full disk, a read-only or vanished file system would fail every task that follows. So would a
device whose context is broken, or a process without file descriptors. In all these cases the
attempt ends and its tasks stay without a verdict.

The judgement is by type and errno, and by looking; never by text, since numpy and torch report a
full disk without any errno. An error says where to look: the folder of the file that it names, of
the inputs, of the outputs. What is found there decides: a file that is missing or cannot be read in
a folder that can is the task's own affair.

Called for everything that user code raises. Decision 10 says more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from gpuspool.spool.errors import AttemptError, Unusable
from gpuspool.spool.publish import probe_folder
from gpuspool.worker.causes import causes
from gpuspool.worker.devices import find_device_fault
from gpuspool.worker.results import to_error
from gpuspool.worker.starting import NotNow, NotStartable, has_no_room

# A full disk and a used-up quota: no input is ever to blame for these.
FULL = (errno.ENOSPC, errno.EDQUOT)
# A file system that is dead or stale, like the mount of a server that is gone, gives one of these
# for all that lies on it. Some are also those of one bad file.
DEAD = (
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ENXIO,
    errno.EREMOTEIO,
    errno.ESHUTDOWN,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
# This process, or the whole system, may open no more files.
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
# A file system with less room than this counts as full: since the write that failed, a neighbour
# may have made a little.
LOW_BYTES = 1024 * 1024
# A file system that can hold fewer new files than this counts as full, for the same reason.
LOW_INODES = 64


def raise_trouble(
    raised: BaseException,
    folders: Iterable[Path],
    out: Path | None = None,
    inputs: Iterable[Path] = (),
) -> None:
    """Return where the task is to blame for what it raised.

    folders: those that the tasks in hand were to write to. out: the folder that all outputs lie in.
    inputs: the files that these tasks read. Raises OSError for a file system in trouble and for a
    command that cannot be started, Unusable for this process, any other AttemptError as it is, and
    NotNow for what passes.
    """
    places = set(folders)
    files = list(inputs)
    for error in causes(raised):
        _judge(error, raised, places)
        if isinstance(error, OSError):
            if out is not None:
                raise_trouble_at(error, out)
            _refuse_dead(error, files)
    fault = find_device_fault()
    if fault:
        words = f"gpuspool: its device is unusable after this: {fault}"
        raise Unusable(f"{to_error(raised).traceback}{words}")
    _look_at_log()
    for folder in places:
        probe_folder(folder)
        _refuse_full(os.statvfs(folder), str(folder), LOW_BYTES, LOW_INODES)


def _judge(error: BaseException, raised: BaseException, places: set[Path]) -> None:
    """Raise if `error`, one of the causes of `raised`, is never a task's fault."""
    if isinstance(error, (AttemptError, NotNow, NotStartable)):
        raise error
    if has_no_room(error):
        number = getattr(error, "errno", errno.EAGAIN)
        raise NotNow(OSError(number, f"no process or thread can be started: {error}"))
    if not isinstance(error, OSError):
        return
    if error.errno in NO_DESCRIPTORS:
        words = "gpuspool: it has no file descriptors left"
        raise Unusable(f"{to_error(raised).traceback}{words}")
    if error.errno in FULL:
        where = error.filename or str(next(iter(places), "somewhere in the job"))
        raise OSError(error.errno, os.strerror(error.errno), where)


def raise_trouble_at(error: OSError, home: Path) -> None:
    """Raise OSError where an error names something in this folder, and the folder is in trouble."""
    if not any(_is_in(path, home) for path in _paths(error)):
        return
    if error.errno in FULL:
        raise error
    probe_folder(home)
    _refuse_full(os.statvfs(home), str(home), LOW_BYTES, LOW_INODES)


def _paths(error: OSError) -> list[Path]:
    """The files that an error of the system names: none, one or two."""
    named = (error.filename, error.filename2)
    # A number is a descriptor: its file may have any name by now.
    return [Path(os.fsdecode(name)) for name in named if isinstance(name, (str, bytes, Path))]


# By whole names: `spool-K` is not the folder of `spool-K-weights`.
def _is_in(path: Path, home: Path) -> bool:
    """Whether a path leads into a folder, by its names or through links."""
    if path.absolute().is_relative_to(home.absolute()):
        return True
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(home))


def _refuse_dead(error: OSError, inputs: list[Path]) -> None:
    """Raise OSError where an error may come from a dead file system, and a look confirms it.

    The look is at the folders of what the error names, and of the inputs: errors of read(2) name
    nothing.
    """
    if error.errno not in DEAD:
        return
    for path in [*_paths(error), *inputs]:
        folder = path.absolute().parent
        try:
            with os.scandir(folder) as entries:
                next(entries, None)
        except OSError as trouble:
            if trouble.errno in DEAD:
                raise OSError(trouble.errno, os.strerror(trouble.errno), str(folder)) from None


def _look_at_log() -> None:
    """Raise the OSError that writing to the log would.

    A job that prints fails where its log cannot be written. One that closed its stdout did that
    itself.
    """
    try:
        path = os.readlink("/proc/self/fd/1")
        stat = os.fstatvfs(1)
    except OSError:
        return
    _refuse_full(stat, path, 1, 0)
    try:
        # Writes nothing, but fails on a file system that an error has made read-only: statvfs(2)
        # does not tell of that.
        os.write(1, b"")
    except OSError as error:
        if error.errno != errno.EBADF:
            raise OSError(error.errno, error.strerror, path) from None


def _refuse_full(stat: os.statvfs_result, path: str, low_bytes: int, low_inodes: int) -> None:
    """Raise OSError for a file system that is read-only, or has less room than this.

    A count of all blocks or inodes that is 0 means that the file system does not count them.
    """
    if stat.f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    if stat.f_blocks and stat.f_bavail * stat.f_frsize < low_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    if stat.f_files and stat.f_favail < low_inodes:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (inodes)", path)
