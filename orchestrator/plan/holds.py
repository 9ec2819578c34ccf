"""Whether a folder may be renamed, or used for outputs: what lies in it, and in what it lies.

`--overwrite` renames an OUT that is in the way, and `--fresh` a spool. A slip of the hand (`--out
.`) would take away the project, the inputs, or the very environment that runs. So a folder is not
renamed while it holds anything that this run or its user still needs under its old path.

Folders are compared as the kernel knows them, by device and inode, since a path may lead to one by
way of links, `..` or a bind mount. Nothing here changes anything. Called when a spool is made.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from gpuspool.orchestrator.plan.inputs import TaskList
from gpuspool.orchestrator.plan.request import Request
from gpuspool.spool.errors import UsageError
from gpuspool.spool.file_system import mount_points
from gpuspool.spool.layout import SUBDIRS, Layout


class Folder:
    """A folder, by which paths are asked whether they lie in it."""

    def __init__(self, path: Path) -> None:
        there = path.stat()
        self._path = path
        self._real = path.resolve()
        self._identity = (there.st_dev, there.st_ino)
        # A million inputs lie in few folders, and each is looked at once.
        self._is_below = functools.cache(self._look)

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path is this folder, or lies in it, or leads through it by a link."""
        absolute = os.path.abspath(path)
        for one in (absolute, os.path.realpath(absolute)):
            folder = one
            if not os.path.isdir(one):
                folder = os.path.dirname(one)
            if self._is_below(folder):
                return True
        # The path may be a link that lies in here and leads out.
        return self._is_below(os.path.dirname(absolute))

    def _look(self, folder: str) -> bool:
        """Whether a folder is this one, or one of the folders above it is."""
        for one in (Path(folder), *Path(folder).parents):
            try:
                there = one.stat()
            except OSError:
                continue
            if (there.st_dev, there.st_ino) == self._identity:
                return True
        return False

    def mounts(self) -> Iterator[str]:
        """The points at or below this folder where a file system is mounted."""
        top = os.fspath(self._real).rstrip("/") + "/"
        try:
            points = mount_points()
        except OSError:
            return
        for point in points:
            if (point.rstrip("/") + "/").startswith(top):
                yield point


def refuse_to_rename(folder: Path, why: str, request: Request, spool: Path | None) -> None:
    """Raise UsageError if a folder holds what this run or its user needs under its old path.

    why: what would rename it, for the message: "--overwrite". spool: that of the run, None where it
    is the folder itself.
    """
    asked = Folder(folder)
    for what, path in _needed(request, spool):
        if asked.holds(path):
            raise UsageError(
                f"{folder} holds {what} {path}, so {why} does not rename it. Name another folder."
            )
    for point in asked.mounts():
        raise UsageError(
            f"a file system is mounted on {point}, so {why} does not rename {folder}. Name another "
            "folder."
        )


def _needed(request: Request, spool: Path | None) -> Iterator[tuple[str, str]]:
    """What a run and its user need under the path that it has, each with its name for people."""
    yield "the current folder", os.getcwd()
    yield "your home folder", os.path.expanduser("~")
    yield "the Python that runs this,", sys.prefix
    if spool is not None:
        yield "the spool", str(spool)
    if request.job.file:
        yield "the job", request.job.file
    for word in request.job.command:
        if Path(word).exists():
            yield "a file of the command,", os.path.abspath(word)
    for path in input_paths(request.tasks):
        if os.path.lexists(path):
            yield "the input", path


def input_paths(tasks: TaskList) -> Iterator[str]:
    """The paths of those tasks that are files."""
    for task in tasks:
        payload = msgspec.json.decode(task.payload)
        if isinstance(payload, dict) and isinstance(payload.get("path"), str):
            yield payload["path"]


def refuse_in_spool(out: Path, spool: Path) -> None:
    """Raise UsageError for an OUT that is a spool or lies in one, but for its folder of outputs.

    spool: that of the run, which may not exist yet.
    """
    for path in dict.fromkeys((out, Path(os.path.realpath(out)))):
        for root in (path, *path.parents):
            if not _is_spool(root) and root not in (spool, Path(os.path.realpath(spool))):
                continue
            if path.relative_to(root).parts[:1] != ("outputs",):
                raise UsageError(
                    f"--out {out} lies in the spool {root}, among its records. Name a folder "
                    f"outside of it, or leave --out away: outputs then go to {spool}/outputs."
                )
    # A bind mount shows a folder of a spool where no path tells it.
    own = _identities(map(Layout(spool).subdir, SUBDIRS))
    for folder in (out, *out.parents):
        if own and not own.isdisjoint(_identities([folder])):
            raise UsageError(f"--out {out} is a folder of the spool {spool}. Name another folder.")


def _is_spool(path: Path) -> bool:
    layout = Layout(path)
    return layout.format.is_file() and (layout.run.exists() or layout.run_copy.exists())


def _identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """The device and inode of each of these folders that exists."""
    found: set[tuple[int, int]] = set()
    for path in paths:
        try:
            there = path.stat()
        except OSError:
            continue
        if stat.S_ISDIR(there.st_mode):
            found.add((there.st_dev, there.st_ino))
    return found
