"""Which kind of file system a path lies on, and which ones are mounted where.

Called to choose how to wait and how far to trust what is seen, and to record the mounts of a run;
and by a worker, to see whether the file system is gone on which the input of a failed task lay.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

# Types of file systems that other hosts may write to, so that inotify does not tell all. Those of
# virtual machines are among them: the host of the machine writes to them.
NETWORK_TYPES = (
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "cifs", "smb3", "ceph", "9p", "afs",
    "panfs", "wekafs", "dvs", "ocfs2", "gfs2", "orangefs", "pvfs2", "coda", "ncpfs", "virtiofs",
    "vboxsf", "vmhgfs", "prl_fs", "fuse",
)  # fmt: skip
# Types of file systems that one host has for itself: in memory, and the layers of a container.
_OWN_TYPES = ("tmpfs", "ramfs", "overlay", "aufs", "squashfs", "devtmpfs")
# Types of file systems that hold no files of users: the kernel makes up what is in them.
_KERNEL_TYPES = (
    "proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue", "securityfs", "debugfs",
    "tracefs", "bpf", "pstore", "configfs", "fusectl", "hugetlbfs", "nsfs", "binfmt_misc",
    "efivarfs", "rpc_pipefs", "autofs", "selinuxfs",
)  # fmt: skip
# How mountinfo writes the characters that would break its lines.
_OCTAL = re.compile(rb"\\([0-7]{3})")


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


def mount_points() -> dict[str, str]:
    """Where file systems are mounted, each with its type. Raises OSError.

    Bytes that are not UTF-8 are escaped as `os.fsdecode` does it.
    """
    points: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        mount, _, file_system = line.partition(b" - ")
        point = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), mount.split()[4])
        points[os.fsdecode(point)] = os.fsdecode(file_system.split()[0])
    return points


def data_mounts() -> list[str]:
    """The points where file systems with files of users are mounted, but for `/`; sorted.

    Left out are names that are not UTF-8, since no record can hold them. [] where the kernel does
    not tell.
    """
    try:
        points = mount_points()
    except OSError:
        return []
    return sorted(
        point
        for point, kind in points.items()
        if kind not in _KERNEL_TYPES and point != "/" and _is_utf8(point)
    )


def lost_mount(path: str, known: Iterable[str]) -> str:
    """The lowest of these mount points above a path where nothing is mounted now; "" for none.

    A folder that holds something is none: on this host it never was a mount point.
    """
    above = [point for point in known if path.startswith(point.rstrip("/") + "/")]
    if not above:
        return ""
    try:
        mounted = mount_points()
    except OSError:
        return ""
    lost = [point for point in above if point not in mounted and not _holds_something(point)]
    return max(lost, key=len, default="")


def _holds_something(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# A worker replaces its heartbeat file, which is for people, this often; where other hosts share the
# file system, which each replacement keeps busy, or are to be reckoned with (`--poll`), less often.
HEARTBEAT_S = 10.0
SHARED_HEARTBEAT_S = 60.0
# With a short lease somebody wants to see everything sooner.
HEARTBEATS_A_LEASE = 12


def heartbeat_s(folder: Path, lease_s: float, poll_s: float) -> float:
    """The seconds between two heartbeats of a worker whose spool lies in this folder.

    lease_s, poll_s: as the worker was told.
    """
    if poll_s > 0 or is_network(file_system_type(folder)):
        return SHARED_HEARTBEAT_S
    return min(HEARTBEAT_S, lease_s / HEARTBEATS_A_LEASE)


def is_network(kind: str) -> bool:
    """Whether other hosts may write to a file system of this type."""
    return kind in NETWORK_TYPES or kind.startswith("fuse.")


def is_of_one_host(kind: str) -> bool:
    """Whether no other host can ever see a file system of this type."""
    return kind in _OWN_TYPES
