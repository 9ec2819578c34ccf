"""Whether a folder's file system keeps what the protocol relies on, found out by trying: `gpuspool
doctor DIR`.

A *problem* breaks the protocol: no spool should live there. A *warning* costs speed or comfort. All
is tried in a hidden folder that is removed again. A run looks too, at what costs next to nothing,
and passes the warnings on.
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
from gpuspool.spool.layout import PROBE_NAME, hidden_name
from gpuspool.spool.publish import fsync_dir, fsync_file, remove_tree_quietly

LOW_BYTES = (
    256 * 1024 * 1024
)  # an epoch's journals, logs and small outputs fit into this; large outputs do not anyway
LOW_INODES = 1000
BELL_S = 2.0  # for an event to come; more is no bell


class Check(msgspec.Struct, frozen=True):
    """One thing that was tried. state: "ok", "warning" or "problem"."""

    name: str
    state: Literal["ok", "warning", "problem"]
    detail: str


def examine(folder: Path, is_thorough: bool = True) -> list[Check]:
    """Try everything in a folder. Raises OSError only where nothing can be made in it at all."""
    folder = Path(os.path.abspath(folder))
    inside = folder / hidden_name(PROBE_NAME)
    inside.mkdir()
    tries: list[Callable[[Path], Check]] = [_exclusive, _link, _rename, _lock, _space]
    if is_thorough:
        tries += [_sync, _inotify]
    try:
        return [_type(folder), *(_try(one, inside) for one in tries)]
    finally:
        remove_tree_quietly(inside)


def warnings_of(folder: Path) -> list[str]:
    """What a run that begins says about its spool's file system."""
    return [
        f"{folder}: {c.name}: {c.detail}"
        for c in examine(folder, is_thorough=False)
        if c.state != "ok"
    ]


def _try(one: Callable[[Path], Check], inside: Path) -> Check:
    try:
        return one(inside)
    except OSError as error:
        return Check(one.__name__.strip("_"), "problem", f"{error.strerror} (errno {error.errno})")


def _type(folder: Path) -> Check:
    kind = file_system_type(folder)
    poll = "; a network: the orchestrator looks every 2 s, workers of other hosts are judged by their lease"
    return Check("type", "ok", (kind or "unknown") + (poll if is_network(kind) else ""))


def _exclusive(inside: Path) -> Check:
    path = inside / "exclusive"
    path.touch(exist_ok=False)
    with contextlib.suppress(FileExistsError):
        path.touch(exist_ok=False)
        return Check(
            "exclusive",
            "problem",
            "O_EXCL makes a file that exists: two workers would own one thing",
        )
    return Check("exclusive", "ok", "O_EXCL refuses what exists")


def _link(inside: Path) -> Check:
    old, new = inside / "link", inside / "link2"
    old.touch()
    os.link(old, new)
    with contextlib.suppress(FileExistsError):
        os.link(old, new)
        return Check(
            "link", "problem", "link(2) replaces what exists: two workers would claim one task"
        )
    return Check("link", "ok", "link(2) refuses what exists")


def _rename(inside: Path) -> Check:
    old, new = inside / "old", inside / "new"
    old.write_text("new")
    new.write_text("old")
    os.rename(old, new)
    is_right = new.read_text() == "new" and not old.exists()
    return Check(
        "rename",
        "ok" if is_right else "problem",
        "rename(2) replaces" if is_right else "rename(2) does not",
    )


def _lock(inside: Path) -> Check:
    with open(inside / "lock", "w") as one, open(inside / "lock", "w") as two:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Check(
                "lock",
                "warning",
                f"no flock(2) ({error.strerror}): never start one spool twice at once",
            )
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Check(
                "lock", "warning", "flock(2) is granted twice: never start one spool twice at once"
            )
    return Check("lock", "ok", "flock(2) holds")


def _space(inside: Path) -> Check:
    stat = os.statvfs(inside)
    free, inodes = stat.f_bavail * stat.f_frsize, stat.f_favail
    text = f"{free / 2**30:.1f} GiB free" + (f", {inodes} inodes free" if stat.f_files else "")
    is_low = free < LOW_BYTES or (stat.f_files and inodes < LOW_INODES)
    return Check("space", "warning" if is_low else "ok", text)


def _sync(inside: Path) -> Check:
    path = inside / "sync"
    path.write_bytes(b"x" * 4096)
    began = time.perf_counter()
    fsync_file(path)
    fsync_dir(inside)
    return Check(
        "sync",
        "ok",
        f"fsync(2) of a file and its folder took {1000 * (time.perf_counter() - began):.1f} ms",
    )


def _inotify(inside: Path) -> Check:
    with contextlib.closing(Bell(inside, 0.0)) as bell:
        bell.watch([inside])
        if not bell.has_observer:
            kind = file_system_type(inside)
            why = (
                f"not used on {kind}"
                if is_network(kind)
                else "no watch to be had (fs.inotify.max_user_watches)"
            )
            return Check(
                "inotify", "ok" if is_network(kind) else "warning", f"{why}: the orchestrator polls"
            )
        script = "import sys; open(sys.argv[1], 'x')"
        subprocess.run([sys.executable, "-S", "-c", script, inside / "bell"], check=True)
        began = time.perf_counter()
        bell.wait(BELL_S, [])
        seconds = time.perf_counter() - began
    if seconds >= BELL_S:
        return Check(
            "inotify",
            "warning",
            f"another process's file was not told within {BELL_S:g} s; use --poll",
        )
    return Check("inotify", "ok", "it tells of another process's files")
