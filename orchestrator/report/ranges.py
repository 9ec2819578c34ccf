"""Reading parts of large files: journals and logs of gigabytes, of which a reader holds little.

Guarantees: a file is opened once for each call and closed before the call returns, so a reader of a
thousand journals holds one descriptor at a time. No link is followed and no fifo waited for. Errors
that may pass are tried again, as everywhere in a spool.

Called by `places` and `failures`, for the journal lines of some tasks, and by `logs`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpuspool.spool.codec import R, unseal_lines
from gpuspool.spool.manifest import Damage
from gpuspool.spool.publish import OpenFile, naming, open_plain, patiently, read_bytes
from gpuspool.spool.view import View

# A half-open range of bytes of a file: start, stop.
Range = tuple[int, int]

# Two ranges with a gap of at most this between them are read with one call. Copying so much costs
# about as much as one more system call does.
GAP_BYTES = 4 * 1024

# One call reads at most this much, unless a single range is longer. Larger calls are no faster.
READ_BYTES = 1024 * 1024

# So much is read for lines of which only the beginning is known: many lines where they lie close
# together, and little more than needed where they do not.
LINES_BYTES = 64 * 1024


def read_ranges(path: Path, ranges: Sequence[Range]) -> list[bytes]:
    """The bytes of each range of a file. The ranges are in order and do not overlap.

    A range that the file does not hold whole gives b"", and so does each range of a file that does
    not exist, or is no file. Raises OSError.
    """
    return patiently(lambda: _read_ranges(path, ranges))


def _read_ranges(path: Path, ranges: Sequence[Range]) -> list[bytes]:
    fd = open_plain(path)
    if fd is None:
        return [b""] * len(ranges)
    try:
        with naming(path):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return [b""] * len(ranges)
            return _read_parts(fd, ranges)
    finally:
        os.close(fd)


def _read_parts(fd: int, ranges: Sequence[Range]) -> list[bytes]:
    found: list[bytes] = []
    for neighbours in _neighbours(ranges):
        begin = neighbours[0][0]
        end = neighbours[-1][1]
        data = _read_whole(fd, begin, end)
        found += _cut(data, begin, neighbours)
    return found


def _cut(data: bytes, begin: int, ranges: Sequence[Range]) -> list[bytes]:
    """The bytes of each range, taken from those that stand in the file from `begin` on.

    Of a range that lies not wholly in there, b"".
    """
    found: list[bytes] = []
    for start, stop in ranges:
        part = data[start - begin : stop - begin]
        if len(part) < stop - start:
            part = b""
        found.append(part)
    return found


def _neighbours(ranges: Sequence[Range]) -> Iterator[Sequence[Range]]:
    """The ranges in groups, each of which is read with one call."""
    if not ranges:
        return
    first = 0
    begin, end = ranges[0]
    for index, (start, stop) in enumerate(ranges):
        gap = start - end
        size = stop - begin
        if index > first and (gap > GAP_BYTES or size > READ_BYTES):
            yield ranges[first:index]
            first = index
            begin = start
        end = stop
    yield ranges[first:]


def _read_whole(fd: int, start: int, stop: int) -> bytes:
    """The bytes start..stop of an open file, or those before its end if that comes first."""
    # Not by publish.OpenFile: lines that lie far apart take one call each, and it looks at the file
    # once more for each call. A read may be cut short by a signal or by a file system that gives
    # less at once, so it goes on until all is there or nothing comes.
    parts: list[bytes] = []
    at = start
    while at < stop:
        part = os.pread(fd, stop - at, at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def read_lines(path: Path, starts: Sequence[int]) -> Iterator[list[bytes]]:
    """The lines of a file that begin at these offsets, newlines included, some at a time.

    starts: in order. A line that the file does not hold whole is left out, and so are all lines of
    a file that does not exist, or is no file. Raises OSError.
    """
    first = 0
    size = LINES_BYTES
    with contextlib.closing(OpenFile(path)) as file:
        while first < len(starts):
            begin = starts[first]
            data = file.read(begin, size)
            lines: list[bytes] = []
            for start in itertools.islice(starts, first, None):
                end = data.find(b"\n", start - begin) + 1
                if end == 0:
                    break
                lines.append(data[start - begin : end])
            first += len(lines)
            if lines:
                yield lines
                size = LINES_BYTES
            elif len(data) < size:
                # The file ends before this line does, or before it begins.
                first += 1
                size = LINES_BYTES
            else:
                size *= 2


def records_in(data: bytes, kind: type[R]) -> list[R]:
    """The journal lines in some bytes, as records of this kind.

    Of those that are damaged nothing is said: the caller knows which lines should be there.
    """
    return [record for _, record in unseal_lines(data, 0, kind, _ignore)]


def _ignore(at: int, reason: str) -> None:
    pass


def report_unreadable(view: View, path: Path, at: int, task: int) -> None:
    """Tell a view of a line that was there when it was found, and cannot be read any more."""
    reason = f"the line that told of task {task} was whole when it was found"
    view.report(Damage(str(path), at, reason))


def read_chunks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes start..stop of a file, READ_BYTES at a time, or to its end if there is no `stop`.

    Of a file that grows while it is read, what is added may or may not be among them. A file that
    does not exist has none. Raises OSError.
    """
    if stop is None:
        stop = sys.maxsize
    at = start
    while at < stop:
        size = min(READ_BYTES, stop - at)
        data = read_bytes(path, at, size)
        if not data:
            return
        yield data
        at += len(data)
