"""Files that appear whole under their name, or not at all.

Calling sequence of whoever writes one:

    with saved(path) as file:
        ...write to `file`...

1. The data goes into a new file with a hidden name in the same folder.
2. When the block is left it is made durable by fsync(2).
3. rename(2) gives it its name. That is the commit instant; what had the name before is gone.
4. fsync(2) of the folder makes the name durable.

Where the block raises, the hidden file is removed and the name is as it was. A process that is
killed leaves a hidden file at worst, `.NAME.PID.…`, and nothing under the name.

What is no plain file (a pipe, /dev/stdout, a terminal) cannot appear at once and cannot be
replaced: it is written to as it is.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import hidden_name
from gpuspool.spool.publish import FILE_MODE, fsync_dir, naming, remove_quietly, sync

# What is written in small pieces is written to the disk in pieces of so many bytes.
BUFFER_BYTES = 1024 * 1024


@contextlib.contextmanager
def saved(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` once the block is left. Raises OSError, and UsageError for a
    folder.
    """
    with saved_together([path]) as (file,):
        yield file


@contextlib.contextmanager
def saved_together(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Files that belong together: the last one appears last, so who sees it finds the others.

    Where there was one of that name before, it is gone before the first of the new ones appears: a
    kill between two of them leaves no pair of which one is old. Raises as `saved` does.
    """
    targets = [_target(path) for path in paths]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(_opened(target)) for target in targets]
        yield [file for file, _ in opened]
        pending: list[tuple[Path, Path]] = []
        for (file, hidden), target in zip(opened, targets, strict=True):
            with naming(target):
                file.flush()
            if hidden is not None:
                sync(file.fileno(), target)
                pending.append((hidden, target))
        if len(pending) > 1:
            pending[-1][1].unlink(missing_ok=True)
        for hidden, target in pending:
            os.rename(hidden, target)
        for folder in {target.parent for _, target in pending}:
            fsync_dir(folder)


def _target(path: Path) -> Path:
    """Where the file is to be: a link leads there, and stays. Raises UsageError for a folder."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UsageError(f"{path} is a folder. Name a file in it.")
    return target


@contextlib.contextmanager
def _opened(target: Path) -> Iterator[tuple[BinaryIO, Path | None]]:
    """(an open file, its hidden path); None where it is the target itself."""
    if _is_special(target):
        with open(target, "wb", BUFFER_BYTES) as file:
            yield file, None
        return
    hidden = target.parent / hidden_name(target.name)
    with naming(target):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(hidden, flags, FILE_MODE)
    try:
        with naming(target), os.fdopen(fd, "wb", BUFFER_BYTES) as file:
            yield file, hidden
    finally:
        # After the rename there is none.
        remove_quietly(hidden)


def _is_special(path: Path) -> bool:
    """Whether something is there that is no plain file."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
