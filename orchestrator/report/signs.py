"""When the attempts of a start were heard of last, where nobody said when it ended.

A closing tells, unless who wrote it only found the attempt dead. Else the last lines of the journal
tell when a call ended, and the heartbeat, which is replaced every few seconds, that the attempt was
there. The times are those of the hosts that wrote them: a copy of a spool tells the same.

One file or two are opened for each rank, whatever there is of tasks. `status` calls this.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from gpuspool.spool.codec import unseal_lines
from gpuspool.spool.layout import rank_of
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Record
from gpuspool.spool.states import BY_RESUME
from gpuspool.spool.view import View

# The last call of a journal lies in so many bytes at its end; where it had many tasks or a long
# result, in all that are read.
LAST_CALL_BYTES = 4 * 1024
TAIL_BYTES = 64 * 1024


class _Times(Record, frozen=True, kw_only=True):
    """When the call of a journal line began, and its share for each task that the line names."""

    start: float = 0.0
    seconds: float = 0.0
    batch: list[int] = msgspec.field(default_factory=list)


def last_sign(view: View, epoch: int) -> float | None:
    """When anything was heard last of the attempts of an epoch, in Unix seconds; None: never.

    Raises OSError.
    """
    newest: dict[int, str] = {}
    for attempt in view.attempts:
        intent = view.intents.get(attempt)
        if intent is not None and intent.epoch == epoch:
            newest[rank_of(attempt)] = attempt
    return max((at for attempt in newest.values() for at in _signs(view, attempt)), default=None)


def _signs(view: View, attempt: str) -> Iterator[float]:
    """Moments at which an attempt was there."""
    closing = view.closed.get(attempt)
    if closing is not None and closing.by != BY_RESUME and closing.at:
        yield closing.at
        return
    intent = view.intents[attempt]
    if intent is not None:
        yield intent.at
    heartbeat = view.heartbeat(attempt)
    if heartbeat is not None:
        yield heartbeat.at
    yield from _ends_of_calls(view, attempt)


def _ends_of_calls(view: View, attempt: str) -> Iterator[float]:
    """When the last calls of an attempt ended, by its journal."""
    path = view.layout.journal(attempt)
    try:
        size = os.lstat(path).st_size
    except FileNotFoundError:
        return
    begin = max(0, size - TAIL_BYTES)
    tail = read_bytes(path, begin, TAIL_BYTES) or b""
    for data in (tail[-LAST_CALL_BYTES:], tail):
        # The lines of a call share its time, and tell when it began.
        seconds: dict[float, float] = defaultdict(float)
        for line in _whole_lines(data, is_whole=len(data) == size):
            if line.start:
                seconds[line.start] += line.seconds * (1 + len(line.batch))
        # Of several calls the first may lack lines here, and the last one is whole.
        if len(seconds) > 1:
            break
    for start, whole in seconds.items():
        yield start + whole


def _whole_lines(data: bytes, is_whole: bool) -> Iterator[_Times]:
    """The lines of the end of a journal. is_whole: that is all of it."""
    if not is_whole:
        data = data[data.find(b"\n") + 1 :]
    data = data[: data.rfind(b"\n") + 1]
    for _, line in unseal_lines(data, 0, _Times, _ignore):
        yield line


def _ignore(at: int, reason: str) -> None:
    """Damage was reported when the journal was read."""
