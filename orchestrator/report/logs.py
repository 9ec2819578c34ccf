"""What the workers printed, as text that comes in chunks.

Guarantees: of a log of any size a chunk at a time is held, `ranges.READ_BYTES` long. Bytes that are
no UTF-8 become U+FFFD; a character that is cut by the end of a chunk is put together again. The
text is as the job printed it: make it `printable` before it goes to a terminal. Line ends of all
kinds become a newline, so that a progress bar that goes back to the beginning of its line is
readable.

The command line and the Python API call this.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from gpuspool.orchestrator.report.keys import tasks_of
from gpuspool.orchestrator.report.ranges import Range, read_chunks
from gpuspool.spool.errors import UsageError
from gpuspool.spool.journal import JournalReader
from gpuspool.spool.records import Record
from gpuspool.spool.view import View


class _Logged(Record, frozen=True, kw_only=True):
    """What a journal line says of a task's log; the rest is skipped, not decoded."""

    task: int
    log: Range | None = None


def log_chunks(view: View, attempt: str) -> Iterator[str]:
    """The log of an attempt, from its beginning to where it ends now.

    A log that does not exist has no text. Raises OSError.
    """
    return _text(view, attempt, 0, None)


def task_log_chunks(view: View, key: str) -> Iterator[str]:
    """What was printed while the task with this key ran, attempt by attempt, each under its name.

    Raises UsageError for a key that no task has, before anything is yielded; OSError.
    """
    tasks = tasks_of(view, key)
    if not tasks:
        raise UsageError(
            f"{view.layout.root} has no task with the key {key!r}. "
            "`gpuspool results` lists the keys."
        )
    return _task_log(view, tasks)


def _task_log(view: View, tasks: set[int]) -> Iterator[str]:
    for attempt in view.attempts:
        if attempt not in view.journals:
            continue
        journal = JournalReader(view.layout, attempt, view.report)
        for _, line in journal.read(_Logged):
            if line.task in tasks and line.log is not None:
                yield f"==> {attempt} <==\n"
                yield from _text(view, attempt, *line.log)


def _text(view: View, attempt: str, start: int, stop: int | None) -> Iterator[str]:
    """What stands in the bytes start..stop of an attempt's log; to its end if there is no stop."""
    decoder = io.IncrementalNewlineDecoder(_utf8(), translate=True)
    for data in read_chunks(view.layout.log(attempt), start, stop):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def _utf8() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")
