"""Task outputs: written under hidden names, published whole; the first one published stays.

The order of events, for one call of the job:

1. The job asks for paths (`path`) and writes there. Nobody else looks at hidden names.
2. Every file is fsynced.
3. link(2) gives each file its final name; a folder gets it by rename(2). At that instant the output
   is published.
4. The folders are fsynced, once for the whole call.
5. The folders are looked at once more: they must be those that they were.
6. Only then may the journal say "complete".

Whoever finds the final name taken deletes its own: the task ran twice, and its output exists once
and is never replaced. After a crash only hidden names are left, which the orchestrator removes.

A path is given only for a task in hand, while its call lasts. So nobody, in another call, thread or
process, can write what no journal line will ever tell of.

What is published is whole and nobody else's: a plain file, or a folder of such. Anything else that
lies at a hidden path is the fault of its task, and so is an error that the system has for this one
name while the folder takes data. All other errors are the file system's, and fail no task.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

import msgspec

from gpuspool.spool.errors import FolderGone, OutputError, SyncError
from gpuspool.spool.file_system import file_system_type
from gpuspool.spool.layout import (
    NAME_BYTES,
    PATH_BYTES,
    hidden_output,
    leads_out,
    parse_hidden_output,
    refuse_key,
)
from gpuspool.spool.publish import (
    FOLDER_MODE,
    fsync_dir,
    fsync_file,
    link_or_not,
    probe_folder,
    remove_quietly,
    remove_tree_quietly,
    rename,
)
from gpuspool.worker import children
from gpuspool.worker.context import Task

# The end of a complaint about a name that another task's output has.
IN_THE_WAY = (
    "was there first, as another task's output or around one; give all outputs the same suffix"
)
# Errors that the system has for one name: it is too long for this file system or holds what that
# does not take, something else is at its place, or whoever made it allows nobody to use it. Whether
# the name is to blame or all of the file system shows when another name is tried.
OF_ONE_NAME = (
    errno.EACCES,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
)
# What a path may be, other than a file or a folder, in words.
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class _Asked(msgspec.Struct, frozen=True):
    """An output that a task asked for: where it is written, and where it will be published.

    replaces: it takes the place of what a task that is redone has published before.
    """

    hidden: Path
    final: Path
    replaces: bool = False


class Outputs:
    """The outputs of the tasks in hand of one attempt."""

    def __init__(
        self,
        root: Path,
        writer: str,
        check_folders: Callable[[], None] = lambda: None,
        held: Path | None = None,
    ) -> None:
        """writer: who writes, as hidden names tell it. check_folders: raises where the spool or OUT
        is not the folder that it was. held: a path that leads to OUT also if it was moved.
        """
        self.root = root
        self._held = held or root
        self._writer = writer
        self._check_folders = check_folders
        # The tasks whose call is under way: only these may ask. Whoever calls the job says so.
        self.in_hand: Container[int] = ()
        # Those of them that are redone: what they publish replaces what is there.
        self.redone: Container[int] = ()
        # task -> suffix -> what was asked for, of the tasks in hand
        self.asked: dict[int, dict[str, _Asked]] = {}
        # How often outputs were deleted. It is part of later hidden names: a thread that outlives
        # a call which failed must not write into what the next one does.
        self._discards = 0
        # How many hidden names could not be removed.
        self.left_behind = 0
        # Called before each file that is published, since no limit of time holds for all of them.
        self.on_progress: Callable[[], None] = _ignore
        # What `path` met, whatever the job made of it: no task is to blame for that.
        self.trouble: OSError | None = None
        # The folders below the root whose own names are durable.
        self._named: set[Path] = set()
        # What the folders below the root were when they were met first: device and inode.
        self._known: dict[Path, tuple[int, int]] = {}

    def path(self, task: Task, suffix: str) -> Path:
        """The hidden path for one output; asked again, it is the same.

        Raises ValueError for a suffix that no file name can end in, OutputError where the task is
        not in hand, or its output cannot be made and no other task is concerned, and OSError.
        """
        self._refuse_others(task)
        asked = self.asked.setdefault(task.index, {})
        if suffix not in asked:
            final = self._final(task, suffix)
            self._make_folder_for(final)
            ending = suffix
            if self._discards:
                ending = f"{self._discards}-{suffix}"
            hidden = final.parent / hidden_output(self._writer, task.index, ending)
            asked[suffix] = _Asked(hidden, final, task.index in self.redone)
        return asked[suffix].hidden

    def _refuse_others(self, task: Task) -> None:
        """Raise OutputError where what is written would never be published."""
        if children.is_fork:
            raise OutputError(
                f"ctx.output for task {task.key} was asked for in a process that the job started; "
                "ask in the job's call, and hand the path to the process"
            )
        if task.index not in self.in_hand:
            raise OutputError(
                f"ctx.output for task {task.key} was asked for outside of its call; ask in the "
                "call that gets the task, before that call returns"
            )

    def _final(self, task: Task, suffix: str) -> Path:
        """Where this output will be published. Raises ValueError."""
        if "/" in suffix or "\0" in suffix:
            raise ValueError(
                f"ctx.output: suffix {suffix!r} holds a slash; let the output be a folder instead"
            )
        # The key stands in a manifest, which others may have written.
        name = f"{task.key}{suffix}"
        reason = refuse_key(task.key) or leads_out(name)
        if reason is not None:
            raise ValueError(f"ctx.output: the name {name!r:.120} {reason}")
        final = self.root / name
        try:
            suffix.encode()
        except UnicodeEncodeError:
            raise ValueError(f"ctx.output: suffix {suffix!r} is not UTF-8") from None
        for name in f"{task.key}{suffix}".split("/"):
            if len(os.fsencode(name)) > NAME_BYTES:
                raise OutputError(
                    f"the output of task {task.key!r:.100} would have a name of more than "
                    f"{NAME_BYTES} bytes in its path, {name!r:.300}; give the task a shorter key"
                )
        if len(os.fsencode(final)) > PATH_BYTES:
            raise OutputError(
                f"the output of task {task.key!r:.100} would have a path of more than "
                f"{PATH_BYTES} bytes; give the task a shorter key"
            )
        return final

    def _make_folder_for(self, final: Path) -> None:
        try:
            self._make_folder(final.parent)
            self._check_below([final.parent])
        except FileExistsError as error:
            raise OutputError(
                f"{error.filename} {IN_THE_WAY}: it cannot hold {final.name!r}"
            ) from None
        except OSError as error:
            try:
                self._judge(error, final.parent)
            except OSError as trouble:
                self.trouble = trouble
                raise
            raise OutputError(f"the folder of {final} cannot be made: {error}") from None

    def _judge(self, error: OSError, folder: Path) -> None:
        """Return where an error concerns one name in this folder alone; else raise OSError.

        The folder need not be there: then the nearest one above it that is, is tried.
        """
        if error.errno not in OF_ONE_NAME:
            raise error
        while folder != self.root and not os.path.isdir(folder):
            folder = folder.parent
        try:
            self.probe(folder)
        except OSError:
            # Whoever made this folder of OUT keeps others out of it. That is no trouble of OUT.
            if folder == self.root:
                raise
            self.probe(self.root)

    def probe(self, folder: Path) -> None:
        """Look whether a folder of OUT takes data; raises OSError if not.

        In the folder that is held, since another one may have come to its path in this moment.
        """
        try:
            probe_folder(self._held / folder.relative_to(self.root))
        except OSError as error:
            error.filename = str(folder)
            raise

    def _make_folder(self, folder: Path) -> None:
        """mkdir -p below the root; each new name is durable before anything is made below it.

        The root itself is made when the run is made, and never again: where it is missing, what
        was published before is missing too.
        """
        missing = []
        while not folder.is_dir():
            if folder == self.root:
                self._check_folders()
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            folder.mkdir(FOLDER_MODE, exist_ok=True)
            fsync_dir(folder.parent)

    def check(self) -> None:
        """Return if all folders that the tasks in hand write to are what they were.

        Otherwise nothing that they met, or that seems to be missing, says anything about a task.
        Raises FolderGone, and OSError.
        """
        self._check_all(set(self.folders()))

    def _check_all(self, folders: Iterable[Path]) -> None:
        self._check_folders()
        self._check_below(folders)

    def _check_below(self, folders: Iterable[Path]) -> None:
        """Raise FolderGone where a folder below the root is not the one that was met first."""
        for folder in folders:
            if folder == self.root:
                continue
            try:
                found = os.stat(folder)
            except (FileNotFoundError, NotADirectoryError):
                raise _gone(folder, "it was moved, removed or unmounted") from None
            now = (found.st_dev, found.st_ino)
            if now != self._known.setdefault(folder, now) and not self._renumbers(folder, now):
                raise _gone(folder, "another folder is there now")

    def _renumbers(self, folder: Path, now: tuple[int, int]) -> bool:
        """Whether a folder may have another number and still be the same.

        FUSE forgets the numbers of folders that nobody holds open. Those of the spool and of OUT
        are held; holding every folder below OUT would take too many descriptors.
        """
        is_same_device = now[0] == self._known[folder][0]
        return is_same_device and file_system_type(folder.resolve()).startswith("fuse")

    def folders(self) -> list[Path]:
        """The folders in which the tasks in hand asked for paths."""
        return [asked.final.parent for several in self.asked.values() for asked in several.values()]

    def discard(self, tasks: Iterable[int] | None = None) -> None:
        """Forget and delete what these tasks wrote; without an argument, what all in hand wrote."""
        if tasks is None:
            tasks = list(self.asked)
        for index in tasks:
            asked = self.asked.pop(index, {})
            if asked:
                self._discards += 1
                self._remove_all(asked)

    def _remove_all(self, asked: dict[str, _Asked]) -> None:
        for one in asked.values():
            if not _remove(one.hidden):
                self.left_behind += 1

    def publish(self, tasks: Iterable[int]) -> dict[int, list[tuple[str, int]] | OutputError]:
        """Publish what these tasks wrote; the commit instant of each is its link(2) or rename(2).

        Returns for each task that asked for outputs the (name below OUT, bytes) of all of them, or
        why they cannot be published; then they are deleted. Raises OSError.

        All folders are checked before and after. Before, since a task is not to blame if what it
        wrote is nowhere. After, since only then it is certain that the outputs lie where they
        belong: between the two, the mount below OUT may go away.
        """
        tasks = list(tasks)
        folders = {one.final.parent for task in tasks for one in self.asked.get(task, {}).values()}
        if not folders:
            return {}
        try:
            self.check()
            published = self._publish_tasks(tasks)
        except OSError:
            self.discard()
            # Where a folder is another one now, that is the reason, and not what was met there.
            self._check_all(folders)
            raise
        self._check_all(folders)
        return published

    def _publish_tasks(
        self, tasks: Iterable[int]
    ) -> dict[int, list[tuple[str, int]] | OutputError]:
        """Publish what these tasks wrote, as `publish` tells."""
        published: dict[int, list[tuple[str, int]] | OutputError] = {}
        folders: set[Path] = set()
        for index in tasks:
            asked = self.asked.pop(index, {})
            if not asked:
                continue
            try:
                published[index] = self._publish_all(asked)
            except OutputError as complaint:
                self._remove_all(asked)
                published[index] = complaint
                continue
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

    def _publish_all(self, asked: dict[str, _Asked]) -> list[tuple[str, int]]:
        """Publish all that one task wrote. Raises OutputError where the task is to blame."""
        try:
            _check(asked)
            return [self._publish(one) for one in asked.values()]
        except SyncError:
            raise
        except OSError as error:
            self._judge(error, next(iter(asked.values())).final.parent)
            # A thread or process of the job may have taken it away meanwhile.
            raise OutputError(f"what was written cannot be published: {error}") from None

    def _publish(self, asked: _Asked) -> tuple[str, int]:
        """Give one output its final name; returns that name below the root, and its bytes."""
        self.on_progress()
        if asked.hidden.is_dir():
            self._publish_folder(asked)
        else:
            self._publish_file(asked)
        return str(asked.final.relative_to(self.root)), _size(asked.final)

    def _publish_folder(self, asked: _Asked) -> None:
        _sync_tree(asked.hidden, self.on_progress)
        if asked.replaces and asked.final.is_dir():
            # No call replaces a folder that holds anything, so the old one steps aside first.
            old = asked.hidden.with_name(f"{asked.hidden.name}-old")
            rename(asked.final, old)
            if not _remove(old):
                self.left_behind += 1
        try:
            # rename(2) alone would replace a folder that came first and is empty.
            if asked.final.is_dir():
                raise FileExistsError
            rename(asked.hidden, asked.final)
        except OSError:
            if not asked.final.is_dir():
                raise
            _refuse_namesake(asked.final)
            if not _remove(asked.hidden):
                self.left_behind += 1

    def _publish_file(self, asked: _Asked) -> None:
        fsync_file(asked.hidden)
        try:
            is_ours = link_or_not(asked.hidden, asked.final)
            if not is_ours and asked.replaces and not asked.final.is_dir():
                rename(asked.hidden, asked.final)
                return
            if not is_ours and asked.final.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(asked.final))
            if not is_ours:
                _refuse_namesake(asked.final)
        finally:
            if not remove_quietly(asked.hidden):
                self.left_behind += 1


def _gone(folder: Path, why: str) -> FolderGone:
    return FolderGone(
        f"{folder} is not the folder that it was: {why}. What was published there may be gone. No "
        "task is to blame. Mount it or move it back, then run the same command again."
    )


def _check(asked: dict[str, _Asked]) -> None:
    """Raise OutputError where a task's outputs cannot be published. Raises OSError."""
    for suffix, one in asked.items():
        try:
            wrote = os.lstat(one.hidden)
        except FileNotFoundError:
            message = (
                f"ctx.output(task, {suffix!r}) was asked for and nothing was written to the path "
                "it gave"
            )
            found = _find_beside(suffix, asked)
            if found is not None:
                beside, ending = found
                message += (
                    f", but a file that ends in {ending!r} was written beside it: some libraries "
                    f"choose the ending themselves. Ask for ctx.output(task, {ending!r})"
                )
                # Its task has failed, so nobody will ever publish it.
                _remove(beside)
            raise OutputError(message) from None
        what = f"ctx.output(task, {suffix!r})"
        if stat.S_ISDIR(wrote.st_mode):
            _check_folder(one.hidden, what)
        else:
            _check_file(wrote, 1, what)
        _check_final(one.final, stat.S_ISDIR(wrote.st_mode))


def _find_beside(suffix: str, asked: dict[str, _Asked]) -> tuple[Path, str] | None:
    """A file that was written beside the path that was given, and its ending; None without one.

    `numpy.save` adds .npy to a path that does not end so; others add or replace other suffixes.
    What they wrote bears a name that is made of ours.
    """
    one = asked[suffix]
    others = {other.hidden.name for other in asked.values()}
    for name in sorted(os.listdir(one.hidden.parent)):
        ending = _ending_beside(one.hidden.name, suffix, name)
        if ending and name not in others:
            return one.hidden.with_name(name), ending
    return None


def _ending_beside(hidden: str, suffix: str, name: str) -> str:
    """The ending by which a name differs from a hidden one; "" where it differs in more."""
    stem = hidden.removesuffix(suffix)
    if not name.startswith(f"{stem}."):
        # Without a suffix `Path.with_suffix` replaces the end of the name itself.
        stem = os.path.splitext(hidden)[0]
        if suffix or parse_hidden_output(name) is not None:
            return ""
    return name.removeprefix(stem) if name.startswith(f"{stem}.") else ""


def _check_file(wrote: os.stat_result, names: int, what: str) -> None:
    """Raise OutputError for what is no plain file, or has more names than these."""
    kind = _KINDS.get(stat.S_IFMT(wrote.st_mode))
    if kind is not None:
        raise OutputError(f"{what} is {kind}; an output is a file or a folder of its own")
    if wrote.st_nlink > names:
        raise OutputError(
            f"{what} is a hard link to a file elsewhere, which may change; write a copy"
        )


def _check_folder(root: Path, what: str) -> None:
    """Raise OutputError for a folder that holds anything but files, folders and links within it.

    Raises OSError for a folder that cannot be read.
    """
    # Files that are there under several names of the same folder are as much its own as others.
    names: Counter[tuple[int, int]] = Counter()
    files: dict[tuple[int, int], tuple[os.stat_result, str]] = {}
    for path in _files_in(root):
        about = os.lstat(path)
        inside = f"{what}: {path.relative_to(root)}"
        if stat.S_ISLNK(about.st_mode):
            _check_link(path, root, inside)
            continue
        names[about.st_dev, about.st_ino] += 1
        files[about.st_dev, about.st_ino] = (about, inside)
    for inode, (about, inside) in files.items():
        _check_file(about, names[inode], inside)


def _check_link(path: Path, root: Path, what: str) -> None:
    """Raise OutputError for a link that leads to nothing, or out of its folder."""
    if os.path.isabs(os.readlink(path)):
        raise OutputError(f"{what} is a link with an absolute path, and the folder gets a new name")
    target = os.path.realpath(path)
    # Of a link that leads to itself `realpath` makes what it was given.
    if not path.exists() or not Path(target).is_relative_to(os.path.realpath(root)):
        raise OutputError(f"{what} is a link that leads out of the folder, or to nothing")


def _files_in(root: Path) -> Iterator[Path]:
    """All that lies in a folder and those below it, but for the folders. Raises OSError."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        for name in names:
            yield Path(folder, name)
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                yield Path(folder, name)


def _check_final(final: Path, is_folder: bool) -> None:
    """Raise OutputError where something other than this kind of output has its final name."""
    try:
        there = os.lstat(final)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(there.st_mode) and not is_folder:
        raise OutputError(f"{final} {IN_THE_WAY}: it is a folder")
    if stat.S_ISREG(there.st_mode) and is_folder:
        raise OutputError(f"{final} {IN_THE_WAY}: it is a file")
    kind = _KINDS.get(stat.S_IFMT(there.st_mode))
    if kind is not None:
        raise OutputError(f"{final} was there first: it is {kind}. Remove it, then retry")


# Some file systems do not tell names apart that differ in case, or in how an accent is encoded. On
# these the second of two such outputs finds its name taken, as if its task had run before; it would
# be dropped, and its task be complete. The listing shows under which name the first one came. A
# name that is not listed proves nothing: listings of network file systems may be old.
def _refuse_namesake(final: Path) -> None:
    """Raise OutputError where what has this output's name was published under another name."""
    listed = os.listdir(final.parent)
    if final.name in listed:
        return
    for name in listed:
        if _folded(name) == _folded(final.name):
            raise OutputError(
                f"{final} {IN_THE_WAY}: this file system does not tell its name from {name!r}"
            )


def _folded(name: str) -> str:
    """A name without what some file systems ignore."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _remove(path: Path) -> bool:
    """Delete a file or folder of ours. False: it may still be there."""
    if path.is_dir() and not path.is_symlink():
        remove_tree_quietly(path)
        return not path.exists()
    return remove_quietly(path)


def _ignore() -> None:
    """Nobody wants to know."""


def _sync_tree(root: Path, on_progress: Callable[[], None]) -> None:
    """Make all that lies in a folder durable; `on_progress` is called before each file.

    Links hold no data of their own: syncing their folder is enough.
    """
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                on_progress()
                fsync_file(Path(path))
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
