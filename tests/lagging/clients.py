"""Mounting a folder so that it is seen late, as often as a test wants clients of it.

A server is a process of its own. It ends, and unmounts, when the pipe to it closes: at the end of
`mounted`, and however the test's process ends. If the server itself is killed, its dead mount goes
with the mount namespace of `torture.mounts`, if there is one, and else when the next is made.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MNT_DETACH = 2
# How mountinfo tells the mounts of `lagging.c`.
TYPE = "fuse.lagging"
SOURCE = Path(__file__).with_name("lagging.c")


@dataclass(frozen=True)
class Lag:
    """For how many seconds a mount believes what it saw; `lagging.c` tells more.

    attributes_s: of a name that was there. missing_s: that a name was not there. listings_s: which
    names a folder had. is_open_fresh: whether open(2) asks for the attributes anew. locks: whom a
    flock(2) keeps out: everybody, this mount alone, or nobody, since it is refused.
    """

    attributes_s: float = 3.0
    missing_s: float = 3.0
    listings_s: float = 3.0
    is_open_fresh: bool = True
    locks: Literal["shared", "local", "none"] = "shared"

    def words(self) -> list[str]:
        """The lag as the server reads it."""
        return [
            f"attributes={self.attributes_s}",
            f"missing={self.missing_s}",
            f"listings={self.listings_s}",
            "open=fresh" if self.is_open_fresh else "open=late",
            f"locks={self.locks}",
        ]


@functools.cache
def why_not() -> str:
    """Why it cannot be mounted here; "" if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        return "there is no C compiler (cc) to build a file system with"
    flags = _flags_of_fuse()
    if flags is None:
        return "libfuse3 is not installed (libfuse3-dev and pkg-config)"
    made = subprocess.run(
        [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-o", _program(), SOURCE, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{compiler} cannot make lagging.c: {made.stderr}" if made.returncode else ""


def _flags_of_fuse() -> list[str] | None:
    """What the compiler needs for libfuse3; None where there is none."""
    if shutil.which("pkg-config") is None:
        return None
    asked = ["pkg-config", "--cflags", "--libs", "fuse3"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return told.stdout.split() if told.returncode == 0 else None


@functools.cache
def _program() -> Path:
    """Where the compiled server is. Each process of tests makes its own."""
    folder = tempfile.mkdtemp(prefix="lagging-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder, "lagging")


@contextlib.contextmanager
def mounted(folder: Path, mount: Path, lag: Lag) -> Iterator[Path]:
    """Show `folder` late at the new folder `mount`; unmounted at the end.

    Ask `why_not` before. Raises OSError where it cannot be mounted.
    """
    unmount_dead()
    mount.mkdir()
    server = subprocess.Popen(
        [_program(), folder, mount, *lag.words()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        if server.stdout.readline() != b"mounted\n":
            raise OSError(errno.EIO, "the FUSE server could not mount", str(mount))
        yield mount
    finally:
        server.stdin.close()
        server.wait()
        server.stdout.close()
        # It has unmounted, unless it was killed.
        _unmount(mount)


def unmount_dead() -> None:
    """Unmount what earlier servers left that were killed."""
    for mount in mounts():
        try:
            os.stat(mount)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                _unmount(mount)


def mounts() -> list[Path]:
    """Where a folder is shown late now, by whomever."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        words, _, kind = line.partition(b" - ")
        if kind.split()[0] == TYPE.encode():
            found.append(Path(os.fsdecode(words.split()[4])))
    return found


def _unmount(mount: Path) -> None:
    ctypes.CDLL(None).umount2(os.fsencode(mount), MNT_DETACH)
