"""Who may decide what this process runs and where it writes: whose spool is accepted.

Whoever can write to a spool can make its next start run other code. Two facts tell who that is:

- The *owner* of a file or folder may have written anything into it, whatever its mode says now,
  since an owner can change the mode. So what decides about code must belong to this user, to root,
  or to somebody whom the user named (`--trust-owner`).
- The *mode* says who else may write. What everybody may write is refused. What a group may write is
  accepted: a folder that a group shares is normal, and its owner chose the group.

Checked are the spool's folder and the folders in it, its run record, the copies of the job, and
every intent and manifest that was read. Of the latter the owner is asked of the very descriptor
that was read, so that no file can be exchanged in between. Journals, claims, heartbeats and logs
decide about no code, so they may be anybody's who can put them there: in a folder that belongs to
trusted people only a member of its group can.

What reads a spool and runs nothing of it (`status`, `results`, …) asks none of this.

Called by every verb that writes to a spool, and by each worker before it runs anything.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import SUBDIRS, Layout, hidden_name
from gpuspool.spool.publish import FILE_MODE, Owners

# The user who may change every file anyway.
ROOT = 0

# A user id is less than this; the largest number means "no user" to the kernel.
UID_LIMIT = 2**32 - 1


class Trust:
    """The users whose files may decide what this process runs: itself, root, and those it named."""

    def __init__(self, named: Iterable[int] = ()) -> None:
        """named: the user ids that the user trusts beside its own and root's."""
        self.named = sorted(set(named))
        self._uids = {ROOT, os.geteuid(), *self.named}
        self._was_tried = False

    def covers(self, uid: int, folder: Path) -> bool:
        """Whether files of this user, in this folder, are accepted."""
        if uid in self._uids:
            return True
        if not self._was_tried:
            self._was_tried = True
            self._learn_own_name(folder)
        return uid in self._uids

    # A file server may know this user by another number: NFS makes nobody of root, or one user of
    # everybody, and sshfs shows the numbers of the other machine. What this user writes there then
    # belongs to somebody else, and his own spool would be refused. So where a strange owner is met,
    # and only then, a file is made in that folder to see whose it is. On a local file system it
    # always belongs to this user, so a stranger stays one. Where the server makes one of several
    # users, nobody can tell them apart.
    def _learn_own_name(self, folder: Path) -> None:
        """Trust the number that the file system of this folder gives to what this user writes."""
        name = hidden_name("owner")
        with contextlib.suppress(OSError):
            # The file is made and removed by way of the descriptor, so that a folder which somebody
            # exchanges meanwhile is never touched.
            where = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(name, flags, FILE_MODE, dir_fd=where)
                try:
                    self._uids.add(os.fstat(fd).st_uid)
                finally:
                    os.close(fd)
                    os.unlink(name, dir_fd=where)
            finally:
                os.close(where)


def trust_in(names: str | Iterable[str]) -> Trust:
    """Trust in this user, in root, and in the users with these names or numbers.

    Raises UsageError for a name that this host does not know.
    """
    if isinstance(names, str):
        names = [names]
    return Trust(map(_uid_of, names))


def _uid_of(name: str) -> int:
    """The number of a user. A name of digits is a number, unless a user is really called so."""
    import pwd

    name = str(name)
    with contextlib.suppress(KeyError, ValueError):
        return pwd.getpwnam(name).pw_uid
    if name.isascii() and name.isdigit() and int(name) < UID_LIMIT:
        return int(name)
    raise UsageError(
        f"--trust-owner {name}: this host knows no user of that name. Give a name that `id` knows, "
        "or the number that `ls -n` shows."
    )


def user_name(uid: int) -> str:
    """The name of a user, or the number where this host knows no name for it."""
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def refuse_unsafe(layout: Layout, trust: Trust, read: Owners, scripts: Iterable[Path] = ()) -> None:
    """Refuse a spool in which somebody else may make this user run code, or write elsewhere.

    That is one that everybody may write, one whose own folders are links, and one in which what
    decides about code belongs to somebody who is not trusted. read: who owns the records that were
    read of it. scripts: further files in it that are to be run. Raises UsageError, which names
    every stranger at once, and OSError.
    """
    owners = dict(read)
    for path in (*_deciding(layout), *scripts):
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            # Not even a stranger's file decides anything once it is gone. The hidden file of
            # another start, or of a worker, is there for a moment and then has its name.
            continue
        _refuse_writable(path, there.st_mode, layout)
        owners.setdefault(there.st_uid, str(path))
    refuse_strangers(layout, trust, owners)


def refuse_strangers(layout: Layout, trust: Trust, owners: Owners) -> None:
    """Raise UsageError, which names all of them, if any of these owners is not trusted."""
    strangers: Owners = {}
    for uid, where in owners.items():
        if not trust.covers(uid, layout.root):
            strangers[uid] = where
    if strangers:
        raise UsageError(_about(strangers, layout))


def _deciding(layout: Layout) -> Iterator[Path]:
    """The folders of a spool, its run record and all that lies beside the copies of its job.

    What was listed may be gone by the time it is looked at.

    Raises UsageError where a folder is a link.
    """
    yield layout.root
    if layout.root.is_symlink():
        # Whoever owns the link says which folder this is, and whoever owns that one what is in it.
        yield layout.root.resolve()
    for folder in (*map(layout.subdir, SUBDIRS), layout.slurm):
        if folder.is_symlink():
            raise UsageError(
                f"{folder} is a symbolic link; inside a spool none is followed. "
                "Move the folder that it names into its place."
            )
        if folder.is_dir():
            yield folder
    yield layout.run
    yield from _entries(layout.subdir("job"))


def _entries(folder: Path) -> list[Path]:
    """All that lies in a folder; nothing where there is none."""
    if not folder.is_dir():
        return []
    return [folder / name for name in os.listdir(folder)]


def _refuse_writable(path: Path, mode: int, layout: Layout) -> None:
    """Raise UsageError for what everybody may write. The mode of a link means nothing."""
    if mode & stat.S_IWOTH and not stat.S_ISLNK(mode):
        raise UsageError(
            f"{path} may be written by everybody, so its job cannot be trusted. "
            f"`chmod -R o-w {layout.root}` and look at it before you go on."
        )


def _about(strangers: Owners, layout: Layout) -> str:
    """Whose files were met, whose code would run as whom, and what to do."""
    names = [user_name(uid) for uid in strangers]
    belongs = ", ".join(
        f"{path} belongs to {name}" for path, name in zip(strangers.values(), names, strict=True)
    )
    options = " ".join(f"--trust-owner {name}" for name in names)
    return (
        f"{layout.root} is not yours alone: {belongs}, and code that it names would run as "
        f"{user_name(os.geteuid())}. If you trust them with that, go on with {options}; else use "
        "another --spool."
    )
