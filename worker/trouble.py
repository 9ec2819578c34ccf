"""What an exception of user code says about the world rather than about the task.

Where the outputs or the log cannot be written any more, every task that follows would fail. So
would every task on a device whose context is broken, or in a process without file descriptors. In
all these cases `raise_trouble` raises, the attempt ends, and its tasks stay without a verdict.

Where another file system is in trouble, that of an input or of a temporary file, other tasks may
well complete. `find_excuse` finds it, and the failure is excused: neither the task nor the place is
to blame, and the task is tried again later.

The judgement is by type and errno, and by looking; never by text, since numpy and torch report a
full disk without any errno, and a command reports nothing but a status. An error says where to
look: the folder of the file that it names, of the inputs, of the outputs. What is found there
decides: a file that is missing or cannot be read in a folder that can is the task's own affair.

Both are called for everything that user code raises. Decision 10 says more.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
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
    probe: Callable[[Path], None] = probe_folder,
) -> None:
    """Raise if this process can do no task now, whichever it is.

    folders: those that the tasks in hand were to write to. out: the folder that all outputs lie in.
    probe: looks whether one of these takes data, and raises OSError if not.
    Raises OSError for outputs or a log that cannot be written and for a command that cannot be
    started, Unusable for this process, any other AttemptError as it is, and NotNow for what passes
    in moments.
    """
    for error in causes(raised):
        _refuse(error, raised)
        if isinstance(error, OSError) and out is not None:
            raise_trouble_at(error, out, probe)
    fault = find_device_fault()
    if fault:
        words = f"its device accepts no more work: {fault}"
        raise Unusable(words, to_error(raised).traceback)
    _look_at_log()
    for folder in set(folders):
        probe(folder)
        _refuse_full(os.statvfs(folder), str(folder), LOW_BYTES, LOW_INODES)


def _refuse(error: BaseException, raised: BaseException) -> None:
    """Raise if `error`, a cause of `raised`, says that this process can do no task now."""
    if isinstance(error, (AttemptError, NotNow, NotStartable)):
        raise error
    if has_no_room(error):
        number = getattr(error, "errno", errno.EAGAIN)
        raise NotNow(OSError(number, f"no process or thread can be started: {error}"))
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
        raise Unusable("it has no file descriptors left", to_error(raised).traceback)


def find_excuse(
    raised: BaseException,
    inputs: Iterable[str] = (),
    mounts: Sequence[str] = (),
    may_be_back: bool = True,
    root: str = "",
) -> OSError | None:
    """What is wrong with a file system that the task needs, other than OUT's and the spool's.

    None where nothing is: then the task, or the place where it ran, is to blame for what it raised.
    inputs: the files that the tasks in hand read. mounts: where file systems were mounted when the
    run was made. may_be_back: whether an input that was missing, and is there, was unmounted for a
    moment. root: the folder below which all inputs were when the run was made, "" if they are no
    files.
    """
    errors = [error for error in causes(raised) if isinstance(error, OSError)]
    for error in errors:
        if error.errno in FULL:
            if error.filename is None:
                return OSError(error.errno, f"{os.strerror(error.errno)}, somewhere in the job")
            return OSError(error.errno, os.strerror(error.errno), error.filename)
    asked = _from_root(inputs)
    named = [path for error in errors for path in _named_by(error)]
    # Errors of read(2) name nothing, so the inputs are looked at too.
    says_dead = any(error.errno in DEAD for error in errors)
    for path in dict.fromkeys([*asked, *named]):
        excuse = _look_at(path, says_dead, mounts) or _without_folder(path, asked, root)
        if excuse is not None:
            return excuse
    if may_be_back:
        for error in errors:
            if _is_back(error, asked, mounts):
                return error
    return None


def _look_at(path: str, says_dead: bool, mounts: Sequence[str]) -> OSError | None:
    """What is wrong with the file system of a file; None where that is in order.

    says_dead: an error says that some file system is dead. A look at the folder tells whether it is
    this one, or only the file is bad.
    """
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in DEAD:
            return _lost(path, mounts)
        says_dead = True
    if not says_dead:
        return None
    folder = os.path.dirname(path)
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError as error:
        if error.errno in DEAD:
            return OSError(error.errno, os.strerror(error.errno), folder)
    return None


def _without_folder(path: str, inputs: list[str], root: str) -> OSError | None:
    """That the folder is gone in which an input was when the run was made; None if it is not.

    Somebody moved it, and all that was in it. A file alone may well have been deleted.
    """
    folder = os.path.dirname(path)
    if not root or path not in inputs or os.path.lexists(folder):
        return None
    return OSError(errno.ENOENT, "the folder of the inputs is not there any more", folder)


def _lost(path: str, mounts: Sequence[str]) -> OSError | None:
    """That the file system is gone on which an unreachable file lay; None if it is not."""
    for one in dict.fromkeys((path, os.path.realpath(path))):
        point = lost_mount(one, mounts)
        if point:
            return OSError(errno.ENOENT, "nothing is mounted there any more", point)
    return None


def _is_back(error: OSError, inputs: list[str], mounts: Sequence[str]) -> bool:
    """Whether an error says that an input on some mount is missing, and it is there."""
    if error.errno != errno.ENOENT or error.filename2 is not None:
        return False
    for path in _named_by(error):
        real = os.path.realpath(path)
        is_on_mount = any(real.startswith(f"{point}/") for point in mounts)
        if path in inputs and is_on_mount and os.access(path, os.F_OK):
            return True
    return False


def raise_trouble_at(
    error: OSError, home: Path, probe: Callable[[Path], None] = probe_folder
) -> None:
    """Raise OSError where an error names something in this folder, and the folder is in trouble.

    probe: as for `raise_trouble`.
    """
    if not any(_is_in(path, home) for path in _named_by(error)):
        return
    if error.errno in FULL:
        raise error
    probe(home)
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
        # Nor does what no file can be called: it holds a NUL, or half a character.
        with contextlib.suppress(OSError, UnicodeEncodeError):
            if b"\0" not in os.fsencode(path):
                found.append(os.path.abspath(path))
    return found


# By whole names: `spool-K` is not the folder of `spool-K-weights`.
def _is_in(path: str, home: Path) -> bool:
    """Whether a path leads into a folder, by its names or through links."""
    if Path(path).is_relative_to(home.absolute()):
        return True
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(home))


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
