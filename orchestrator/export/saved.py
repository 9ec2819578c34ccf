"""Files that appear whole under their name, or not at all.

Calling sequence of whoever writes one:

    with saved(path) as file:
        ...write to `file`...

1. The data goes into a new file with a hidden name in the same folder.
2. When the block is left it is made durable by fsync(2).
3. rename(2) gives it its name. That is the commit instant; what had the name before is gone.
4. fsync(2) of the folder makes the name durable, unless the file system knows no such thing.

Where the block raises, the hidden file is removed and the name is as it was. A process that is
killed leaves a hidden file at worst, `.NAME.PID.….part`, and nothing under the name. That is no
name which a spool gives to what it publishes: a start would take such a file in its folder for a
leftover.

What is no plain file (a pipe, /dev/stdout, a terminal) cannot appear at once and cannot be
replaced: it is written to as it is, behind what is there already. What is printed goes through
`Printed`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from gpuspool.orchestrator.text.printable import plain_json, printable
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import hidden_name
from gpuspool.spool.publish import FILE_MODE, fsync_dir_if_possible, naming, remove_quietly, sync

# What is written in small pieces is written to the disk in pieces of so many bytes.
BUFFER_BYTES = 1024 * 1024

# What stands for standard output in place of a file's name.
STDOUT = "-"

# What the file system says where nobody may write: then another place may do.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Printed:
    """Standard output, of which a terminal gets nothing that could harm it.

    JSON stays the same values. Other text has no escapes, so only a terminal is spared: what a
    program reads is as it is.
    """

    def __init__(self, *, is_json: bool = False) -> None:
        self._is_json = is_json
        self._is_terminal = sys.stdout.isatty()

    def write(self, data: bytes) -> int:
        """Print some whole lines. Raises OSError."""
        if self._is_json:
            data = plain_json(data)
        elif self._is_terminal:
            text = data.decode(errors="replace").replace("\r\n", "\n")
            data = printable(text).encode()
        return sys.stdout.buffer.write(data)


def refuse(path: str | os.PathLike[str]) -> None:
    """Raise UsageError for a name that no file can get. Asked before anything is read."""
    name = os.fspath(path)
    if not name:
        raise UsageError("the name of a file to write is empty. Name one.")
    if os.path.isdir(name):
        raise UsageError(f"{name} is a folder. Name a file in it, such as {name}/x.")
    folder = os.path.dirname(name) or "."
    if not os.path.isdir(folder):
        raise UsageError(f"{name} cannot be written: there is no folder {folder}. Make it first.")


def refuse_twice(names: Sequence[str | os.PathLike[str]]) -> None:
    """Raise UsageError where two of these are one file: x, ./x and a link to x are."""
    seen: set[str] = set()
    for one in names:
        name = os.fspath(one)
        file = name if name in ("", STDOUT) else os.path.realpath(name)
        if file in seen:
            raise UsageError(f"{name} is named twice. Each file has a name of its own.")
        seen.add(file)


@contextlib.contextmanager
def saved(path: Path, *, follows_links: bool = True) -> Iterator[BinaryIO]:
    """A file that becomes `path` once the block is left. Raises OSError, and UsageError for a
    folder.

    follows_links: a link stays, and what it leads to is replaced. Else it is replaced itself, for
    names that the user did not choose: whoever made a link there could say what is overwritten.
    """
    with saved_together([path], follows_links=follows_links) as (file,):
        yield file


@contextlib.contextmanager
def saved_together(
    paths: Sequence[Path], *, follows_links: bool = True
) -> Iterator[list[BinaryIO]]:
    """Files that belong together: the last one appears last, so who sees it finds the others.

    Where there was one of that name before, it is gone before the first of the new ones appears: a
    kill between two of them leaves no pair of which one is old. Otherwise as `saved`.
    """
    with contextlib.ExitStack() as stack:
        targets = [_target(path, follows_links) for path in paths]
        opened = [stack.enter_context(_opened(path, follows_links)) for path in targets]
        yield [file for file, _ in opened]
        pending: list[tuple[Path, Path]] = []
        for (file, hidden), target in zip(opened, targets, strict=True):
            with naming(target):
                file.flush()
            if hidden is not None:
                sync(file.fileno(), target)
                pending.append((hidden, target))
        if len(pending) > 1:
            # The old file goes only once all new ones are seen to be there still.
            for hidden, _ in pending:
                hidden.stat()
            pending[-1][1].unlink(missing_ok=True)
        for hidden, target in pending:
            os.rename(hidden, target)
        for folder in {target.parent for _, target in pending}:
            fsync_dir_if_possible(folder)


def _target(path: Path, follows_links: bool) -> Path:
    """The path that is written to or replaced. Raises UsageError for a folder."""
    if follows_links or not path.is_symlink():
        refuse(path)
    if not follows_links or is_stream(path):
        return Path(os.path.abspath(path))
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _opened(target: Path, follows_links: bool) -> Iterator[tuple[BinaryIO, Path | None]]:
    """(an open file, its hidden path); None where it is the target itself."""
    hidden: Path | None = None
    how = os.O_APPEND
    if not follows_links or not is_stream(target):
        hidden = target.parent / f"{hidden_name(target.name)}.part"
        # Not for appending: what is stacked gets its header last.
        how = os.O_CREAT | os.O_EXCL
    try:
        fd = os.open(hidden or target, os.O_WRONLY | os.O_CLOEXEC | how, FILE_MODE)
    except OSError as error:
        if error.errno in _REFUSED:
            raise UsageError(
                f"{target} cannot be written: {error.strerror}. Name another file, with -o."
            ) from None
        error.filename = os.fspath(target)
        raise
    try:
        with naming(target), os.fdopen(fd, "wb", BUFFER_BYTES) as file:
            yield file, hidden
    finally:
        # After the rename there is none.
        if hidden is not None:
            remove_quietly(hidden)


def is_stream(path: Path) -> bool:
    """Whether a name stands for something to write to. Such a name must never be replaced.

    /dev/stdout is a link, and where it leads may be a plain file.
    """
    absolute = os.path.abspath(path)
    if absolute in ("/dev/stdout", "/dev/stderr") or absolute.startswith(("/dev/fd/", "/proc/")):
        return True
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
