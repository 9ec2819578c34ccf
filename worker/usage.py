"""What an attempt uses from moment to moment, in usage/: a line at each beat, later one a minute.

It is for people, who want to know of an attempt that was killed, or that runs yet, what others say
when they end. So nothing rests on it, and whatever goes wrong with it must not hurt the work, nor
write anywhere else:

- The file lies in the folder that this worker holds open, so its lines come into no other run's
  spool, whatever is at the path by now.
- It stays open, under a high descriptor: a line costs one write(2). Before each line the descriptor
  is looked at. If a job has closed it, its number may stand for a file of the job's by now.
- A file or folder that was removed is made again. What cannot be written is not tried again before
  the next line is due.
"""

from __future__ import annotations

import contextlib
import os
import time

from gpuspool.spool.codec import encode
from gpuspool.spool.identity import own_age_s
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import make_subfolder, naming, open_to_append, out_of_the_way
from gpuspool.spool.records import Intent, Usage
from gpuspool.spool.states import Phase
from gpuspool.worker.doing import Doing
from gpuspool.worker.gpu import NOTHING, Gpus, names_of
from gpuspool.worker.resources import family

# So long after the start of an attempt each beat is worth a line: then somebody watches who wants
# to know whether all is well. Later there is one a minute, some 250 kB a day.
CLOSELY_S = 600.0
SELDOM_S = 60.0
# A beat that comes this part of a minute early is not passed over: the next one would be late by
# more.
EARLY_PART = 0.1


class UsageLog:
    """The file in usage/ of one attempt, to which one thread adds lines."""

    def __init__(self, layout: Layout, intent: Intent) -> None:
        self._path = layout.usage(intent.attempt)
        self._device = intent.device
        self._uuids = intent.device_uuids
        self._gpus = Gpus()
        self._fd: int | None = None
        # Which file that was when it was opened.
        self._file = (0, 0)
        # Whether the last line may have been written in part.
        self._is_torn = False
        self._began = time.monotonic()
        # When the last line was due, and up to when and how much processor time is told.
        self._last = -SELDOM_S
        self._told_at = self._began - own_age_s()
        self._told_cpu_s = 0.0

    def add(self, doing: Doing, now: float) -> None:
        """Add a line if one is due; to be called with each beat. Raises OSError.

        now: on the monotonic clock.
        """
        is_seldom = now - self._began > CLOSELY_S
        if is_seldom and now - self._last < (1 - EARLY_PART) * SELDOM_S:
            return
        self._last = now
        self._write(encode(self._record(doing, now)))

    def _record(self, doing: Doing, now: float) -> Usage:
        spent = doing.clocks.spent()
        mine = family()
        # What a process has used that nobody waited for is gone with it.
        cpu_s = max(0.0, mine.cpu_s - self._told_cpu_s)
        seconds = max(1e-3, now - self._told_at)
        self._told_at, self._told_cpu_s = now, mine.cpu_s
        devices = NOTHING
        if doing.phase not in (Phase.LOADING, Phase.MAKING, Phase.WAITING):
            devices = self._gpus.read(names_of(self._device, self._uuids, doing.device.uuid))
        return Usage(
            at=round(time.time(), 3),
            done=doing.complete,
            busy_s=spent.busy_s,
            idle_s=spent.idle_s,
            rss=mine.resident_bytes,
            cpu=round(cpu_s / seconds, 2),
            gpu=devices.busy,
            gpu_mem=devices.used,
            gpu_mem_total=devices.total,
        )

    def _write(self, line: bytes) -> None:
        """Append a line with one write(2). Raises OSError; then the file is opened anew."""
        fd = self._open()
        if self._is_torn:
            # What was written in part becomes a line of its own, which nobody can read.
            line = b"\n" + line
        try:
            with naming(self._path):
                self._is_torn = os.write(fd, line) < len(line)
        except OSError:
            self._close(fd)
            raise

    def _open(self) -> int:
        """The descriptor of the file, which is opened or made where that is needed."""
        fd = self._fd
        if fd is not None and self._leads_to_file(fd):
            return fd
        try:
            fd = out_of_the_way(open_to_append(self._path))
        except FileNotFoundError:
            make_subfolder(self._path.parent)
            fd = out_of_the_way(open_to_append(self._path))
        there = os.fstat(fd)
        self._fd = fd
        self._file = (there.st_dev, there.st_ino)
        return fd

    def _leads_to_file(self, fd: int) -> bool:
        """Whether the descriptor is still that of the file, and the file is still there."""
        self._fd = None
        try:
            there = os.fstat(fd)
        except OSError:
            return False
        if (there.st_dev, there.st_ino) != self._file:
            # The job has closed ours, and has opened something else since. That is the job's own.
            return False
        if there.st_nlink == 0:
            self._close(fd)
            return False
        self._fd = fd
        return True

    def _close(self, fd: int) -> None:
        self._fd = None
        with contextlib.suppress(OSError):
            os.close(fd)
