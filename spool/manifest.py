"""Manifests: ordered lists of tasks, written once.

A task's position is its line's number, counted from 0. Claims say which positions an attempt took,
so a position must never come to mean another task. Two things see to that: a manifest is published
once and never changed, and a damaged line keeps its position.

An orphans manifest begins with the closing of its attempt, a ruling with what was ruled, and one of
tasks that were added with how many they are: lines that have no position.

A manifest stays the bytes that it is until somebody asks for a task, so to know how long one of a
million tasks is costs one count of its newlines. Read by views and workers, published by the
orchestrator, by closers and by sweepers.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator

import msgspec

from gpuspool.spool.codec import R, decode_lines, seal, unseal, unseal_lines
from gpuspool.spool.errors import Damaged
from gpuspool.spool.layout import (
    Layout,
    is_added,
    is_ruling,
    orphans_name,
    parse_orphans,
    rank_name,
)
from gpuspool.spool.publish import Owners, is_regular, publish, read_bytes
from gpuspool.spool.records import Added, Closing, Ruling, Run, TaskLine

# Newlines are counted for each block of so many bytes. To find one line, one block is split, which
# holds some hundred lines; smaller blocks would make longer lists of counts to keep.
BLOCK_BYTES = 64 * 1024

# At most so many lines are split, checked and decoded at once. That bounds how many records are in
# memory while a million tasks are walked through.
SPLIT_LINES = 4096


class Damage(msgspec.Struct, frozen=True):
    """Bytes of the spool that could not be read as what they should be.

    is_torn: they are what a crash or a power cut may leave of data that was not synced, cut short
    or zeroes in its place, in a file of which the protocol expects that. What it held is run again
    or claimed again, so nothing is wrong, though the bytes stay.
    """

    path: str
    offset: int
    reason: str
    is_torn: bool = False

    def __str__(self) -> str:
        return f"{self.path}, byte {self.offset}: {self.reason}"


# What is called with each damage that is met.
OnDamage = Callable[[Damage], None]


class Manifest:
    """One manifest in memory.

    closing: how its attempt ended, by its first line; None where it is no orphans manifest, or
    where that line is damaged. ruling: what was ruled, likewise. added: that its tasks were added,
    likewise. is_as_planned: its bytes have the checksum that run.json says, so its lines need not
    be checked one by one.
    """

    def __init__(
        self, name: str, path: str, data: bytes, report: OnDamage, planned: int | None = None
    ) -> None:
        """data: the bytes of the file. report: called with each damage, now and at each reading.

        planned: the checksum that the bytes should have, None where run.json says none.
        """
        self.name = name
        self.path = path
        self.is_as_planned = planned is not None and zlib.crc32(data) == planned
        self.closing: Closing | None = None
        self.ruling: Ruling | None = None
        self.added: Added | None = None
        self._report = report
        self._data = data
        # Where the line of position 0 begins.
        self._base = 0
        if data and not data.endswith(b"\n"):
            report(Damage(path, len(data), "the last line has no end"))
        if parse_orphans(name) is not None:
            self.closing = self._take_closing()
        elif is_ruling(name):
            self.ruling = self._take_head(Ruling)
        elif is_added(name):
            self.added = self._take_head(Added)
        self._count_lines()

    def _take_head(self, kind: type[R]) -> R | None:
        """Read the first line, which has no position; None where it is damaged."""
        head, newline, _ = self._data.partition(b"\n")
        self._base = len(head) + len(newline)
        try:
            return unseal(head, kind)
        except Damaged as error:
            self._refuse(0, str(error))
            return None

    def _take_closing(self) -> Closing | None:
        """The closing of an orphans manifest; None where it is damaged, or another attempt's.

        Files are named after the attempt in the closing, so it may be no other than the one that
        the name of the manifest says.
        """
        closing = self._take_head(Closing)
        if closing is not None and closing.attempt != parse_orphans(self.name):
            self._refuse(0, f"the closing of another attempt, {closing.attempt}")
            return None
        return closing

    def _count_lines(self) -> None:
        """Count the newlines before each block, which `_offset` needs, and so the positions."""
        starts = range(self._base, len(self._data), BLOCK_BYTES)
        counts = (self._data.count(b"\n", start, start + BLOCK_BYTES) for start in starts)
        # One count for each block and one more, for the end of the last.
        self._before = list(itertools.accumulate(counts, initial=0))
        self._length = self._before[-1]
        # A last line without its end has a position too.
        if len(self._data) > self._base and not self._data.endswith(b"\n"):
            self._length += 1

    def _refuse(self, at: int, reason: str) -> None:
        self._report(Damage(self.path, at, reason))

    def __len__(self) -> int:
        """How many positions there are, readable or not."""
        return self._length

    # From a position to an offset. Keeping the offset of every line would take 8 bytes and more for
    # each of a million tasks, to find the few lines that are asked for. Instead `_before[i]` says
    # how many newlines come before block i. The line of position p begins behind newline number p,
    # so that newline lies in the last block before which there are fewer than p of them.
    #
    # An example, with blocks of 8 bytes and the four lines aaaa, bb, cccccc and d:
    #
    #     aaaa\nbb\n   cccccc\nd   \n
    #     block 0      block 1     block 2          _before = [0, 2, 3, 4]
    #
    # Where does position 3 begin? Newline number 3 lies in block 1, since 2 newlines come before
    # block 1 and 3 before block 2. Within block 1 it is number 3 - 2 = 1, so the block is split at
    # its first newline, and what is left behind that is `d`, one byte. Block 1 stops at offset 16,
    # so position 3 begins at 16 - 1 = 15. `split` with a limit does this in one call, with no loop
    # over lines. test_a_position_is_found_wherever_the_blocks_part guards it.
    def _offset(self, position: int) -> int:
        """Where the line of a position begins; the end of the data for one behind the last."""
        if position == 0:
            return self._base
        if not 0 < position <= self._before[-1]:
            return len(self._data)
        block = bisect.bisect_left(self._before, position) - 1
        start = self._base + block * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, len(self._data))
        newlines = position - self._before[block]
        rest = self._data[start:stop].split(b"\n", newlines)[-1]
        return stop - len(rest)

    def task(self, position: int) -> TaskLine | None:
        """The task at a position, None where its line is damaged; the damage is reported."""
        return next(self.tasks(position, position + 1), None)

    def tasks(self, start: int = 0, stop: int | None = None) -> Iterator[TaskLine]:
        """The readable tasks of the positions start..stop; all from `start` on where stop is None.

        Damaged lines are reported and passed over.
        """
        return self.records(TaskLine, start, stop)

    def holds(self, text: bytes) -> bool:
        """Whether these bytes stand anywhere in it."""
        return text in self._data

    def find(self, task: int, kind: type[R]) -> R | None:
        """The first line of a task as a record of some kind; None where no readable one is found.

        It costs a search through the bytes and no decoding.
        """
        return next((line for _, line in self.lines_of(task, kind)), None)

    # Whoever sealed a line wrote the task first, and no payload has a newline in it.
    def lines_of(self, task: int, kind: type[R]) -> Iterator[tuple[int, R]]:
        """(position, record) of each readable line of a task; found as by `find`."""
        mark = b'{"task":%d,' % task
        if self._data.startswith(mark, self._base):
            yield from self._line_at(self._base, kind)
        at = self._data.find(b"\n" + mark, self._base)
        while at >= 0:
            yield from self._line_at(at + 1, kind)
            at = self._data.find(b"\n" + mark, at + 1)

    def lines_with(self, text: bytes, kind: type[R]) -> Iterator[R]:
        """The readable lines that hold these bytes, which have no newline, wherever they do."""
        at = self._data.find(text, self._base)
        while at >= 0:
            start = self._data.rfind(b"\n", self._base, at) + 1 or self._base
            for _, line in self._line_at(start, kind):
                yield line
            end = self._data.find(b"\n", at)
            if end < 0:
                return
            at = self._data.find(text, end)

    def _line_at(self, at: int, kind: type[R]) -> Iterator[tuple[int, R]]:
        """(position, record) of the line that begins at an offset.

        Nothing where it is damaged or has no end.
        """
        end = self._data.find(b"\n", at)
        if end < 0:
            return
        with contextlib.suppress(Damaged):
            record = unseal(self._data[at:end], kind)
            yield self._data.count(b"\n", self._base, at), record

    def records(self, kind: type[R], start: int = 0, stop: int | None = None) -> Iterator[R]:
        """The readable lines of the positions start..stop as records of another kind.

        One that holds some fields of a TaskLine is decoded faster: the others are skipped.
        """
        if stop is None:
            stop = self._length
        stop = min(stop, self._length)
        for first in range(start, stop, SPLIT_LINES):
            at = self._offset(first)
            data = self._data[at : self._offset(min(first + SPLIT_LINES, stop))]
            if self.is_as_planned:
                yield from decode_lines(data, kind)
            else:
                for _, record in unseal_lines(data, at, kind, self._refuse):
                    yield record


def planned_checksums(run: Run) -> dict[str, int]:
    """The checksum of the bytes of each manifest that was planned, by the manifest's name."""
    names = (rank_name(rank) for rank in range(run.manifests))
    return dict(zip(names, run.manifests_crc32, strict=False))


def load_manifest(
    layout: Layout,
    name: str,
    report: OnDamage,
    planned: int | None = None,
    owners: Owners | None = None,
) -> Manifest | None:
    """The manifest with this name, None where there is none; raises OSError.

    report, planned: as for `Manifest`. owners: as for `read_bytes`.
    """
    path = layout.manifest(name)
    data = read_bytes(path, owners=owners)
    if data is None:
        return None
    if data == b"" and not is_regular(path):
        report(Damage(str(path), 0, "not a file"))
    return Manifest(name, str(path), data, report, planned)


def publish_manifest(layout: Layout, name: str, tasks: Iterable[TaskLine]) -> bool:
    """Publish a manifest by link(2). False: the name is taken, and what is there stays."""
    return publish(layout.manifest(name), _sealed(tasks))


def publish_orphans(layout: Layout, closing: Closing, orphans: Iterable[TaskLine]) -> bool:
    """Close an attempt: the link(2) of its orphans manifest is the commit instant.

    False: it was closed before, and that word stands.
    """
    name = orphans_name(closing.attempt)
    return publish(layout.manifest(name), seal(closing) + _sealed(orphans))


def publish_ruling(layout: Layout, name: str, ruling: Ruling, again: Iterable[TaskLine]) -> bool:
    """Publish a ruling by link(2), the commit instant of its verdicts.

    again: the tasks that are to be tried again. False: the name is taken.
    """
    return publish(layout.manifest(name), seal(ruling) + _sealed(again))


def publish_added(layout: Layout, name: str, added: Added, tasks: Iterable[TaskLine]) -> bool:
    """Publish tasks that are added to the run, by link(2). False: the name is taken.

    They stay in this order, which the caller has planned. The link is the commit instant: from then
    on the run has them.
    """
    return publish(layout.manifest(name), seal(added) + b"".join(map(seal, tasks)))


def is_doubtful(task: TaskLine) -> bool:
    """Whether a task failed somewhere in this round, and has no verdict."""
    return bool(task.failed_in)


def _sealed(tasks: Iterable[TaskLine]) -> bytes:
    """The sealed lines of tasks, in the order of every manifest: sound tasks first, longest first.

    The size of a claim is chosen by its first task, so none behind that may be longer. Doubtful
    tasks come behind all others, so that a claim holds either these or those. They are claimed one
    by one, and who may not take the next takes none of those behind it. So those that only few may
    take stand last: what took processes along is left to fresh ones.
    """

    def order(task: TaskLine) -> tuple[bool, int, float]:
        n_processes = len(task.failed_in) if task.careful else 0
        return is_doubtful(task), n_processes, -task.cost

    return b"".join(map(seal, sorted(tasks, key=order)))
