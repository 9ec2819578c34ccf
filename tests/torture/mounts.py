"""Small file systems of our own, which a row fills up, runs out of inodes or breaks, and repairs.

Everything is mounted in a mount namespace that only this process and its children see, so nothing
stays mounted however this process ends. `why_not` says why this machine does not allow that.

There are two kinds: a tmpfs, which a remount makes read-only; and an ext4 on a loop device, which
becomes read-only as real ones do: by an error inside the file system, while files are open for
writing. Its uncommitted names are then lost.
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
# How long a file may be found open. Jobs close theirs, and killed processes end, in milliseconds.
BUSY_S = 10.0


@functools.cache
def why_not() -> str:
    """Why no file system can be mounted here; "" if one can.

    The first call makes this process's own namespace.
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
    """Run a system tool. If it ends otherwise than `ok`, its words are the error's text."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        raise OSError(errno.EIO, f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def call_until_free(*command: str | Path) -> None:
    """Run a system tool until the kernel allows it, which it does once nobody holds a file."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            call(*command)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise


class Disk(ABC):
    """One mounted file system. It is filled by a file of somebody else's, `foreign`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.foreign = path / "foreign"
        self._also: list[Path] = []

    def show_at(self, path: Path) -> None:
        """Let it appear at another folder too."""
        call("mount", "--bind", self.path, path)
        self._also.append(path)

    def fill(self, leave: int = 0) -> None:
        """Let a foreign file take all space but about `leave` bytes.

        It is filled again and again, until no more space comes free.
        """
        with open(self.foreign, "ab", buffering=0) as file:
            while self._append(file, leave):
                # This gives back what ext4 had reserved for blocks that it had not chosen yet.
                os.fsync(file)

    def _append(self, file: io.FileIO, leave: int) -> int:
        """Append as much as there is room for; returns how many bytes that was.

        Large pieces come first, then small ones, since ext4 refuses a piece as a whole.
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
        """Remove everything that is foreign."""
        for path in self.path.glob("foreign*"):
            path.unlink()

    @abstractmethod
    def make_read_only(self) -> None: ...

    @abstractmethod
    def repair(self) -> None:
        """Make it writable again, while nobody uses it."""

    def unmount(self) -> None:
        """Unmount it at the end; lazily if somebody still holds it."""
        for path in (*self._also, self.path):
            with contextlib.suppress(OSError):
                call("umount", "--lazy", path)


class Tmpfs(Disk):
    """It is made read-only by a remount, which is refused while a file is open for writing."""

    def __init__(self, path: Path, size: int, inodes: int) -> None:
        super().__init__(path)
        path.mkdir()
        options = f"size={size},nr_inodes={inodes},mode=755"
        call("mount", "-t", "tmpfs", "-o", options, "torture", path)

    def make_read_only(self) -> None:
        call_until_free("mount", "-o", "remount,ro", self.path)

    def repair(self) -> None:
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
        """Make it read-only as an error of the device does."""
        device = call(
            "losetup", "--noheadings", "--output", "NAME", "--associated", self._image
        ).strip()
        # The write itself fails: the file system is read-only by then.
        with contextlib.suppress(OSError):
            Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")

    def repair(self) -> None:
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
