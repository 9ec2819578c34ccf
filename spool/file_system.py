"""Which kind of file system a path lies on."""

from __future__ import annotations

import contextlib
from pathlib import Path

# Types of file systems that other hosts may write to, so that inotify does not tell all.
NETWORK_TYPES = (
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "9p", "afs", "panfs",
    "wekafs",
)  # fmt: skip


def file_system_type(path: Path) -> str:
    """The type of the mounted file system that holds `path`; "" if it cannot be told.

    Read from /proc/self/mountinfo. The deepest mount wins, and of several on one point the last.
    """
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            mount = left.split()[4].encode().decode("unicode_escape")
            is_above = (str(path) + "/").startswith(mount.rstrip("/") + "/")
            if is_above and len(mount) >= len(best):
                best, kind = mount, right.split()[0]
    return kind


def is_network(kind: str) -> bool:
    """Whether other hosts may write to a file system of this type."""
    return kind in NETWORK_TYPES or kind.startswith("fuse.")
