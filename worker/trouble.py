"""What an exception of user code says about the world rather than about the task.

Where the outputs or the log cannot be written any more, every task that follows would fail. So
would it with a device whose context is broken, or in a process without file descriptors. In all
these cases the attempt ends and its tasks stay without a verdict.

Where another file system is in trouble, that of an input or of a temporary file, other tasks may
well complete. Then the failure is excused: neither the task nor the place is to blame, and the task
is tried again later.

The judgement is by type and errno, and by looking; never by text, since numpy and torch report a
full disk without any errno, and a command reports nothing but a status. An error says where to
look: the folder of the file that it names, of the inputs, of the outputs. What is found there
decides: a file that is missing or cannot be read in a folder that can is the task's own affair.

Called for everything that user code raises. Decision 10 says more.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from gpuspool.spool.errors import AttemptError, Unusable
from gpuspool.spool.file_system import lost_mount
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
    errno.EKEYEXPIRED,
    errno.EKEYREVOKED,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ENXIO,
    errno.EREMOTEIO,
    errno.ESHUTDOWN,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
# Something above a path is not there.
MISSING = (errno.ENOENT, errno.ENOTDIR)
# This process, or the whole system, may open no more files.
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
# A file system with less room than this counts as full: since the write that failed, a neighbour
# may have made a little.
LOW_BYTES = 1024 * 1024
# A file system that can hold fewer new files than this counts as full, for the same reason.
LOW_INODES = 64


class Excused(Exception):
    """A file system is in trouble that the task needs, other than those of the spool and OUT.

    trouble: what is wrong with it. A private signal of this package.
    """

    def __init__(self, trouble: OSError) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble


def raise_trouble(
    raised: BaseException,
    folders: Iterable[Path],
    out: Path | None = None,
    inputs: Iterable[str] = (),
    mounts: Iterable[str] = (),
) -> None:
    """Return where the task, or the place where it ran, is to blame for what it raised.

    folders: those that the tasks in hand were to write to. out: the folder that all outputs lie in.
    inputs: the files that these tasks read. mounts: where file systems were mounted when the run
    was made. Raises OSError for outputs or a log that cannot be written and for a command that
    cannot be started, Unusable for this process, any other AttemptError as it is, NotNow for what
    passes in moments, and Excused for any other file system in trouble.
    """
    errors = list(causes(raised))
    for error in errors:
        _judge(error, raised)
        if isinstance(error, OSError) and out is not None:
            raise_trouble_at(error, out)
    fault = find_device_fault()
    if fault:
        words = f"gpuspool: its device is unusable after this: {fault}"
        raise Unusable(f"{to_error(raised).traceback}{words}")
    _look_at_log()
    for folder in set(folders):
        probe_folder(folder)
        _refuse_full(os.statvfs(folder), str(folder), LOW_BYTES, LOW_INODES)
    troubles = [error for error in errors if isinstance(error, OSError)]
    for trouble in troubles:
        if trouble.errno in FULL:
            where = trouble.filename or "somewhere in the job"
            raise Excused(OSError(trouble.errno, os.strerror(trouble.errno), where))
    _look_at_inputs(_from_root(inputs), troubles, list(mounts))


def _judge(error: BaseException, raised: BaseException) -> None:
    """Raise if `error`, a cause of `raised`, says that this process can do no task now."""
    if isinstance(error, (AttemptError, NotNow, NotStartable)):
        raise error
    if has_no_room(error):
        number = getattr(error, "errno", errno.EAGAIN)
        raise NotNow(OSError(number, f"no process or thread can be started: {error}"))
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
        words = "gpuspool: it has no file descriptors left"
        raise Unusable(f"{to_error(raised).traceback}{words}")


def raise_trouble_at(error: OSError, home: Path) -> None:
    """Raise OSError where an error names something in this folder, and the folder is in trouble."""
    if not any(_is_in(path, home) for path in _named_by(error)):
        return
    if error.errno in FULL:
        raise error
    probe_folder(home)
    _refuse_full(os.statvfs(home), str(home), LOW_BYTES, LOW_INODES)


def _named_by(error: OSError) -> list[str]:
    """The paths of the files that an error of the system names: none, one or two."""
    named = (error.filename, error.filename2)
    # A number is a descriptor: its file may have any name by now.
    names = [name for name in named if isinstance(name, (str, bytes, Path))]
    return _from_root(map(os.fsdecode, names))


def _from_root(paths: Iterable[str]) -> list[str]:
    """The paths from the root on. Where the current folder is gone, relative ones lead nowhere."""
    found: list[str] = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append(os.path.abspath(path))
    return found


# By whole names: `spool-K` is not the folder of `spool-K-weights`.
def _is_in(path: str, home: Path) -> bool:
    """Whether a path leads into a folder, by its names or through links."""
    if Path(path).is_relative_to(home.absolute()):
        return True
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(home))


def _look_at_inputs(inputs: list[str], troubles: list[OSError], mounts: list[str]) -> None:
    """Raise Excused where the file system of an input, or of what an error names, is in trouble."""
    for trouble in troubles:
        if trouble.errno in DEAD:
            # Errors of read(2) name nothing, so the inputs are looked at too.
            for path in [*_named_by(trouble), *inputs]:
                _look_into(os.path.dirname(path))
    named = [path for trouble in troubles for path in _named_by(trouble)]
    for path in dict.fromkeys([*inputs, *named]):
        try:
            os.stat(path)
        except OSError as error:
            if error.errno in DEAD:
                raise Excused(error) from None
            _refuse_lost(path, mounts)
    for trouble in troubles:
        _refuse_return(trouble, inputs, mounts)


def _look_into(folder: str) -> None:
    """Raise Excused where the file system of a folder is dead."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError as error:
        if error.errno in DEAD:
            raise Excused(OSError(error.errno, os.strerror(error.errno), folder)) from None


def _refuse_lost(path: str, mounts: list[str]) -> None:
    """Raise Excused where a file cannot be reached and the file system is gone that it lay on."""
    for one in dict.fromkeys((path, os.path.realpath(path))):
        point = lost_mount(one, mounts)
        if point:
            raise Excused(OSError(errno.ENOENT, "nothing is mounted there any more", point))


def _refuse_return(error: OSError, inputs: list[str], mounts: list[str]) -> None:
    """Raise Excused where an input was missing, and is there again: its mount came back."""
    if error.errno not in MISSING:
        return
    for path in set(_named_by(error)).intersection(inputs):
        real = os.path.realpath(path)
        if os.access(path, os.F_OK) and any(real.startswith(f"{point}/") for point in mounts):
            raise Excused(error)


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
