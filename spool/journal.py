"""Journals: one writer's append-only list of finished tasks, the truth about tasks.

A line is written before anything that may take long begins; those of tiny tasks share one write(2).
The data is fsynced at least once a second by whoever calls `sync_if_dirty`. A write that fails or
is cut short leaves a torn line, and nothing is appended after it: the writer is broken from then
on. The reader takes whole lines only; a line that does not check costs that line alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import asdict

from gpuspool.spool.codec import R, seal, seal_lines, unseal_lines
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import Damage, OnDamage
from gpuspool.spool.publish import (
    SyncError,
    create_journal,
    open_plain,
    patiently,
    pread,
    write_all,
)
from gpuspool.spool.records import Identity, JournalHead, Record

CHUNK_BYTES = 1024 * 1024  # that a reader takes at once, whatever a journal has grown to


class JournalWriter:
    """The one writer of one journal. Any OSError it raises must end the attempt.

    Lines that `may_wait` share a write with those that follow; until then they are lost with the
    process. Whoever lets lines wait calls `flush` before anything that may take longer; the thread
    that syncs does it too.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = str(path)
        self._waiting: list[Record] = []
        self._lock = threading.Lock()
        self._dirty = False
        self._broken: OSError | None = None

    def append(self, line: Record, may_wait: bool = False) -> None:
        """Add one line; unless it may wait, write it and all that wait."""
        self._waiting.append(line)
        if not may_wait:
            self.flush()

    def flush(self) -> None:
        """Write what waits with a single write(2); safe from another thread."""
        with self._lock:
            self.check()
            count = len(self._waiting)  # the other thread may add to them meanwhile
            if not count:
                return
            try:
                write_all(self._fd, b"".join(seal_lines(self._waiting[:count])))
            except OSError as error:
                error.filename = self._path
                self._broken = error
                raise
            del self._waiting[:count]
            self._dirty = True

    def sync_if_dirty(self) -> None:
        """fdatasync(2) what was appended since the last call; safe from another thread."""
        if self._broken:
            return
        self.flush()
        if not self._dirty:
            return
        self._dirty = False
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._broken = SyncError(error.errno, error.strerror, self._path)
            raise self._broken from None

    def check(self) -> None:
        """Raises the OSError that broke this journal, if one did (perhaps in another thread)."""
        if self._broken is not None:
            raise self._broken


def start_journal(layout: Layout, attempt: str, who: Identity) -> JournalWriter | None:
    """A worker's first act: link its journal, which says who it is. None: this attempt was started
    or closed before.
    """
    head = JournalHead(**asdict(who), attempt=attempt)
    fd = create_journal(layout.journal(attempt), seal(head))
    return None if fd is None else JournalWriter(fd, layout.journal(attempt))


def link_empty_journal(layout: Layout, attempt: str) -> bool:
    """Keep an attempt that never began from beginning. False: it has a journal."""
    fd = create_journal(layout.journal(attempt), b"")
    if fd is None:
        return False
    os.close(fd)
    return True


class JournalReader:
    """Follows one journal, or another file of the same make: each reading yields the lines that are
    new and whole.
    """

    def __init__(
        self, layout: Layout, attempt: str, report: OnDamage, path: Path | None = None
    ) -> None:
        self.attempt = attempt
        self.path = str(path or layout.journal(attempt))
        self.head: JournalHead | None = None
        self.offset = 0
        self._report = report

    def read(self, kind: type[R]) -> Iterator[tuple[int, R]]:
        """(offset, record) of every new line after the first. To be read to its end; damage is
        reported on the way.
        """
        for data in self._new():
            at, self.offset = self.offset, self.offset + len(data)
            if at == 0:
                head, _, data = data.partition(b"\n")
                at = len(head) + 1
                self.head = next(
                    (who for _, who in unseal_lines(head, 0, JournalHead, self._refuse)), None
                )
            yield from unseal_lines(data, at, kind, self._refuse)

    def _new(self) -> Iterator[bytes]:
        """The whole lines behind `offset`, some at a time, with one open for all of them."""
        path = Path(self.path)
        fd = patiently(lambda: open_plain(path))
        if fd is None:
            return
        try:
            size = CHUNK_BYTES
            while True:
                data = self._read_chunk(fd, path, size)
                end = data.rfind(b"\n") + 1
                if end:
                    yield data[:end]
                if len(data) < size:
                    return
                # A line that is longer than a chunk is read again with twice as many bytes.
                size = CHUNK_BYTES if end else size * 2
        finally:
            os.close(fd)

    def _read_chunk(self, fd: int, path: Path, size: int) -> bytes:
        return patiently(lambda: pread(fd, path, self.offset, size))

    def _refuse(self, at: int, reason: str) -> None:
        self._report(Damage(self.path, at, reason))

    def report_torn_tail(self) -> None:
        """Once the attempt is closed, bytes after the last newline are damage."""
        try:
            size = os.lstat(self.path).st_size
        except FileNotFoundError:
            return
        if size > self.offset:
            self._report(
                Damage(
                    self.path, self.offset, f"torn line of {size - self.offset} bytes at the end"
                )
            )
