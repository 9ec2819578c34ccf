"""Which kind of file system a path lies on."""

from __future__ import annotations

import contextlib
from pathlib import Path

NETWORK_TYPES = (
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "cifs",
    "smb3",
    "ceph",
    "9p",
    "afs",
    "panfs",
    "wekafs",
)


def file_system_type(path: Path) -> str:
    """The type of the mounted file system that holds `path`, from /proc/self/mountinfo; "" if it
    cannot be told.
    """
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            mount = left.split()[4].encode().decode("unicode_escape")
            if (str(path) + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
                best, kind = mount, right.split()[0]
    return kind


def is_network(kind: str) -> bool:
    """Whether other hosts may write to a file system of this type."""
    return kind in NETWORK_TYPES or kind.startswith("fuse.")
