"""Task outputs: written under hidden names, published whole; the first one published stays.

The order of events, for one call of the job:

1. The job asks for paths (`path`) and writes there. Nobody else looks at hidden names.
2. Every file is fsynced.
3. link(2) gives each file its final name; a folder gets it by rename(2). At that instant the output
   is published.
4. The folders are fsynced, once for the whole call.
5. Only then may the journal say "complete".

Whoever finds the final name taken deletes its own: the task ran twice, and its output exists once
and is never replaced. After a crash only hidden names are left, which the orchestrator removes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gpuspool.spool.errors import OutputError
from gpuspool.spool.layout import hidden_output
from gpuspool.spool.publish import (
    fsync_dir,
    fsync_file,
    is_regular,
    link_or_not,
    remove_quietly,
    remove_tree_quietly,
    rename,
)
from gpuspool.worker.context import Task

# The end of a complaint about a name that another task's output has.
IN_THE_WAY = (
    "was there first, as another task's output or around one; give all outputs the same suffix"
)
# The longest name that the file systems in use take, in bytes.
NAME_BYTES = 255


class _Asked(msgspec.Struct, frozen=True):
    """An output that a task asked for: where it is written, and where it will be published."""

    hidden: Path
    final: Path


class Outputs:
    """The outputs of the tasks in hand of one attempt."""

    def __init__(self, root: Path, attempt: str) -> None:
        self.root = root
        self.attempt = attempt
        # task -> suffix -> what was asked for, of the tasks in hand
        self.asked: dict[int, dict[str, _Asked]] = {}
        # How many hidden names could not be removed.
        self.left_behind = 0
        # What `path` met, whatever the job made of it: no task is to blame for that.
        self.trouble: OSError | None = None
        # The folders below the root whose own names are durable.
        self._named: set[Path] = set()

    def path(self, task: Task, suffix: str) -> Path:
        """The hidden path for one output; asked again, it is the same.

        Raises ValueError for a suffix that no file name can end in, OutputError where another
        task's output is in the way, and OSError.
        """
        asked = self.asked.setdefault(task.index, {})
        if suffix not in asked:
            final = self._final(task, suffix)
            self._make_folder_for(final)
            hidden = final.parent / hidden_output(self.attempt, task.index, suffix)
            asked[suffix] = _Asked(hidden, final)
        return asked[suffix].hidden

    def _final(self, task: Task, suffix: str) -> Path:
        """Where this output will be published. Raises ValueError."""
        if "/" in suffix or "\0" in suffix:
            raise ValueError(
                f"ctx.output: suffix {suffix!r} holds a slash; let the output be a folder instead"
            )
        final = self.root / f"{task.key}{suffix}"
        try:
            size = len(final.name.encode())
        except UnicodeEncodeError:
            raise ValueError(f"ctx.output: suffix {suffix!r} is not UTF-8") from None
        if size > NAME_BYTES:
            raise ValueError(
                f"the output {final.name!r} would have a name of more than {NAME_BYTES} bytes"
            )
        return final

    def _make_folder_for(self, final: Path) -> None:
        try:
            self._make_folder(final.parent)
        except FileExistsError as error:
            raise OutputError(
                f"{error.filename} {IN_THE_WAY}: it cannot hold {final.name!r}"
            ) from None
        except OSError as error:
            self.trouble = error
            raise

    def _make_folder(self, folder: Path) -> None:
        """mkdir -p; each new name is durable before anything is made below it."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            fsync_dir(folder.parent)

    def folders(self) -> list[Path]:
        """The folders in which the tasks in hand asked for paths."""
        return [asked.final.parent for several in self.asked.values() for asked in several.values()]

    def discard(self, tasks: Iterable[int] | None = None) -> None:
        """Forget and delete what these tasks wrote; without an argument, what all in hand wrote."""
        if tasks is None:
            tasks = list(self.asked)
        for index in tasks:
            self._remove_all(self.asked.pop(index, {}))

    def _remove_all(self, asked: dict[str, _Asked]) -> None:
        for one in asked.values():
            if not _remove(one.hidden):
                self.left_behind += 1

    def publish(self, tasks: Iterable[int]) -> dict[int, list[tuple[str, int]] | OutputError]:
        """Publish what these tasks wrote; the commit instant of each is its link(2) or rename(2).

        Returns for each task that asked for outputs the (name below OUT, bytes) of all of them, or
        why they cannot be published; then they are deleted. Raises OSError.
        """
        published: dict[int, list[tuple[str, int]] | OutputError] = {}
        folders: set[Path] = set()
        for index in tasks:
            asked = self.asked.pop(index, {})
            if not asked:
                continue
            complaint = _complaint(asked)
            if complaint:
                self._remove_all(asked)
                published[index] = OutputError(complaint)
                continue
            published[index] = [self._publish(one) for one in asked.values()]
            folders.update(one.final.parent for one in asked.values())
        for folder in folders:
            fsync_dir(folder)
            self._sync_above(folder)
        return published

    def _sync_above(self, folder: Path) -> None:
        """Make the names of a folder and of those above it durable, up to the root, once each.

        Not only of folders that we made: whoever made one may have died before it was synced.
        """
        while folder != self.root and folder not in self._named:
            self._named.add(folder)
            folder = folder.parent
            fsync_dir(folder)

    def _publish(self, asked: _Asked) -> tuple[str, int]:
        """Give one output its final name; returns that name below the root, and its bytes."""
        if asked.hidden.is_dir():
            self._publish_folder(asked)
        else:
            self._publish_file(asked)
        return str(asked.final.relative_to(self.root)), _size(asked.final)

    def _publish_folder(self, asked: _Asked) -> None:
        _sync_tree(asked.hidden)
        try:
            # rename(2) alone would replace a folder that came first and is empty.
            if asked.final.is_dir():
                raise FileExistsError
            rename(asked.hidden, asked.final)
        except OSError:
            if not asked.final.is_dir():
                raise
            if not _remove(asked.hidden):
                self.left_behind += 1

    def _publish_file(self, asked: _Asked) -> None:
        fsync_file(asked.hidden)
        try:
            is_ours = link_or_not(asked.hidden, asked.final)
            if not is_ours and asked.final.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(asked.final))
        finally:
            if not remove_quietly(asked.hidden):
                self.left_behind += 1


def _complaint(asked: dict[str, _Asked]) -> str:
    """Why a task's outputs cannot be published; "" where they can."""
    for suffix, one in asked.items():
        if not one.hidden.exists():
            return (
                f"ctx.output(task, {suffix!r}) was asked for and nothing was written to the path "
                "it gave"
            )
        if one.final.exists() and one.final.is_dir() != one.hidden.is_dir():
            what = "folder" if one.final.is_dir() else "file"
            return f"{one.final} {IN_THE_WAY}: it is a {what}"
    return ""


def _remove(path: Path) -> bool:
    """Delete a file or folder of ours. False: it may still be there."""
    if path.is_dir() and not path.is_symlink():
        remove_tree_quietly(path)
        return not path.exists()
    return remove_quietly(path)


def _sync_tree(root: Path) -> None:
    """Make all that lies in a folder durable.

    Links and sockets hold no data of their own: syncing their folder is enough.
    """
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if is_regular(path):
                fsync_file(path)
        fsync_dir(Path(folder))


def _size(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            size += Path(folder, name).lstat().st_size
    return size
