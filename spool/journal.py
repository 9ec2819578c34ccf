"""Journals: each is one attempt's append-only list of what happened to its tasks.

Journals are the truth about tasks: a task is complete when a journal says so. Only the attempt that
a journal names ever appends to it, and everybody may read it.

When a line is written: before anything begins that may take long. The lines of tiny tasks share one
write(2). When it is durable: whoever owns the writer calls `sync_if_dirty` about once a second.

A write that fails or is cut short leaves a torn line at the end. Nothing is appended after it: the
writer is broken from then on, and its attempt must end. A reader takes whole lines only, and a line
that is damaged costs that line alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import asdict

from gpuspool.spool.codec import R, reread_lines, seal, seal_lines, unseal_lines
from gpuspool.spool.errors import SyncError
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import Damage, OnDamage
from gpuspool.spool.publish import OpenFile, create_journal, write_all
from gpuspool.spool.records import Identity, JournalHead, Record

# A reader takes so much of a journal at once, however long that has grown. It bounds the memory of
# whoever reads a thousand journals, and is many lines even where results are large.
CHUNK_BYTES = 1024 * 1024

# How the other tasks of a call stand in a line.
_BATCH = b'"batch":['


class JournalWriter:
    """The one writer of one journal. Any OSError that it raises must end the attempt.

    A line that may wait shares a write with those that follow. Until then it is in memory alone,
    and is lost with the process; its task then runs again. So whoever lets lines wait must call
    `flush` before anything that may take longer. The thread that syncs flushes too, for the case
    that a call which should have been tiny hangs.

    Two threads may use a writer: one appends, the other calls `sync_if_dirty`. Each may call
    `flush`, `sync` and `check`.
    """

    def __init__(self, fd: int, path: Path, n_bytes: int) -> None:
        """fd: the journal, opened for appending; it is never closed. path: for error messages.
        n_bytes: how long it is.
        """
        # How long the journal is, up to the end of the last line that was written whole.
        self.n_bytes = n_bytes
        self._fd = fd
        self._path = str(path)
        self._waiting: list[Record] = []
        self._lock = threading.Lock()
        # Whether lines were written that are not durable yet.
        self._dirty = False
        self._broken: OSError | None = None

    def append(self, line: Record, may_wait: bool = False) -> None:
        """Add a line; unless it may wait, write it and all that wait."""
        self._waiting.append(line)
        if not may_wait:
            self.flush()

    def flush(self) -> None:
        """Write all lines that wait, in order, by write(2); raises OSError."""
        with self._lock:
            self.check()
            # The other thread may append to the list meanwhile, so only what is counted here is
            # written and taken off.
            count = len(self._waiting)
            if count == 0:
                return
            data = b"".join(seal_lines(self._waiting[:count]))
            try:
                write_all(self._fd, data)
            except OSError as error:
                error.filename = self._path
                self._broken = error
                raise
            del self._waiting[:count]
            self.n_bytes += len(data)
            self._dirty = True

    def sync_if_dirty(self) -> None:
        """Write what waits, and make durable by fdatasync(2) what is not; raises OSError.

        Once the journal is broken nothing happens: who appends is told by `check`.
        """
        if self._broken is not None:
            return
        self.flush()
        if self._dirty:
            self.sync()

    def sync(self) -> None:
        """Write what waits, and return once all lines are durable; raises OSError.

        By an fdatasync(2) of its own, since the other thread may be in the middle of one.
        """
        self.flush()
        # Before the sync: what is written meanwhile makes it dirty again.
        self._dirty = False
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._broken = SyncError(error.errno, error.strerror, self._path)
            raise self._broken from None

    def check(self) -> None:
        """Raises the OSError that broke this journal, perhaps in another thread, if one did."""
        if self._broken is not None:
            raise self._broken


def start_journal(layout: Layout, attempt: str, who: Identity) -> JournalWriter | None:
    """Link an attempt's journal, which says first whose it is: a worker's first act.

    None: the attempt was started or closed before, and this process must not be it. Raises OSError.
    """
    path = layout.journal(attempt)
    head = seal(JournalHead(**asdict(who), attempt=attempt))
    fd = create_journal(path, head)
    if fd is None:
        return None
    return JournalWriter(fd, path, len(head))


def link_empty_journal(layout: Layout, attempt: str) -> bool:
    """Keep an attempt that never began from beginning, by linking its journal in its place.

    False: it has a journal. Raises OSError.
    """
    fd = create_journal(layout.journal(attempt), b"")
    if fd is None:
        return False
    os.close(fd)
    return True


# Whoever sealed a line wrote the task first. What looks like a batch may stand in a result of a
# user's. So there may be more lines than name the task, and who asks looks at what they say.
def _lines_of(task: int, data: bytes) -> list[int]:
    """Where among these whole lines those begin that name a task, in order."""
    mark = b'{"task":%d,' % task
    starts = {0} if data.startswith(mark) else set()
    at = data.find(b"\n" + mark)
    while at >= 0:
        starts.add(at + 1)
        at = data.find(b"\n" + mark, at + 1)
    # Few journals have batches, and to look for the word alone is much faster.
    if _BATCH in data:
        for found in re.finditer(rb"%b(?:\d+,)*%d[],]" % (re.escape(_BATCH), task), data):
            starts.add(data.rfind(b"\n", 0, found.start()) + 1)
    return sorted(starts)


class JournalReader:
    """Follows one journal: each reading yields the lines that are new and whole.

    head: the process that writes it; None before the first reading, and where its first line is
    damaged or missing. offset: how far it was read.
    """

    def __init__(
        self, layout: Layout, attempt: str, report: OnDamage, path: Path | None = None
    ) -> None:
        """report: called with each damage. path: another file that is made like a journal."""
        if path is None:
            path = layout.journal(attempt)
        self.attempt = attempt
        self.path = str(path)
        self.head: JournalHead | None = None
        self.offset = 0
        self._path = path
        self._report = report
        # The lines that are being read, and where they begin.
        self._lines = b""
        self._lines_at = 0

    def read(self, kind: type[R]) -> Iterator[tuple[int, R]]:
        """(offset, record) of each new line but the first, which becomes `head`.

        Raises OSError. Read it to its end: a line counts as read once its chunk was.
        """
        for at, data in self._new_chunks():
            yield from unseal_lines(data, at, kind, self._refuse)

    def reread(self, kind: type[R]) -> Iterator[tuple[int, R]]:
        """As `read`, of a journal in which a reader of this process has just met no damage.

        Its checksums are not looked at again, which saves half of the time. Raises OSError.
        """
        for at, data in self._new_chunks():
            yield from reread_lines(data, at, kind, self._refuse)

    def find(self, task: int, kind: type[R]) -> Iterator[tuple[int, R]]:
        """(offset, record) of each new line that names a task: as its own, or in its `batch`.

        There may be others among them. It costs a search through the bytes, and only these lines
        are checked and decoded. Raises OSError. Read it to its end, as `read`.
        """
        for at, data in self._new_chunks():
            for start in _lines_of(task, data):
                end = data.find(b"\n", start) + 1
                yield from unseal_lines(data[start:end], at + start, kind, self._refuse)

    def _new_chunks(self) -> Iterator[tuple[int, bytes]]:
        """(offset, whole lines) of what is new, some at a time, without the journal's first line.

        Each counts as read once it is handed out.
        """
        for data in self._new_lines():
            at = self.offset
            self.offset += len(data)
            if at == 0:
                first, newline, data = data.partition(b"\n")
                at = len(first) + len(newline)
                self._take_head(first)
            self._lines = data
            self._lines_at = at
            yield at, data
        self._lines = b""

    def _take_head(self, line: bytes) -> None:
        for _, head in unseal_lines(line, 0, JournalHead, self._refuse):
            if head.attempt != self.attempt:
                self._refuse(0, f"the journal of another attempt, {head.attempt}")
                continue
            self.head = head

    # What is read may end in the middle of a line: that one is being written, or the chunk ends
    # there. The rest of it is read with the next chunk. A line that is longer than a chunk (a
    # result may be 1 MiB, and a traceback comes on top) would never end in any, so then twice as
    # much is read.
    def _new_lines(self) -> Iterator[bytes]:
        """The whole lines behind `offset`, some at a time; the caller moves `offset` on."""
        size = CHUNK_BYTES
        with contextlib.closing(OpenFile(self._path)) as file:
            while True:
                data = file.read(self.offset, size)
                end = data.rfind(b"\n") + 1
                if end > 0:
                    yield data[:end]
                if len(data) < size:
                    return
                if end > 0:
                    size = CHUNK_BYTES
                else:
                    size *= 2

    def _refuse(self, at: int, reason: str) -> None:
        self._report(Damage(self.path, at, reason, is_torn=self._holds_zeroes(at)))

    def _holds_zeroes(self, at: int) -> bool:
        """Whether a damaged line holds zeroes: JSON has none, and a power cut leaves them.

        Lines are synced once a second, so what was written since then may reach the disk in any
        order. The first line was synced before any other was written, and is not among these.
        """
        start = at - self._lines_at
        end = self._lines.find(b"\n", start)
        return start >= 0 and b"\0" in self._lines[start:end]

    def report_torn_tail(self) -> None:
        """Report the bytes behind the last newline: damage, once the attempt is closed."""
        try:
            size = os.lstat(self._path).st_size
        except FileNotFoundError:
            return
        if size > self.offset:
            reason = f"torn line of {size - self.offset} bytes at the end"
            self._report(Damage(self.path, self.offset, reason, is_torn=True))
