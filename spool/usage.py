"""Reading what attempts use, in usage/: `worker/usage.py` writes it, and nothing rests on it.

A file may be missing, may be cut, and may hold a line that was written in part in its middle: what
cannot be read is passed over. On a network file system it may be some half a minute old.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from gpuspool.spool.codec import decode
from gpuspool.spool.errors import Damaged
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Usage

# A line takes some 250 bytes, so the last whole one lies within so many.
TAIL_BYTES = 2048

# A file is read in pieces of so many bytes: that of a process which ran for a month has 10 MB.
CHUNK_BYTES = 1024 * 1024


def last_usage(layout: Layout, attempt: str) -> Usage | None:
    """What an attempt told last, by one open; None where it told nothing. Raises OSError."""
    path = layout.usage(attempt)
    try:
        size = os.lstat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
    lines = _whole_lines(read_bytes(path, max(0, size - TAIL_BYTES), TAIL_BYTES))
    for line in reversed(lines):
        usage = _usage_in(line)
        if usage is not None:
            return usage
    return None


def each_usage(layout: Layout, attempt: str) -> Iterator[Usage]:
    """All that an attempt told, in order, of which little is held in memory. Raises OSError."""
    path = layout.usage(attempt)
    offset = 0
    rest = b""
    while chunk := read_bytes(path, offset, CHUNK_BYTES):
        offset += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            usage = _usage_in(line)
            if usage is not None:
                yield usage
        # So long no line is. It would be copied again with every chunk.
        if len(rest) > CHUNK_BYTES:
            rest = b""


def _whole_lines(data: bytes | None) -> list[bytes]:
    """The lines that end; that at the beginning may be the end of one."""
    return (data or b"").split(b"\n")[:-1]


def _usage_in(line: bytes) -> Usage | None:
    try:
        return decode(line, Usage)
    except Damaged:
        return None
