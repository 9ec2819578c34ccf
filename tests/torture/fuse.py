"""A file system on which a read never returns: a minimal server of our own behind /dev/fuse.

It holds one file, `hang`. A process that reads it has handed a request to a server that never
answers. It is in uninterruptible sleep, as on a dead NFS server: not even SIGKILL ends it until the
connection is aborted.

`hanging` mounts it, in the mount namespace of `mounts`, with the server in a process of its own.
However that process ends, the kernel aborts the connection and every reader gets an error, so
nothing stays stuck.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, INIT, INTERRUPT, BATCH_FORGET = (
    1,
    2,
    3,
    14,
    15,
    18,
    26,
    36,
    42,
)
UNANSWERED = (READ, FORGET, BATCH_FORGET, INTERRUPT)
MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2
# More bytes than the largest request has.
BUFFER = 1 << 18
# The numbers of the two nodes of this file system.
ROOT = 1
FILE = 2
FILE_SIZE = 4096
# With this flag each read(2) is one request. A process that reads the page cache could be killed.
FOPEN_DIRECT_IO = 1
VALID_S = 3600
HEADER, REPLY = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")


def why_not() -> str:
    """Why it cannot be mounted here; "" if it can."""
    return "" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "/dev/fuse cannot be opened"


class Hanging:
    """The mounted file system."""

    def __init__(self, mount: Path, server: subprocess.Popen[bytes]) -> None:
        self.file = mount / "hang"
        self._mount, self._server = mount, server

    def release(self) -> None:
        """End the server. The kernel aborts the connection; readers get an error, or die."""
        self._server.kill()
        self._server.wait()
        ctypes.CDLL(None).umount2(os.fsencode(self._mount), MNT_DETACH)


@contextlib.contextmanager
def hanging(mount: Path) -> Iterator[Hanging]:
    """Mount it at a new folder; released at the end."""
    mount.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, str(mount)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    system = Hanging(mount, server)
    try:
        if server.stdout.readline() != b"mounted\n":
            raise OSError(errno.EIO, "the FUSE server could not mount", str(mount))
        yield system
    finally:
        system.release()
        server.stdout.close()


# From here on: the server.


def _mount(mount: str) -> int:
    """Mount at a folder; returns the descriptor that is the connection."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hanging", os.fsencode(mount), b"fuse", MS_NOSUID | MS_NODEV, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), mount)
    return fd


def _attributes(node: int) -> bytes:
    """struct fuse_attr: a folder, or a file that has something to read."""
    mode, size = (0o40755, 0) if node == ROOT else (0o100644, FILE_SIZE)
    return struct.pack(
        "<6Q10I", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0
    )


def _answer(code: int, node: int, body: bytes) -> bytes | int:
    """The payload of a reply, or an errno."""
    if code == INIT:
        major, minor, readahead = struct.unpack_from("<3I", body)
        return struct.pack(
            "<4I2H2I2H8I",
            major,
            min(minor, 31),
            readahead,
            0,
            16,
            12,
            BUFFER // 2,
            1,
            0,
            0,
            *[0] * 8,
        )
    if code == LOOKUP:
        if body.rstrip(b"\0") != b"hang":
            return errno.ENOENT
        return struct.pack("<4Q2I", FILE, 0, VALID_S, VALID_S, 0, 0) + _attributes(FILE)
    if code == GETATTR:
        return struct.pack("<Q2I", VALID_S, 0, 0) + _attributes(node)
    if code == OPEN:
        return struct.pack("<Q2I", 0, FOPEN_DIRECT_IO, 0)
    return b"" if code == RELEASE else errno.ENOSYS


def serve(mount: str) -> None:
    """Answer until killed, or unmounted."""
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
        answer = _answer(code, node, request[HEADER.size :])
        failed, payload = (answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(fd, REPLY.pack(REPLY.size + len(payload), -failed, unique) + payload)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.argv[1])
