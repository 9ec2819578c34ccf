"""A folder seen through a file system that keeps what it was told: a FUSE server of our own.

It shows another folder, read-only, as an NFS mount with attribute caches does: what it said of a
file, or that there is none, the kernel believes for `valid_s` seconds, and what was read of a file
stays in the page cache. New names in a folder are listed at once. So a reader sees a new file and
yet an older state of a file that it knew.

`stale` mounts it, in the mount namespace of `mounts`, with the server in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HEADER, REPLY = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = (
    1, 2, 3, 14, 15, 18, 25, 26, 27, 28, 29
)  # fmt: skip
INTERRUPT, BATCH_FORGET = 36, 42
UNANSWERED = (FORGET, BATCH_FORGET, INTERRUPT)
MS_RDONLY, MS_NOSUID, MS_NODEV, MNT_DETACH = 1, 2, 4, 2
# More bytes than the largest request has.
BUFFER = 1 << 18
ROOT = 1
FOPEN_KEEP_CACHE = 2


def why_not() -> str:
    """Why it cannot be mounted here; "" if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    return "" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "/dev/fuse cannot be opened"


@contextlib.contextmanager
def stale(folder: Path, mount: Path, valid_s: float) -> Iterator[Path]:
    """Show `folder` at the new folder `mount`, as old as `valid_s` allows; unmounted at the end."""
    mount.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder), str(mount), str(valid_s)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        if server.stdout.readline() != b"mounted\n":
            raise OSError(errno.EIO, "the FUSE server could not mount", str(mount))
        yield mount
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(mount), MNT_DETACH)
        server.kill()
        server.wait()
        server.stdout.close()


# From here on: the server.


class Server:
    """Answers the kernel's requests about the files below one folder."""

    def __init__(self, folder: str, valid_s: float) -> None:
        self._paths = {ROOT: folder}
        self._nodes = {folder: ROOT}
        self._seconds, rest = divmod(valid_s, 1.0)
        self._nanoseconds = int(rest * 1e9)

    def answer(self, code: int, node: int, body: bytes) -> bytes:
        """The payload of a reply; raises OSError with the errno of one."""
        path = self._paths.get(node, "")
        if code == INIT:
            major, minor, readahead = struct.unpack_from("<3I", body)
            counts = (major, min(minor, 31), readahead, 0, 16, 12, BUFFER // 2, 1, 0, 0, *[0] * 8)
            return struct.pack("<4I2H2I2H8I", *counts)
        if code == LOOKUP:
            return self._look_up(os.path.join(path, os.fsdecode(body.rstrip(b"\0"))))
        if code == GETATTR:
            valid = struct.pack("<Q2I", int(self._seconds), self._nanoseconds, 0)
            return valid + self._attributes(node, path)
        if code == OPEN:
            return struct.pack("<Q2I", 0, FOPEN_KEEP_CACHE, 0)
        if code == OPENDIR:
            return struct.pack("<Q2I", 0, 0, 0)
        if code in (READ, READDIR):
            _, offset, size = struct.unpack_from("<QQI", body)
            if code == READ:
                with open(path, "rb") as file:
                    return os.pread(file.fileno(), size, offset)
            return self._list(path, offset, size)
        if code in (RELEASE, RELEASEDIR, FLUSH):
            return b""
        raise OSError(errno.ENOSYS, "")

    def _look_up(self, path: str) -> bytes:
        valid = (int(self._seconds), int(self._seconds), self._nanoseconds, self._nanoseconds)
        if not os.path.lexists(path):
            # No node: that there is none is believed as long as anything else.
            return struct.pack("<4Q2I", 0, 0, *valid) + bytes(88)
        node = self._nodes.setdefault(path, len(self._nodes) + 1)
        self._paths[node] = path
        return struct.pack("<4Q2I", node, 0, *valid) + self._attributes(node, path)

    def _attributes(self, node: int, path: str) -> bytes:
        """struct fuse_attr."""
        found = os.lstat(path)
        times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
        small = (0, 0, 0, found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0, 4096, 0)
        return struct.pack("<6Q10I", node, found.st_size, found.st_blocks, *times, *small)

    def _list(self, path: str, offset: int, size: int) -> bytes:
        """struct fuse_dirent for each name from `offset` on, as many as fit."""
        listing = b""
        for place, name in enumerate(sorted(os.listdir(path))):
            if place < offset:
                continue
            raw = os.fsencode(name)
            kind = stat.S_IFMT(os.lstat(os.path.join(path, name)).st_mode) >> 12
            entry = struct.pack("<QQII", place + 2, place + 1, len(raw), kind) + raw
            entry += bytes(-len(entry) % 8)
            if len(listing) + len(entry) > size:
                break
            listing += entry
        return listing


def _mount(mount: str) -> int:
    """Mount at a folder; returns the descriptor that is the connection."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    flags = MS_NOSUID | MS_NODEV | MS_RDONLY
    if libc.mount(b"stale", os.fsencode(mount), b"fuse.stale", flags, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), mount)
    return fd


def serve(folder: str, mount: str, valid_s: float) -> None:
    """Answer until killed, or unmounted."""
    server = Server(folder, valid_s)
    fd = _mount(mount)
    print("mounted", flush=True)
    while True:
        try:
            request = os.read(fd, BUFFER)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue
            raise
        _, code, unique, node, *_ = HEADER.unpack_from(request)
        if code in UNANSWERED:
            continue
        failed, payload = 0, b""
        try:
            payload = server.answer(code, node, request[HEADER.size :])
        except OSError as error:
            failed = error.errno or errno.EIO
        # The asker may have been killed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            os.write(fd, REPLY.pack(REPLY.size + len(payload), -failed, unique) + payload)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.argv[1], sys.argv[2], float(sys.argv[3]))
