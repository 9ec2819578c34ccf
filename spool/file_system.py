"""Which kind of file system a path lies on.

Called by the orchestrator to choose how it waits, and by `doctor`.
"""

from __future__ import annotations

import os
from pathlib import Path

# Types of file systems that other hosts may write to, so that inotify does not tell all. Those of
# virtual machines are among them: the host of the machine writes to them.
NETWORK_TYPES = (
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "cifs", "smb3", "ceph", "9p", "afs",
    "panfs", "wekafs", "dvs", "ocfs2", "gfs2", "orangefs", "pvfs2", "coda", "ncpfs", "virtiofs",
    "vboxsf", "vmhgfs", "prl_fs", "fuse",
)  # fmt: skip


def file_system_type(path: Path) -> str:
    """The type of the mounted file system that holds a folder; "" if it cannot be told.

    Of a folder that is not there yet, that of the folder in which it would be made. Links are
    followed, and a mount that is made on demand is made.
    """
    for folder in (path, *path.parents):
        try:
            return _type_of(_mount_id(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return ""
    return ""


# The kernel is asked which mount an opened folder lies on. To find it by comparing paths is wrong
# wherever a path is not the folder: behind links, bind mounts and mounts that hide others.
def _mount_id(folder: Path) -> bytes:
    """The id of the mount that holds a folder. Raises OSError."""
    # The dot at the end makes the kernel mount what autofs would mount here. Opening a folder with
    # O_PATH needs no permission to read it.
    fd = os.open(os.path.join(folder, "."), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_bytes().splitlines():
            name, _, value = line.partition(b":")
            if name == b"mnt_id":
                return value.strip()
    finally:
        os.close(fd)
    return b""


def _type_of(mount_id: bytes) -> str:
    """The type of a mount; "" where it is not listed, as in a chroot. Raises OSError."""
    # Read as bytes: the names of mounts, which concern nobody here, may be in any encoding.
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        mount, _, file_system = line.partition(b" - ")
        if mount.split()[0] == mount_id:
            return os.fsdecode(file_system.split()[0])
    return ""


def is_network(kind: str) -> bool:
    """Whether other hosts may write to a file system of this type."""
    return kind in NETWORK_TYPES or kind.startswith("fuse.")
