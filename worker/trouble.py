"""What an exception of user code says about the world rather than about the task.

A full disk, a read-only or vanished file system would fail every task that follows; so would a device whose context is
broken, or a process without descriptors. Then the attempt ends and the tasks stay. The judgement is by type and errno
and by looking, never by text: numpy and torch report a full disk without any errno.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from spool.publish import probe_folder
from worker.devices import is_device_broken
from worker.results import to_error

FULL = (errno.ENOSPC, errno.EDQUOT)  # no input is to blame for these
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Unusable(Exception):
    """This process cannot run tasks any more; it ends as a crash does, and the rules for crashes find the culprit."""


def raise_trouble(raised: BaseException, folders: Iterable[Path]) -> None:
    """Returns where the task is to blame. Raises OSError for a file system in trouble, Unusable for this process.

    `folders` are those that the tasks in hand were to write to.
    """
    if is_device_broken(raised):
        raise Unusable(f"{to_error(raised).traceback}gpuspool: its device is unusable after this")
    if isinstance(raised, OSError) and raised.errno in NO_DESCRIPTORS:
        raise Unusable(f"{to_error(raised).traceback}gpuspool: it has no file descriptors left")
    places = set(folders)
    if isinstance(raised, OSError) and raised.errno in FULL:
        where = raised.filename or str(next(iter(places), "somewhere in the job"))
        raise OSError(raised.errno, os.strerror(raised.errno), where)
    for folder in places:
        probe_folder(folder)
