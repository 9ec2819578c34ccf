"""Manifests: ordered lists of tasks, written once.

A manifest stays the bytes that it is until somebody asks for a task, so one of a million tasks
costs a count of its lines. Line numbers are the coordinates of claims. An orphans manifest begins
with its attempt's Closing, which has no number.
"""

from __future__ import annotations

import bisect
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator

import msgspec

from gpuspool.spool.codec import Damaged, R, decode_lines, seal, unseal, unseal_lines
from gpuspool.spool.layout import Layout, orphans_name, parse_orphans, rank_name
from gpuspool.spool.publish import is_regular, publish, read_bytes
from gpuspool.spool.records import Closing, Run, TaskLine

BLOCK_BYTES = (
    64 * 1024
)  # what is split to find one line: some hundred lines, and a count for each block to keep
SPLIT_PLACES = 4096  # lines that are split at once


class Damage(msgspec.Struct, frozen=True):
    """Bytes of the spool that could not be read as what they should be."""

    path: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, byte {self.offset}: {self.reason}"


OnDamage = Callable[[Damage], None]


class Manifest:
    """One manifest in memory: its bytes, and every so many bytes the count of lines that begin
    before there.

    `is_as_planned`: its checksum is the `planned` one, so its lines need not be checked one by one.
    """

    def __init__(
        self, name: str, path: str, data: bytes, report: OnDamage, planned: int | None = None
    ) -> None:
        self.name = name
        self.path = path
        self._report = report
        self._data = data
        self.is_as_planned = planned is not None and zlib.crc32(data) == planned
        if data and not data.endswith(b"\n"):
            report(Damage(path, len(data), "the last line has no end"))
        self.closing: Closing | None = None
        self._base = 0
        if parse_orphans(name) is not None:
            self._take_head()
        counts = (
            data.count(b"\n", at, at + BLOCK_BYTES)
            for at in range(self._base, len(data), BLOCK_BYTES)
        )
        self._before = list(itertools.accumulate(counts, initial=0))
        self._length = self._before[-1] + (len(data) > self._base and not data.endswith(b"\n"))

    def _take_head(self) -> None:
        head, end, _ = self._data.partition(b"\n")
        self._base = len(head) + len(end)
        try:
            self.closing = unseal(head, Closing)
        except Damaged as error:
            self._refuse(0, str(error))

    def _refuse(self, at: int, reason: str) -> None:
        self._report(Damage(self.path, at, reason))

    def __len__(self) -> int:
        return self._length

    def _offset(self, place: int) -> int:
        """Where the line of a place begins."""
        if not 0 < place <= self._before[-1]:
            return len(self._data) if place else self._base
        block = bisect.bisect_left(self._before, place) - 1
        start = self._base + block * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, len(self._data))
        return stop - len(self._data[start:stop].split(b"\n", place - self._before[block])[-1])

    def task(self, place: int) -> TaskLine | None:
        """The task at a place, or None where its line is damaged (which is reported)."""
        return next(self.tasks(place, place + 1), None)

    def tasks(self, start: int = 0, stop: int | None = None) -> Iterator[TaskLine]:
        """The readable tasks of the places start..stop."""
        return self.records(TaskLine, start, stop)

    def records(self, kind: type[R], start: int = 0, stop: int | None = None) -> Iterator[R]:
        """The readable lines of the places start..stop, as records that need not hold every field."""
        if stop is None:
            stop = self._length
        stop = min(stop, self._length)
        for first in range(start, stop, SPLIT_PLACES):
            at = self._offset(first)
            data = self._data[at : self._offset(min(first + SPLIT_PLACES, stop))]
            if self.is_as_planned:
                yield from decode_lines(data, kind)
                continue
            for _, record in unseal_lines(data, at, kind, self._refuse):
                yield record


def planned_checksums(run: Run) -> dict[str, int]:
    """What the manifests that a run began with were, by name."""
    return dict(zip(map(rank_name, range(run.manifests)), run.manifests_crc32, strict=False))


def load_manifest(
    layout: Layout, name: str, report: OnDamage, planned: int | None = None
) -> Manifest | None:
    """None where there is no such manifest (any more)."""
    path = layout.manifest(name)
    data = read_bytes(path)
    if data == b"" and not is_regular(path):
        report(Damage(str(path), 0, "not a file"))
    return None if data is None else Manifest(name, str(path), data, report, planned)


def publish_manifest(layout: Layout, name: str, tasks: Iterable[TaskLine]) -> bool:
    """Publish a retry or sweep manifest by link(2). False where the name is taken."""
    return publish(layout.manifest(name), _longest_first(tasks))


def _longest_first(tasks: Iterable[TaskLine]) -> bytes:
    """The order of every manifest: a claim's size is chosen by its first task, so none may be
    longer.
    """
    return b"".join(map(seal, sorted(tasks, key=lambda task: -task.cost)))


def publish_orphans(layout: Layout, closing: Closing, orphans: Iterable[TaskLine]) -> bool:
    """Close an attempt: the commit instant is the link(2) of its orphans manifest. False: it was
    closed before.
    """
    return publish(
        layout.manifest(orphans_name(closing.attempt)), seal(closing) + _longest_first(orphans)
    )
