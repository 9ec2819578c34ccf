"""Small file systems of our own, which a row fills up, wears out of inodes, or breaks; and mends
again.

Everything is mounted in a mount namespace that only this process and its children see, so that
nothing stays mounted however this process ends. `why_not` says why this machine does not allow
that.

Two kinds: a tmpfs, whose mode a remount changes, and an ext4 on a loop device, which becomes
read-only as real ones do: by an error inside the file system, with files open for writing. Its
uncommitted names are lost then.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import io
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
CHUNK = 1 << 16
# how long a file may be found open; jobs close theirs, and killed processes end, within
# milliseconds
BUSY_S = 10.0


@functools.cache
def why_not() -> str:
    """Why no file system can be mounted here; "" where it can. The first call makes this process's
    own namespace.
    """
    if os.geteuid() != 0:
        return "mounting needs root"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return f"no mount namespace of our own: {os.strerror(ctypes.get_errno())}"
    missing = [
        name
        for name in ("mount", "umount", "mkfs.ext4", "e2fsck", "losetup")
        if shutil.which(name) is None
    ]
    if missing:
        return f"{missing[0]} is not installed"
    return "" if Path("/dev/loop-control").exists() else "there are no loop devices"


def call(*command: str | Path, ok: tuple[int, ...] = (0,)) -> str:
    """Run a system tool; what it says, where it ends otherwise, is the error's text."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        raise OSError(errno.EIO, f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def call_until_free(*command: str | Path) -> None:
    """Run a system tool that the kernel refuses while somebody holds a file, until nobody does."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            call(*command)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise


class Disk(ABC):
    """One mounted file system. What fills it is a file of somebody else's, `foreign`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.foreign = path / "foreign"
        self._also: list[Path] = []

    def show_at(self, path: Path) -> None:
        """Let it appear at another folder too."""
        call("mount", "--bind", self.path, path)
        self._also.append(path)

    def fill(self, leave: int = 0) -> None:
        """Let a foreign file take all space but about `leave` bytes, again and again until nothing
        more comes free.
        """
        with open(self.foreign, "ab", buffering=0) as file:
            while self._append(file, leave):
                os.fsync(file)  # what ext4 had put by for blocks not yet chosen is given back

    def _append(self, file: io.FileIO, leave: int) -> int:
        """How many bytes found room: large pieces, then small ones, since ext4 refuses a piece as a
        whole.
        """
        now = os.statvfs(self.path)
        todo = now.f_bavail * now.f_frsize - leave if leave else sys.maxsize
        written = 0
        for piece in (CHUNK, 4096, 1):
            with contextlib.suppress(OSError):
                while written < todo:
                    written += file.write(b"\1" * min(piece, todo - written))
        return written

    def fill_inodes(self, leave: int = 0) -> None:
        """Let foreign names take all inodes but `leave`."""
        with contextlib.suppress(OSError):
            while leave == 0 or os.statvfs(self.path).f_ffree > leave:
                name = f"foreign-{time.monotonic_ns()}"
                os.close(os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    def free(self) -> None:
        """Somebody removes all that is foreign."""
        for path in self.path.glob("foreign*"):
            path.unlink()

    @abstractmethod
    def make_read_only(self) -> None: ...

    @abstractmethod
    def mend(self) -> None:
        """Make it writable again, while nobody uses it."""

    def unmount(self) -> None:
        """At the end; lazily where somebody still holds it."""
        for path in (*self._also, self.path):
            with contextlib.suppress(OSError):
                call("umount", "--lazy", path)


class Tmpfs(Disk):
    """Becomes read-only by a remount, which is refused as long as a file is open for writing."""

    def __init__(self, path: Path, size: int, inodes: int) -> None:
        super().__init__(path)
        path.mkdir()
        call("mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "torture", path)

    def make_read_only(self) -> None:
        call_until_free("mount", "-o", "remount,ro", self.path)

    def mend(self) -> None:
        call("mount", "-o", "remount,rw", self.path)


class Ext4(Disk):
    """On a file of so many bytes, with nothing kept back for root."""

    def __init__(self, path: Path, size: int, inodes: int) -> None:
        super().__init__(path)
        self._image = path.with_name(f"{path.name}.img")
        with open(self._image, "wb") as file:
            file.truncate(size)
        path.mkdir()
        call("mkfs.ext4", "-q", "-m", "0", "-N", str(inodes), self._image)
        self._mount()

    def _mount(self) -> None:
        call("mount", "-o", "loop,errors=remount-ro", self._image, self.path)

    def make_read_only(self) -> None:
        """As an error of the device does it."""
        device = call(
            "losetup", "--noheadings", "--output", "NAME", "--associated", self._image
        ).strip()
        with contextlib.suppress(
            OSError
        ):  # the write itself tells that the file system is read-only now
            Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")

    def mend(self) -> None:
        also, self._also = self._also, []
        for path in (*also, self.path):
            call_until_free("umount", path)
        call("e2fsck", "-f", "-p", self._image, ok=(0, 1))
        self._mount()
        for path in also:
            self.show_at(path)

    def unmount(self) -> None:
        super().unmount()
        self._image.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(kind: type[Tmpfs] | type[Ext4], path: Path, size: int, inodes: int) -> Iterator[Disk]:
    """A file system of that kind at a new folder, unmounted at the end."""
    disk = kind(path, size, inodes)
    try:
        yield disk
    finally:
        disk.unmount()
