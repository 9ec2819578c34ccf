"""Folders that are known by what they are, not by their paths.

A path is only a way to a folder. While a run goes on, the folder may be renamed or removed, another
file system may be mounted over it, its own may be unmounted, or another run may be made at its
path. Whoever went on to trust the path would write into a folder that has nothing to do with the
run, and call that a success.

So every process of a run opens its spool and OUT when it starts, each as an `OpenFolder`, and
checks them before it believes what it did there. They stay open. That has three uses:

- Its inode cannot be given to a folder that is made at the same path later: `rmdir` and `mkdir`
  often give the same number again.
- The folder can still be reached when the path leads elsewhere, by `held`. A worker that must end
  closes its attempt there, so that its tasks are given back.
- An automatic mount does not go away between two looks, and a plain `umount` is refused, since the
  file system is busy.

The mark in OUT, the id of its run, tells the same from one process to the next.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gpuspool.spool.errors import FolderGone
from gpuspool.spool.layout import OUT_MARK, Layout
from gpuspool.spool.publish import naming, out_of_the_way, patiently, read_bytes
from gpuspool.spool.records import Run

# What people call the two folders, and what helps where one of them is gone.
SPOOL = "the spool"
OUT = "the output folder"
_REMEDIES = {
    SPOOL: "Mount it or move it back, or name the place where it is now, and go on with "
    "`gpuspool resume`.",
    OUT: "Mount it or move it back and run the same command again. If it was moved for good, add "
    "--out-moved-to DIR.",
}


class OpenFolder:
    """One folder, held open from now to the end of this process."""

    def __init__(self, path: Path, what: str) -> None:
        """what: SPOOL or OUT. Raises FolderGone where there is no folder, and OSError."""
        self.path = path
        self._what = what
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self._fd = out_of_the_way(patiently(lambda: os.open(path, flags)))
        except (FileNotFoundError, NotADirectoryError):
            raise self.gone("there is no such folder") from None
        with naming(path):
            self._id = _id_of(os.fstat(self._fd))

    @property
    def held(self) -> Path:
        """A path that leads to this very folder in this process, whatever becomes of `path`."""
        return Path(f"/proc/self/fd/{self._fd}")

    @property
    def folder_id(self) -> str:
        """Which folder it is: `<device>.<inode>`."""
        return self._id

    def check(self) -> None:
        """Return if the path still leads to this folder; raises FolderGone, and OSError.

        One stat(2).
        """
        try:
            now = _id_of(patiently(lambda: os.stat(self.path)))
        except (FileNotFoundError, NotADirectoryError):
            raise self.gone("it was moved, removed or unmounted, and nothing is there") from None
        if now == self._id or now == self._id_by_descriptor():
            return
        raise self.gone("another folder is there now; it was moved, replaced or unmounted")

    def _id_by_descriptor(self) -> str:
        """What the folder that is held open says now.

        A layered file system gives a folder another number once something is written to it. Where
        the job has closed our descriptor, nothing can be said.
        """
        with contextlib.suppress(OSError):
            return _id_of(os.fstat(self._fd))
        return ""

    def gone(self, why: str) -> FolderGone:
        """The error that this folder is not at its path."""
        return FolderGone(
            f"{self._what} {self.path} is not the folder that it was: {why}. No task is to blame, "
            f"and what was in hand is not finished. {_REMEDIES[self._what]}"
        )

    def close(self) -> None:
        """Hold the folder no longer."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


def folder_id(path: Path) -> str:
    """Which folder a path leads to now: `<device>.<inode>`. Raises OSError.

    The device number means something only on this host, and only until it starts anew.
    """
    return _id_of(os.stat(path))


def is_same_folder(one: str, other: str, is_one_host: bool) -> bool:
    """Whether two ids name one folder. is_one_host: both were taken in one boot of one host."""
    if is_one_host:
        return one == other
    return one.rpartition(".")[2] == other.rpartition(".")[2]


def _id_of(stat: os.stat_result) -> str:
    return f"{stat.st_dev}.{stat.st_ino}"


def open_out(path: Path, run_id: str) -> OpenFolder:
    """OUT, held open, once it is known by its mark. Raises FolderGone and OSError."""
    folder = OpenFolder(path, OUT)
    try:
        check_mark(folder, run_id)
    except OSError:
        folder.close()
        raise
    return folder


def check_mark(out: OpenFolder, run_id: str) -> None:
    """Return if OUT bears the mark of this run; raises FolderGone, and OSError.

    A folder that has lost it was emptied, at least in part: `rm -r` removes what it finds, and
    leaves the folder to whoever goes on to write there.
    """
    try:
        mark = read_mark(out.held)
    except OSError as error:
        # People know the file by its path, not by the descriptor through which it was read.
        error.filename = str(out.path / OUT_MARK)
        raise
    if mark != run_id:
        raise out.gone(f"it does not bear the mark {OUT_MARK} of this run")


def read_mark(out: Path) -> str | None:
    """The id of the run that a folder of outputs belongs to; None where it bears no mark."""
    data = read_bytes(out / OUT_MARK)
    if data is None:
        return None
    return data.decode(errors="replace").strip()


def out_of(layout: Layout, run: Run) -> Path:
    """The folder of a run's outputs."""
    if run.out is None:
        return layout.outputs
    return Path(run.out)


def out_trouble(layout: Layout, run: Run) -> str:
    """That a run's OUT is not where it should be, for people; "" where it is. Raises OSError."""
    out = out_of(layout, run)
    if read_mark(out) == run.id:
        return ""
    return (
        f"{out}: the outputs of this run are not here, it does not bear the run's mark. Mount it "
        "or move it back, or say with `gpuspool resume --out-moved-to DIR` where they are"
    )
