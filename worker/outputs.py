"""Task outputs: written under hidden names, published whole, first come first kept.

Order: the job writes; every file is fsynced; link(2) to the final name (a folder: rename(2)); the
folders are fsynced, once for a whole batch; only then may the journal say "complete". Whoever finds
the final name taken deletes its own: the task ran twice, its output exists once and is never
replaced.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gpuspool.spool.errors import OutputError as OutputError
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

IN_THE_WAY = (
    "was there first, as another task's output or around one; give all outputs the same suffix"
)
NAME_BYTES = 255  # of one name on the file systems that people use


class _Asked(msgspec.Struct, frozen=True):
    hidden: Path
    final: Path


class Outputs:
    """The outputs of the tasks in hand of one attempt."""

    def __init__(self, root: Path, attempt: str) -> None:
        self.root = root
        self.attempt = attempt
        self.asked: dict[int, dict[str, _Asked]] = {}  # by the tasks in hand
        self._named: set[Path] = set()
        self.left_behind = 0  # hidden names that could not be removed
        self.trouble: OSError | None = None  # that `path` met, whatever the job made of it

    def path(self, task: Task, suffix: str) -> Path:
        """The hidden path for one output; the same for the same question."""
        if "/" in suffix or "\0" in suffix:
            raise ValueError(
                f"ctx.output: suffix {suffix!r} holds a slash; let the output be a folder instead"
            )
        asked = self.asked.setdefault(task.index, {})
        if suffix not in asked:
            final = self.root / f"{task.key}{suffix}"
            try:
                size = len(final.name.encode())
            except UnicodeEncodeError:
                raise ValueError(f"ctx.output: suffix {suffix!r} is not UTF-8") from None
            if size > NAME_BYTES:
                raise ValueError(
                    f"the output {final.name!r} would have a name of more than {NAME_BYTES} bytes"
                )
            try:
                self._make_folder(final.parent)
            except FileExistsError as error:
                raise OutputError(
                    f"{error.filename} {IN_THE_WAY}: it cannot hold {final.name!r}"
                ) from None
            except OSError as error:
                self.trouble = error
                raise
            hidden = final.parent / hidden_output(self.attempt, task.index, suffix)
            asked[suffix] = _Asked(hidden, final)
        return asked[suffix].hidden

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            fsync_dir(folder.parent)

    def folders(self) -> list[Path]:
        """The folders that the tasks in hand asked for paths in."""
        return [asked.final.parent for several in self.asked.values() for asked in several.values()]

    def _sync_above(self, folder: Path) -> None:
        """The names of folders below OUT, once each: who made one may have died before it was
        synced.
        """
        while folder != self.root and folder not in self._named:
            self._named.add(folder)
            folder = folder.parent
            fsync_dir(folder)

    def discard(self, tasks: Iterable[int] | None = None) -> None:
        """Forget and delete what these tasks wrote, or all that are in hand."""
        for index in list(self.asked) if tasks is None else tasks:
            for asked in self.asked.pop(index, {}).values():
                self.left_behind += not _remove(asked.hidden)

    def publish(self, tasks: Iterable[int]) -> dict[int, list[tuple[str, int]] | OutputError]:
        """Publish what these tasks wrote; for each the (name below OUT, bytes) or what is missing.
        Raises OSError.
        """
        published: dict[int, list[tuple[str, int]] | OutputError] = {}
        folders: set[Path] = set()
        for index in tasks:
            asked = self.asked.pop(index, {})
            if not asked:
                continue
            if complaint := _complaint(asked):
                for one in asked.values():
                    self.left_behind += not _remove(one.hidden)
                published[index] = OutputError(complaint)
                continue
            published[index] = [self._publish(one) for one in asked.values()]
            folders.update(one.final.parent for one in asked.values())
        for folder in folders:
            fsync_dir(folder)
            self._sync_above(folder)
        return published

    def _publish(self, asked: _Asked) -> tuple[str, int]:
        if asked.hidden.is_dir():
            _sync_tree(asked.hidden)
            try:
                if (
                    asked.final.is_dir()
                ):  # rename(2) alone would replace one that came first and is empty
                    raise FileExistsError
                rename(asked.hidden, asked.final)
            except OSError:
                if not asked.final.is_dir():
                    raise
                remove_tree_quietly(asked.hidden)
                self.left_behind += asked.hidden.exists()
        else:
            fsync_file(asked.hidden)
            try:
                if not link_or_not(asked.hidden, asked.final) and asked.final.is_dir():
                    raise IsADirectoryError(
                        errno.EISDIR, os.strerror(errno.EISDIR), str(asked.final)
                    )
            finally:
                self.left_behind += not remove_quietly(asked.hidden)
        return str(asked.final.relative_to(self.root)), _size(asked.final)


def _complaint(asked: dict[str, _Asked]) -> str:
    """Why a task's outputs cannot be published; "" where they can."""
    for suffix, one in asked.items():
        if not one.hidden.exists():
            return f"ctx.output(task, {suffix!r}) was asked for and nothing was written to the path it gave"
        if one.final.exists() and one.final.is_dir() != one.hidden.is_dir():
            return f"{one.final} {IN_THE_WAY}: it is a {'folder' if one.final.is_dir() else 'file'}"
    return ""


def _remove(path: Path) -> bool:
    """False: it may still be there."""
    if path.is_dir() and not path.is_symlink():
        remove_tree_quietly(path)
        return not path.exists()
    return remove_quietly(path)


def _sync_tree(root: Path) -> None:
    """Links and sockets hold no data: their folder's sync is theirs."""
    for folder, _, names in os.walk(root):
        for name in names:
            if is_regular(Path(folder, name)):
                fsync_file(Path(folder, name))
        fsync_dir(Path(folder))


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(
            Path(folder, name).lstat().st_size
            for folder, _, names in os.walk(path)
            for name in names
        )
    return path.stat().st_size
