"""Files become visible in one atomic step, or not at all.

`publish` is for everything that is written once: the commit instant is link(2), which fails where
the name exists, so of two publishers one wins. `replace` is for the few files that change
(heartbeats, orchestrator.json, summary.json): rename(2). Neither leaves a moment in which the name
is missing or half written; a crash leaves at worst a hidden file that no reader looks at.

Durability: with `durable` the data is fsynced before the name appears and the folder after, so that
the file outlives a power cut. A failed fsync raises `SyncError` and is never tried again.

Trouble: reading is tried again for about a second where the error may pass (`TRANSIENT`); so is a
file that has no name yet. A link or rename that is reported as failed is looked at, since it may
have happened. Every OSError that leaves here names its path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gpuspool.spool.codec import Damaged, R, decode, unseal_pretty
from gpuspool.spool.layout import hidden_name

FILE_MODE = (
    0o664  # less the umask; under none are files writable by everybody, which a spool must not be
)
FOLDER_MODE = 0o775
TRANSIENT = (  # what a server that comes back, or a descriptor that is closed, may heal
    errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EIO, errno.EMFILE, errno.ENFILE
)  # fmt: skip
PATIENCE_S = (
    0.05,
    0.2,
    0.5,
)  # between tries; whoever needs more has more than one read to wait for

T = TypeVar("T")


class SyncError(OSError):
    """A failed fsync. The kernel may have dropped the data, so that a second one would succeed and
    mean nothing.
    """


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns; a transient OSError is slept over a few times. Only for calls that may
    be repeated.
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
    """Give an OSError that was raised on a descriptor the path it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written; raises the OSError of the first that fails."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_file(path: Path, data: bytes) -> Path:
    """Write a new file where nobody looks yet, and return its path. It is not synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        with naming(path):
            write_all(fd, data)
    finally:
        os.close(fd)
    return path


def sync(fd: int, path: str | os.PathLike[str]) -> None:
    """fsync(2). Raises SyncError."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncError(error.errno, error.strerror, os.fspath(path)) from None


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable. Raises SyncError."""
    _fsync(path, os.O_DIRECTORY)


def make_folder(path: Path) -> None:
    """mkdir -p, durably: the names of all folders on the way are synced, whoever made them and
    whenever.

    As far up as the file system reaches and this process may read.
    """
    path.mkdir(parents=True, exist_ok=True)
    device = path.stat().st_dev
    for parent in path.parents:
        if parent.stat().st_dev != device or not os.access(parent, os.R_OK):
            return
        try:
            fsync_dir(parent)
        except SyncError as error:
            if error.errno not in (
                errno.EINVAL,
                errno.EROFS,
            ):  # such folders know no sync, or cannot have changed
                raise


def fsync_file(path: Path) -> None:
    """Make a file's data durable, whoever wrote it. Raises SyncError."""
    _fsync(path, 0)


def _fsync(path: Path, flags: int) -> None:
    fd = patiently(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags))
    try:
        sync(fd, path)
    finally:
        os.close(fd)


def _write_hidden(path: Path, data: bytes, durable: bool) -> Path:
    def write() -> Path:
        hidden, fd = _create_hidden(path, os.O_WRONLY, data, durable)
        os.close(fd)
        return hidden

    return patiently(write)


def _create_hidden(path: Path, flags: int, data: bytes, durable: bool) -> tuple[Path, int]:
    """A new file without a name that anybody reads, with its descriptor. On failure nothing is
    left.
    """
    hidden = path.parent / hidden_name(path.name)
    fd = os.open(hidden, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
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


def remove_quietly(path: Path) -> bool:
    """Unlink a hidden file of our own; that it is gone already, or cannot go, harms nobody. False:
    it may be there.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def remove_tree_quietly(path: Path) -> None:
    """The same for a folder; shutil's own `ignore_errors` lets some through."""
    import shutil

    with contextlib.suppress(OSError):
        shutil.rmtree(path, ignore_errors=True)


def link_or_lose(hidden: Path, path: Path) -> bool:
    """link(2) `hidden` to `path` and drop the hidden name. False: the name was taken by somebody
    else.

    The reply to a link that did happen may be lost (NFS: its repetition is then refused, or the
    call times out), so an error is believed only where the name does not lead to our own file.
    """
    try:
        return link_or_not(hidden, path)
    finally:
        remove_quietly(hidden)


def link_or_not(hidden: Path, path: Path) -> bool:
    """The same; the hidden name stays."""

    def link() -> bool:
        try:
            os.link(hidden, path)
        except OSError as error:
            if _is_same(hidden, path):
                return True
            if isinstance(error, FileExistsError):
                return False
            raise
        return True

    return patiently(link)


def _is_same(hidden: Path, path: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(hidden), os.lstat(path))
    except FileNotFoundError:
        return False


def rename(old: Path, new: Path) -> None:
    """rename(2) of a name that is nobody else's; one that is reported as failed and did happen has
    happened.
    """
    was = os.lstat(old)
    try:
        os.rename(old, new)
    except OSError:
        if (
            os.path.lexists(old)
            or not os.path.lexists(new)
            or not os.path.samestat(was, os.lstat(new))
        ):
            raise


def publish(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Make `data` visible as `path` by link(2). False where the name is taken; what is there stays."""
    try:
        won = link_or_lose(_write_hidden(path, data, durable), path)
    except (
        FileNotFoundError
    ):  # an orchestrator that ended took the hidden file for a leftover: once more
        won = link_or_lose(_write_hidden(path, data, durable), path)
    if durable:
        fsync_dir(path.parent)
    return won


def _replace(path: Path, data: bytes, durable: bool) -> None:
    hidden = _write_hidden(path, data, durable)
    try:
        rename(hidden, path)
    except OSError:
        remove_quietly(hidden)
        raise


def replace(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Make `data` visible as `path` by rename(2), whatever was there."""
    try:
        _replace(path, data, durable)
    except FileNotFoundError:  # as in `publish`: once more
        _replace(path, data, durable)
    if durable:
        fsync_dir(path.parent)


PROBE_BYTES = 64 * 1024  # more than a file system that said "full" may still have in its corners


def probe_folder(folder: Path) -> None:
    """Look whether a folder takes data, by writing some and removing it. Raises the OSError of the
    first that fails.
    """
    try:
        hidden, fd = _create_hidden(folder / "probe", os.O_WRONLY, bytes(PROBE_BYTES), True)
    except OSError as error:
        error.filename = str(folder)
        raise
    os.close(fd)
    remove_quietly(hidden)


def create_journal(path: Path, data: bytes) -> int | None:
    """Link a new file that begins with `data`, durably, and return its descriptor for appending;
    None: name taken.
    """
    hidden, fd = patiently(lambda: _create_hidden(path, os.O_RDWR | os.O_APPEND, data, True))
    try:
        won = link_or_lose(hidden, path)
        fsync_dir(path.parent)
    except OSError:
        os.close(fd)
        raise
    if won:
        return fd
    os.close(fd)
    return None


def ring(folder: Path) -> None:
    """Wake whoever watches a folder, by a hidden file that comes and goes. That it cannot be made
    costs time alone.
    """
    with contextlib.suppress(OSError):
        remove_quietly(_write_hidden(folder / "ring", b"", False))


def listdir(path: Path) -> list[str]:
    """The visible names in a folder, sorted; a folder that does not exist has none."""
    try:
        return sorted(
            name for name in patiently(lambda: os.listdir(path)) if not name.startswith(".")
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_regular(path: Path) -> bool:
    """Whether a plain file is there, no folder, link, or fifo."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_bytes(path: Path, offset: int = 0, size: int = -1) -> bytes | None:
    """A file's bytes from `offset` on, at most `size` of them.

    None where there is none, b"" for a folder, or a link, which is not followed.
    """
    return patiently(lambda: _read_bytes(path, offset, size))


def _read_bytes(path: Path, offset: int, size: int) -> bytes | None:
    fd = open_plain(path)
    if fd is None:
        return None
    try:
        return pread(fd, path, offset, size)
    finally:
        os.close(fd)


def open_plain(path: Path) -> int | None:
    """A descriptor for reading. None: there is no such file. Never follows a link, never hangs."""
    try:
        # Without O_NONBLOCK a fifo would hang whoever opens it.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        raise


def pread(fd: int, path: Path, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset` on, or all of them where it is negative; b"" of a folder."""
    try:
        with naming(path):
            there = os.fstat(fd).st_size - offset
            left = there if size < 0 else min(size, there)
            parts = []
            while left > 0 and (part := os.pread(fd, left, offset)):
                parts.append(part)
                offset += len(part)
                left -= len(part)
            return b"".join(parts)
    except IsADirectoryError:
        return b""


def read_record(path: Path, kind: type[R]) -> R | None:
    """The one record that a file holds, or None where there is no such file or it cannot be read as
    one.
    """
    try:
        return decode(read_bytes(path) or b"", kind)
    except Damaged:
        return None


def read_sealed(path: Path, kind: type[R]) -> R | None:
    """The same of a file that ends with its checksum; None also where that is not right."""
    try:
        return unseal_pretty(read_bytes(path) or b"", kind)
    except Damaged:
        return None
