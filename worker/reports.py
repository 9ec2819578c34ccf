"""The worker's end of the seed API's results queue: a file to which one sealed line a report is
appended.

`put` returns once the report is on disk: one write(2), then fdatasync(2). There is no pipe that
could fill and no thread that could fall behind, so it cannot deadlock, and what was put outlives
this process and its parent.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
from msgspec.structs import asdict

from gpuspool.spool.codec import seal
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import create_journal, fsync_dir, make_subfolder
from gpuspool.spool.records import JournalHead, QueuedReport
from gpuspool.spool.values import encode_value, refuse

# The types that `encode_value` takes; a value of a subclass is converted to the first that fits.
_PLAIN: tuple[Any, ...] = (str, int, float, dict, list, tuple)


class ReportQueue:
    """What a `worker_fn` of the seed API gets as its `results_queue`."""

    def __init__(self, layout: Layout, attempt: str) -> None:
        """Makes the file of this attempt's reports, durably.

        Raises FileExistsError where the attempt has such a file, and OSError.
        """
        make_subfolder(layout.reports)
        fsync_dir(layout.root)
        path = layout.report(attempt)
        head = seal(JournalHead(**asdict(myself()), attempt=attempt))
        fd = create_journal(path, head)
        if fd is None:
            raise FileExistsError(f"{path} exists: {attempt} ran before; nothing is appended")
        self._writer = JournalWriter(fd, path, len(head))
        self._lock = threading.Lock()

    def put(self, report: Any) -> None:
        """Add a report: a dict of what `worker_args` may hold. Any thread may do so.

        Values with `.tolist()`, as numpy's and torch's, are converted. Raises TypeError that names
        an element which cannot be passed on, and OSError where the disk takes no more.
        """
        plain = encode_value(report, "report", _as_plain)
        line = QueuedReport(at=time.time(), report=msgspec.Raw(msgspec.json.encode(plain)))
        with self._lock:
            self._writer.append(line)
            self._writer.sync_if_dirty()


def _as_plain(value: Any, where: str) -> Any:
    """Arrays and scalars as lists and numbers; a value of a plain type's subclass as that type.

    Raises TypeError for anything else.
    """
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    for kind in _PLAIN:
        if isinstance(value, kind):
            return kind(value)
    refuse(value, where)
