"""Whether a folder's file system keeps what the protocol relies on, found out by trying.

`gpuspool doctor DIR` tries everything; each run tries what costs next to nothing, and passes the
warnings on. A *problem* breaks the protocol: no spool should live there. A *warning* costs speed or
comfort. All is tried in a hidden folder that is removed again. What several hosts see of one folder
is tried in `hosts`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from gpuspool.orchestrator.supervise.bell import Bell
from gpuspool.spool.file_system import file_system_type, is_network
from gpuspool.spool.layout import PROBE_NAME, hidden_name, is_doctors
from gpuspool.spool.publish import FOLDER_MODE, fsync_dir, fsync_file, remove_tree_quietly

# Less free space than this is warned of. It holds an epoch's journals, logs and small outputs. How
# much large outputs need is not known here.
LOW_BYTES = 256 * 1024 * 1024

# Fewer free inodes than this are warned of: a run makes some files for each rank and each attempt.
LOW_INODES = 1000

# A hidden folder of the doctor's in which nothing has changed for so long is nobody's any more.
# Both times are the file system's. The clocks of those who write to it may differ, but not by a
# day.
LEFTOVER_S = 24 * 3600.0

# An event that takes longer than this to come wakes the orchestrator later than its own looks do.
BELL_S = 2.0


class Check(msgspec.Struct, frozen=True):
    """One thing that was tried. state: "ok", "warning" or "problem"."""

    name: str
    state: Literal["ok", "warning", "problem"]
    detail: str


def examine(folder: Path, is_thorough: bool = True) -> list[Check]:
    """Try everything in a folder, or with `is_thorough` off what is quick.

    Raises OSError only where nothing can be made in the folder at all.
    """
    folder = Path(os.path.abspath(folder))
    inside = folder / hidden_name(PROBE_NAME)
    inside.mkdir(FOLDER_MODE)
    tries: list[Callable[[Path], Check]] = [_exclusive, _link, _rename, _lock, _space]
    if is_thorough:
        tries += [_sync, _inotify]
        remove_leftovers(folder, inside)
    try:
        return [_type(folder), *(_try(one, inside) for one in tries)]
    finally:
        remove_tree_quietly(inside)


def warnings_of(folder: Path) -> list[str]:
    """What a run that begins says about its spool's file system. Raises OSError as `examine`."""
    checks = examine(folder, is_thorough=False)
    return [f"{folder}: {check.name}: {check.detail}" for check in checks if check.state != "ok"]


def remove_leftovers(folder: Path, own: Path) -> None:
    """Remove what a doctor that was killed has left in a folder, more than a day ago.

    own: a folder that was made there just now. It tells what time it is for the file system.
    """
    with contextlib.suppress(OSError):
        now = own.stat().st_mtime
        for name in filter(is_doctors, os.listdir(folder)):
            if _last_change(folder / name) < now - LEFTOVER_S:
                remove_tree_quietly(folder / name)


def _last_change(folder: Path) -> float:
    """When something was last made or removed in a folder, or in one of the folders in it."""
    inner = [path.stat().st_mtime for path in folder.iterdir()]
    return max([folder.stat().st_mtime, *inner])


def _try(one: Callable[[Path], Check], inside: Path) -> Check:
    """The result of one try; an error is a problem."""
    try:
        return one(inside)
    except OSError as error:
        detail = f"{error.strerror} (errno {error.errno})"
        return Check(one.__name__.strip("_"), "problem", detail)


def _type(folder: Path) -> Check:
    kind = file_system_type(folder)
    detail = kind or "unknown"
    if is_network(kind):
        detail += (
            "; a network: gpuspool looks every 2 s, and judges workers of other hosts by their "
            "lease"
        )
    return Check("type", "ok", detail)


def _exclusive(inside: Path) -> Check:
    path = inside / "exclusive"
    path.touch(exist_ok=False)
    with contextlib.suppress(FileExistsError):
        path.touch(exist_ok=False)
        detail = "O_EXCL makes a file that exists: two workers would own one thing"
        return Check("exclusive", "problem", detail)
    return Check("exclusive", "ok", "O_EXCL refuses what exists")


def _link(inside: Path) -> Check:
    old = inside / "link"
    new = inside / "link2"
    old.touch()
    os.link(old, new)
    with contextlib.suppress(FileExistsError):
        os.link(old, new)
        detail = "link(2) replaces what exists: two workers would claim one task"
        return Check("link", "problem", detail)
    return Check("link", "ok", "link(2) refuses what exists")


def _rename(inside: Path) -> Check:
    old = inside / "old"
    new = inside / "new"
    old.write_text("new")
    new.write_text("old")
    os.rename(old, new)
    if new.read_text() == "new" and not old.exists():
        return Check("rename", "ok", "rename(2) replaces")
    return Check("rename", "problem", "rename(2) does not replace")


def _lock(inside: Path) -> Check:
    advice = "starts of one run at the same moment may do some work twice"
    path = inside / "lock"
    with open(path, "w") as one, open(path, "w") as two:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Check("lock", "warning", f"no flock(2) ({error.strerror}): {advice}")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Check("lock", "warning", f"flock(2) is granted twice: {advice}")
    return Check("lock", "ok", "flock(2) holds")


def _space(inside: Path) -> Check:
    stat = os.statvfs(inside)
    free = stat.f_bavail * stat.f_frsize
    inodes = stat.f_favail
    # Some file systems make inodes as they need them, and say that they have none, or, as CephFS
    # does, that they do not know how many are left.
    counts_inodes = stat.f_files > 0 and inodes >= 0
    text = f"{free / 2**30:.1f} GiB free"
    if counts_inodes:
        text += f", {inodes} inodes free"
    if free < LOW_BYTES or (counts_inodes and inodes < LOW_INODES):
        return Check("space", "warning", text)
    return Check("space", "ok", text)


def _sync(inside: Path) -> Check:
    path = inside / "sync"
    path.write_bytes(b"x" * 4096)
    began = time.perf_counter()
    fsync_file(path)
    fsync_dir(inside)
    took_ms = 1000 * (time.perf_counter() - began)
    return Check("sync", "ok", f"fsync(2) of a file and its folder took {took_ms:.1f} ms")


def _inotify(inside: Path) -> Check:
    with contextlib.closing(Bell(inside, 0.0)) as bell:
        bell.watch([inside])
        if not bell.has_observer:
            return _without_inotify(inside)
        # The file of another process: whether inotify tells of one's own says less.
        script = "import sys; open(sys.argv[1], 'x')"
        subprocess.run([sys.executable, "-S", "-c", script, inside / "bell"], check=True)
        began = time.perf_counter()
        bell.wait(BELL_S, [])
        seconds = time.perf_counter() - began
    if seconds >= BELL_S:
        detail = f"another process's file was not told within {BELL_S:g} s; use --poll"
        return Check("inotify", "warning", detail)
    return Check("inotify", "ok", "it tells of another process's files")


def _without_inotify(inside: Path) -> Check:
    kind = file_system_type(inside)
    if is_network(kind):
        return Check("inotify", "ok", f"not used on {kind}: gpuspool polls")
    why = "no inotify watch is left (fs.inotify.max_user_watches)"
    return Check("inotify", "warning", f"{why}: gpuspool polls")
