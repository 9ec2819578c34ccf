"""Files become visible in one atomic step, or not at all.

`publish` is for everything that is written once: the commit instant is link(2), which fails where the name exists,
so of two publishers one wins. `replace` is for the few files that change (heartbeats, orchestrator.json,
summary.json): rename(2). Neither leaves a moment in which the name is missing or half written; a crash leaves
at worst a hidden file that no reader looks at.

Durability: with `durable` the data is fsynced before the name appears and the folder after, so that the file
outlives a power cut. A failed fsync raises and is never tried again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from spool.layout import hidden_name
from spool.records import Damaged, R, decode

FILE_MODE = 0o664  # less the umask; under none are files writable by everybody, which a spool must not be


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written; raises the OSError of the first that fails."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make a file's data durable, whoever wrote it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_hidden(path: Path, data: bytes, durable: bool) -> Path:
    hidden = path.parent / hidden_name(path.name)
    fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(fd, data)
        if durable:
            os.fsync(fd)
    except OSError:
        remove_quietly(hidden)
        raise
    finally:
        os.close(fd)
    return hidden


def remove_quietly(path: Path) -> None:
    """Unlink a hidden file of our own; that it is gone already, or cannot go, harms nobody."""
    with contextlib.suppress(OSError):
        path.unlink()


def link_or_lose(hidden: Path, path: Path) -> bool:
    """link(2) `hidden` to `path` and drop the hidden name. False: the name was taken by somebody else.

    On NFS the reply to a link that did happen may be lost and its repetition refused, so a refusal is believed
    only where the name does not lead to our own file.
    """
    try:
        os.link(hidden, path)
        return True
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(hidden.stat(), path.stat())
        return False
    finally:
        remove_quietly(hidden)


def publish(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Make `data` visible as `path` by link(2). False where the name is taken; what is there stays."""
    won = link_or_lose(_write_hidden(path, data, durable), path)
    if durable:
        fsync_dir(path.parent)
    return won


def replace(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Make `data` visible as `path` by rename(2), whatever was there."""
    hidden = _write_hidden(path, data, durable)
    try:
        os.rename(hidden, path)
    except OSError:
        remove_quietly(hidden)
        raise
    if durable:
        fsync_dir(path.parent)


def create_journal(path: Path, data: bytes) -> int | None:
    """Link a new file that begins with `data`, durably, and return its descriptor for appending; None: name taken."""
    hidden = path.parent / hidden_name(path.name)
    fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(fd, data)
        os.fsync(fd)
        won = link_or_lose(hidden, path)
        fsync_dir(path.parent)
    except OSError:
        remove_quietly(hidden)
        os.close(fd)
        raise
    if won:
        return fd
    os.close(fd)
    return None


def listdir(path: Path) -> list[str]:
    """The visible names in a folder, sorted; a folder that does not exist has none."""
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_bytes(path: Path, offset: int = 0) -> bytes | None:
    """A file's bytes from `offset` on; None where there is none, b"" for a folder, or a link, which is not followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return b""
        raise
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    except IsADirectoryError:
        return b""
    finally:
        os.close(fd)


def read_record(path: Path, kind: type[R]) -> R | None:
    """The one record that a file holds, or None where there is no such file or it cannot be read as one."""
    try:
        return decode(read_bytes(path) or b"", kind)
    except Damaged:
        return None
