"""Reading parts of large files: journals and logs of gigabytes, of which a reader holds little.

Guarantees: a file is opened once for each call and closed before the call returns, so a reader of a
thousand journals holds one descriptor at a time. No link is followed and no fifo waited for. Errors
that may pass are tried again, as everywhere in a spool.

Called by `places`, for the journal lines of some tasks, and by `logs`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpuspool.spool.publish import naming, patiently, read_bytes

# A half-open range of bytes of a file: start, stop.
Range = tuple[int, int]

# Two ranges with a gap of at most this between them are read with one call. Copying so much costs
# about as much as one more system call does.
GAP_BYTES = 4 * 1024

# One call reads at most this much, unless a single range is longer. Larger calls are no faster.
READ_BYTES = 1024 * 1024


def read_ranges(path: Path, ranges: Sequence[Range]) -> list[bytes]:
    """The bytes of each range of a file. The ranges are in order and do not overlap.

    A range that the file does not hold whole gives b"", and so does each range of a file that does
    not exist, or is no file. Raises OSError.
    """
    return patiently(lambda: _read_ranges(path, ranges))


def _read_ranges(path: Path, ranges: Sequence[Range]) -> list[bytes]:
    nothing = [b""] * len(ranges)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return nothing
    except OSError as error:
        if error.errno == errno.ELOOP:
            return nothing
        raise
    try:
        with naming(path):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return nothing
            return _read_parts(fd, ranges)
    finally:
        os.close(fd)


def _read_parts(fd: int, ranges: Sequence[Range]) -> list[bytes]:
    found: list[bytes] = []
    for first, last in _neighbours(ranges):
        begin = ranges[first][0]
        end = ranges[last - 1][1]
        data = _read_whole(fd, begin, end)
        if len(data) < end - begin:
            found += [
                _whole(data, start - begin, stop - begin) for start, stop in ranges[first:last]
            ]
        else:
            found += [data[start - begin : stop - begin] for start, stop in ranges[first:last]]
    return found


def _whole(data: bytes, start: int, stop: int) -> bytes:
    """A part of some bytes, or none of it where they end too early."""
    if stop > len(data):
        return b""
    return data[start:stop]


def _neighbours(ranges: Sequence[Range]) -> Iterator[tuple[int, int]]:
    """Which ranges are read together: the first of them, and the one behind the last."""
    first = 0
    begin = end = -1
    for index, (start, stop) in enumerate(ranges):
        if index == first:
            begin = start
        elif start - end > GAP_BYTES or stop - begin > READ_BYTES:
            yield first, index
            first = index
            begin = start
        end = stop
    if first < len(ranges):
        yield first, len(ranges)


def _read_whole(fd: int, start: int, stop: int) -> bytes:
    """The bytes start..stop of an open file, or those before its end if that comes first."""
    data = os.pread(fd, stop - start, start)
    if len(data) == stop - start or not data:
        return data
    # A read may be cut short by a signal or by a file system that gives less at once.
    parts = [data]
    at = start + len(data)
    while at < stop:
        part = os.pread(fd, stop - at, at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def read_chunks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes start..stop of a file, READ_BYTES at a time, or to its end if there is no `stop`.

    Of a file that grows while it is read, what is added may or may not be among them. A file that
    does not exist has none. Raises OSError.
    """
    at = start
    while stop is None or at < stop:
        size = READ_BYTES
        if stop is not None:
            size = min(size, stop - at)
        data = read_bytes(path, at, size)
        if not data:
            return
        yield data
        at += len(data)
