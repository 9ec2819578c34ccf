"""Files become visible in one atomic step, or not at all.

Calling sequence of whoever writes a file that is written once: `publish(path, data)`. It

1. writes the data to a new file with a hidden name, which no reader looks at, in the same folder;
2. makes the data durable by fsync(2);
3. gives the file its name by link(2). That is the commit instant. It fails where the name exists,
   so of two publishers one wins, and the other reads what is there;
4. removes the hidden name;
5. makes the name durable by fsync(2) of the folder.

The few files that change (heartbeats, summary.json) are written by `replace`,
whose third step is rename(2): it wins over whatever was there. A journal is begun by
`create_journal`, which keeps the file open for appending.

Guarantees: at no moment is a name missing that was there, or does it lead to half a file. A process
that is killed leaves at worst a hidden file. With `durable` the file outlives a power cut once the
call has returned.

Trouble: reading is tried again for about a second where the error may pass (`TRANSIENT`), and so is
writing a file that has no name yet. A link or rename that is reported as failed is looked at, since
it may have happened. A failed fsync raises `SyncError` and is never tried again. Every OSError that
leaves this module names its path.

Called by every module that reads or writes a file of a spool.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gpuspool.spool.codec import R, decode, unseal_pretty
from gpuspool.spool.errors import Damaged, SyncError
from gpuspool.spool.layout import hidden_name

# The permissions of files and folders before the umask. Nobody outside the group may write: a spool
# holds code that its owner runs.
FILE_MODE = 0o664
FOLDER_MODE = 0o775

# A record that is larger than this is none of ours: those that hold the most, a run record with all
# its arguments or an intent, take some kilobytes. So a file of a terabyte in the place of a record
# costs nobody his memory.
RECORD_BYTES = 64 * 1024 * 1024

# Errors that may pass by themselves, as when a file server comes back or a descriptor is closed.
TRANSIENT = (
    errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EIO, errno.EMFILE, errno.ENFILE
)  # fmt: skip

# How long to wait before each further try. It takes less than a second in all: whoever has to wait
# longer for a file system has more to wait for than this one call, and decides for itself.
PATIENCE_S = (0.05, 0.2, 0.5)

# So much is written to see whether a folder takes data. A file system that has no room for a file
# may still have some for a few bytes.
PROBE_BYTES = 64 * 1024

# Files that stay open are kept at this descriptor or above, and with so many above it free where
# the limit is low.
HIGH_FD = 900
FREE_ABOVE = 16

# The users who own files that were read, by number, each with the first such file.
Owners = dict[int, str]

T = TypeVar("T")


# Errors.


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns. It is called again, a few times, where a transient OSError was raised.

    Only for calls that may be repeated. A SyncError is raised at once, whatever its number.
    """
    for wait_s in PATIENCE_S:
        try:
            return call()
        except SyncError:
            raise
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(wait_s)
    return call()


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give an OSError that is raised inside, on a descriptor, the path that it is about."""
    try:
        yield
    except OSError as error:
        # Of some calls it is the number of the descriptor.
        if not isinstance(error.filename, (str, bytes)):
            error.filename = os.fspath(path)
        raise


# Writing.


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` by write(2), as often as that takes; raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_file(path: Path, data: bytes) -> Path:
    """Write a new file in a place where nobody looks yet, without any sync; returns its path.

    For folders that become visible as a whole, and are synced as a whole before.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        with naming(path):
            write_all(fd, data)
    finally:
        os.close(fd)
    return path


def _create_hidden(path: Path, flags: int, data: bytes, durable: bool) -> tuple[Path, int]:
    """Write a new hidden file beside `path`; returns its path and its descriptor.

    flags: how to open it, for open(2). Where it cannot be written whole, nothing is left of it.
    """
    hidden = path.parent / hidden_name(path.name)
    flags |= os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(hidden, flags, FILE_MODE)
    except FileExistsError:
        # Nobody else makes this name. The call was carried out, its reply was lost, and it was
        # carried out again.
        remove_quietly(hidden)
        fd = os.open(hidden, flags, FILE_MODE)
    try:
        with naming(path):
            write_all(fd, data)
        if durable:
            sync(fd, path)
    except OSError:
        os.close(fd)
        remove_quietly(hidden)
        raise
    return hidden, fd


def _write_hidden(path: Path, data: bytes, durable: bool) -> Path:
    """Write a new hidden file beside `path` and close it; returns its path."""

    def write() -> Path:
        hidden, fd = _create_hidden(path, os.O_WRONLY, data, durable)
        os.close(fd)
        return hidden

    return patiently(write)


def probe_folder(folder: Path) -> None:
    """Look whether a folder takes data, by writing some and removing it; raises OSError if not."""
    try:
        hidden, fd = _create_hidden(folder / "probe", os.O_WRONLY, bytes(PROBE_BYTES), True)
    except OSError as error:
        error.filename = str(folder)
        raise
    os.close(fd)
    remove_quietly(hidden)


def ring(folder: Path) -> None:
    """Wake whoever watches a folder, by a hidden file that comes and goes.

    Where none can be made, the watcher finds out by itself what is new; that costs only time.
    """
    with contextlib.suppress(OSError):
        remove_quietly(_write_hidden(folder / "ring", b"", False))


# A file that several processes append to, one after the other, is opened by its name again and
# again, so somebody else may have put anything there. A link would lead the lines into another
# file, and so would a second name of another file; a fifo would make the open wait for ever.
def open_to_append(path: Path) -> int:
    """A descriptor for appending to a file, which is made where there is none.

    Raises OSError, also for whatever is no plain file with one name.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, FILE_MODE)
    with naming(path):
        there = os.fstat(fd)
    if not stat.S_ISREG(there.st_mode) or there.st_nlink != 1:
        os.close(fd)
        raise OSError(
            errno.EPERM, "it is no plain file of its own, so nothing is written", str(path)
        )
    # Processes that get this descriptor as their stdout expect that it waits.
    os.set_blocking(fd, True)
    return fd


def make_subfolder(path: Path) -> None:
    """Make one folder in a spool, unless it is there. Raises OSError, also for a link. Not synced.

    mkdir(2) may report any error although it was carried out, so what counts is whether the folder
    is there.
    """

    def make() -> None:
        try:
            os.mkdir(path, FOLDER_MODE)
        except OSError:
            if not is_folder(path):
                raise

    patiently(make)


def is_folder(path: Path) -> bool:
    """Whether a folder is there, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


# Durability.


def sync(fd: int, path: str | os.PathLike[str]) -> None:
    """Make the data of an open file durable by fsync(2); raises SyncError."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncError(error.errno, error.strerror, os.fspath(path)) from None


def fsync_file(path: Path) -> None:
    """Make a file's data durable, whoever wrote it; raises SyncError.

    A link is not followed, and a fifo is not waited for: OSError.
    """
    _fsync(path, os.O_NOFOLLOW | os.O_NONBLOCK)


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable; raises SyncError."""
    _fsync(path, os.O_DIRECTORY)


# Two errors are no failure: EINVAL, from a file system whose folders know no fsync, and EROFS, from
# one that cannot have changed.
def fsync_dir_if_possible(path: Path) -> None:
    """Make the names in a folder durable, which need not lie where spools may; raises SyncError."""
    try:
        fsync_dir(path)
    except SyncError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS):
            raise


def _fsync(path: Path, flags: int) -> None:
    fd = patiently(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags))
    try:
        sync(fd, path)
    finally:
        os.close(fd)


# A spool is only as durable as the name of every folder on the way to it. Somebody else may have
# made these folders a moment ago and not synced them, and there is no way to ask, so all of them
# are synced, also those that were there before. The walk upwards ends
#
# - where another file system begins: it was mounted there, so its own root needs no name;
# - at a folder that this process may not read, since it cannot open that to sync it. Such a folder
#   is somebody else's, and has been there for longer than this run.
#
def make_folder(path: Path) -> None:
    """Make a folder and its parents, like `mkdir -p`, and make all their names durable.

    Raises OSError where it cannot be made, SyncError where a name cannot be made durable.
    """
    _make_folders(path)
    device = path.stat().st_dev
    for parent in path.parents:
        if parent.stat().st_dev != device:
            return
        if not os.access(parent, os.R_OK):
            return
        fsync_dir_if_possible(parent)


def _make_folders(path: Path) -> None:
    """`mkdir -p`, but that nobody outside the group may write to what it makes, at any umask."""
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(FOLDER_MODE, exist_ok=True)


# Making visible.


# The reply to a link(2) may be lost: an NFS client then sends the call once more, and the server
# refuses it since the name exists, or the call times out although it was carried out. So an error
# says nothing. The question "did I win?" is answered by what stands under the final name. All that
# is published, where it matters who won, says who publishes it: a journal names its process, an
# intent its parent, a claim the attempt and how many claims that has tried to make. Where two
# publishers do say the same, either may as well have won.
#
# The inode would tell as well, on most file systems: the hidden name and the final name lead to the
# same file if and only if this very link has happened. But some make inode numbers up anew at each
# look, and some give all files the same. So it is asked only where the content cannot tell: of
# empty files, where nothing depends on the answer, and of outputs, whose loser keeps what is there.
#
# Whoever took such an error at its word would leave what it had won to nobody. A claimer would hold
# tasks that it never runs, and a worker whose journal was linked would think that its attempt had
# begun elsewhere, and exit.
def link_or_not(hidden: Path, path: Path, data: bytes | None = None) -> bool:
    """link(2) `hidden` to `path`. False: somebody else took the name before.

    data: what stands in the hidden file; None for a file that is too large to compare. The hidden
    name stays. Raises OSError where the link fails for another reason.
    """

    def link() -> bool:
        try:
            os.link(hidden, path)
        except OSError as error:
            # sshfs tells those who lose a race EPERM, as file systems do that have no hard links.
            is_taken = error.errno == errno.EPERM and os.path.lexists(path)
            if isinstance(error, FileExistsError) or is_taken:
                _await_visible(path)
                return _is_ours(hidden, path, data)
            if _is_ours(hidden, path, data):
                return True
            raise
        return True

    return patiently(link)


def link_or_lose(hidden: Path, path: Path, data: bytes | None = None) -> bool:
    """link(2) `hidden` to `path`, and remove the hidden name whatever came of it.

    data: as for `link_or_not`. False: somebody else took the name before. Raises OSError where the
    link fails for another reason.
    """
    try:
        return link_or_not(hidden, path, data)
    finally:
        remove_quietly(hidden)


def _await_visible(path: Path) -> None:
    """Wait for about a second, if need be, until a name that is taken can be seen.

    A network file system may remember for a while that it did not find a name.
    """
    for wait_s in PATIENCE_S:
        if os.path.lexists(path):
            return
        time.sleep(wait_s)


def _is_ours(hidden: Path, path: Path, data: bytes | None) -> bool:
    """Whether `path` holds this `data`; without any, whether it leads to the hidden file."""
    if data:
        return _read_bytes(path, 0, len(data) + 1, None) == data
    try:
        return os.path.samestat(os.lstat(hidden), os.lstat(path))
    except FileNotFoundError:
        return False


def rename(old: Path, new: Path, data: bytes | None = None) -> None:
    """rename(2) `old`, which is nobody else's, to `new`; raises OSError where that did not happen.

    As with a link, the reply may be lost and an error may be told of a rename that did happen. Then
    the old name is gone, and the new one leads to the file that had it. data: what stands in that
    file, which tells more than an inode; None for a folder or a large file.
    """
    was = os.lstat(old)
    try:
        os.rename(old, new)
    except OSError:
        if os.path.lexists(old) or not os.path.lexists(new):
            raise
        is_ours = os.path.samestat(was, os.lstat(new))
        if data:
            is_ours = _read_bytes(new, 0, len(data) + 1, None) == data
        if not is_ours:
            raise


def publish(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Make `data` visible as `path` by link(2).

    False: the name was taken, and what is there stays. Raises OSError.
    """
    try:
        won = link_or_lose(_write_hidden(path, data, durable), path, data)
    except FileNotFoundError:
        # An orchestrator that ended took the hidden file for a leftover and removed it. It does so
        # once, so one more try is enough; where the folder itself is missing, that fails as well.
        won = link_or_lose(_write_hidden(path, data, durable), path, data)
    if durable:
        fsync_dir(path.parent)
    return won


def replace(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Make `data` visible as `path` by rename(2), whatever was there; raises OSError."""
    try:
        _replace(path, data, durable)
    except FileNotFoundError:
        # The hidden file was taken for a leftover, as in `publish`.
        _replace(path, data, durable)
    if durable:
        fsync_dir(path.parent)


def _replace(path: Path, data: bytes, durable: bool) -> None:
    hidden = _write_hidden(path, data, durable)
    try:
        rename(hidden, path, data)
    except OSError:
        remove_quietly(hidden)
        raise


def create_journal(path: Path, data: bytes) -> int | None:
    """Publish, durably and by link(2), a file that begins with `data` and stays open.

    Returns its descriptor, for appending and reading; None: the name was taken. Raises OSError.
    """
    hidden, fd = patiently(lambda: _create_hidden(path, os.O_RDWR | os.O_APPEND, data, True))
    try:
        won = link_or_lose(hidden, path, data)
        fsync_dir(path.parent)
    except OSError:
        os.close(fd)
        raise
    if not won:
        os.close(fd)
        return None
    return out_of_the_way(fd)


def out_of_the_way(fd: int) -> int:
    """The same open file under a high descriptor; the old one is closed.

    Some programs close low descriptors that are not theirs (`os.closerange`), and the next file
    that they open gets the lowest one that is free. Then whoever writes to a descriptor that was
    closed behind its back would write into that file.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most == resource.RLIM_INFINITY:
        most = HIGH_FD
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, min(HIGH_FD, max(fd, most - FREE_ABOVE)))
    except OSError:
        # There is none: the limit is very low.
        return fd
    os.close(fd)
    return high


# Removing.


def remove_quietly(path: Path) -> bool:
    """Unlink a hidden file of our own. False: it may still be there, which harms nobody."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def remove_tree_quietly(path: Path) -> None:
    """Remove a folder of our own that nobody needs; what cannot be removed stays."""
    import shutil

    # `ignore_errors` ignores most errors, not all.
    with contextlib.suppress(OSError):
        shutil.rmtree(path, ignore_errors=True)


# Reading.


def listdir(path: Path) -> list[str]:
    """The visible names in a folder, sorted; a folder that does not exist has none."""
    try:
        names = patiently(lambda: os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if not name.startswith("."))


def is_regular(path: Path) -> bool:
    """Whether a plain file is there: no folder, link or fifo."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_bytes(
    path: Path, offset: int = 0, size: int = -1, owners: Owners | None = None
) -> bytes | None:
    """A file's bytes from `offset` on, at most `size` of them, all where that is negative.

    owners: told who owns the file. It is the one whose bytes are returned, whatever has its name by
    then. None where there is no file. b"" where a folder or a link has its place: a link is not
    followed, since anybody may have set it. Raises OSError.
    """
    return patiently(lambda: _read_bytes(path, offset, size, owners))


def _read_bytes(path: Path, offset: int, size: int, owners: Owners | None) -> bytes | None:
    fd = open_plain(path)
    if fd is None:
        return None
    try:
        if owners is not None:
            with naming(path):
                owners.setdefault(os.fstat(fd).st_uid, str(path))
        return _pread(fd, path, offset, size)
    finally:
        os.close(fd)


class OpenFile:
    """One file that is read in several calls, with one open unless a read fails.

    On a network file system a descriptor may become stale, and reading again helps only with a new
    one. So after a failure the file is opened anew. Close it at the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; b"" where there is no file. Raises OSError."""
        return patiently(lambda: self._read(offset, size))

    def _read(self, offset: int, size: int) -> bytes:
        if self._fd is None:
            self._fd = open_plain(self._path)
        if self._fd is None:
            return b""
        try:
            return _pread(self._fd, self._path, offset, size)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def open_plain(path: Path) -> int | None:
    """A descriptor for reading a file; None: there is none. Raises OSError.

    In the place of a link /dev/null is opened, which has no bytes.
    """
    # With O_NONBLOCK a fifo in the place of a file hangs nobody.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # No file has a name that is longer than the file system takes.
        if error.errno == errno.ENAMETOOLONG:
            return None
        # ELOOP: it is a link.
        if error.errno == errno.ELOOP:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        raise


def _pread(fd: int, path: Path, offset: int, size: int) -> bytes:
    """At most `size` bytes of an open file from `offset` on, all where that is negative.

    path: for error messages. b"" of a folder. Raises OSError.
    """
    try:
        with naming(path):
            left = os.fstat(fd).st_size - offset
            if size >= 0:
                left = min(size, left)
            return _pread_all(fd, offset, left)
    except IsADirectoryError:
        return b""
    except (MemoryError, OverflowError):
        # Somebody has put a file of terabytes there, which costs him nothing if it has holes.
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path)) from None


def _pread_all(fd: int, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on, fewer where the file ends before."""
    parts = []
    while size > 0:
        part = os.pread(fd, size, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def read_record(path: Path, kind: type[R]) -> R | None:
    """The record that a file without a checksum holds.

    None where there is no such file, or where it cannot be read as one. Raises OSError.
    """
    try:
        return decode(read_bytes(path, 0, RECORD_BYTES) or b"", kind)
    except Damaged:
        return None


def read_sealed(path: Path, kind: type[R], owners: Owners | None = None) -> R | None:
    """The record that a file holds which ends with its checksum.

    owners: as for `read_bytes`. None where there is no such file, where the checksum is wrong, or
    where it cannot be read as one. Raises OSError.
    """
    try:
        return unseal_pretty(read_bytes(path, 0, RECORD_BYTES, owners) or b"", kind)
    except Damaged:
        return None
