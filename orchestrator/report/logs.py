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
from pathlib import Path

from gpuspool.orchestrator.report.finding import find_task
from gpuspool.orchestrator.report.ranges import read_chunks
from gpuspool.spool.layout import rank_of
from gpuspool.spool.view import View

# The last lines of a log are looked for in so many bytes at its end, then in four times as many.
TAIL_BYTES = 64 * 1024


class Logs:
    """The logs of a run as they grow: each call of `new_text` gives what came since the one before.

    What an attempt printed stands under its name, which is told again where another one spoke in
    between.
    """

    def __init__(self, view: View, rank: int | None = None, last: int | None = None) -> None:
        """rank: only the attempts of this rank. last: of what is there at the first look, only so
        many lines of each attempt.
        """
        self._view = view
        self._rank = rank
        self._last = last
        self._logs: dict[str, _Log] = {}
        self._headers = _Headers()

    def new_text(self) -> Iterator[str]:
        """What is new in the logs of the attempts that the view has. Raises OSError."""
        for attempt in self._view.attempts:
            if self._rank is not None and rank_of(attempt) != self._rank:
                continue
            if attempt not in self._logs:
                self._logs[attempt] = _Log(self._view.layout.log(attempt), self._last)
                yield self._headers.new(attempt)
            for text in self._logs[attempt].new_text():
                yield self._headers.under(attempt, text)
        # Attempts that begin later are shown from their first line on.
        self._last = None

    def rest(self) -> Iterator[str]:
        """What is still held back, since it may be the beginning of a character or a line's end."""
        for attempt, log in self._logs.items():
            text = log.rest()
            if text:
                yield self._headers.under(attempt, text)


class _Headers:
    """The lines that say which attempt printed what follows."""

    def __init__(self) -> None:
        self._attempt = ""
        # What was printed last may have no end of a line, as that of a progress bar.
        self._is_in_line = False

    def new(self, attempt: str) -> str:
        """The header of an attempt, on a line of its own."""
        end = "\n" if self._is_in_line else ""
        self._attempt = attempt
        self._is_in_line = False
        return f"{end}==> {attempt} <==\n"

    def under(self, attempt: str, text: str) -> str:
        """Some text of an attempt, below its header where another one's was shown last."""
        header = "" if attempt == self._attempt else self.new(attempt)
        self._is_in_line = not text.endswith("\n")
        return header + text


class _Log:
    """One log that grows."""

    def __init__(self, path: Path, last: int | None) -> None:
        self._path = path
        self._at = 0 if last is None else _start_of_last(path, last)
        self._decoder = io.IncrementalNewlineDecoder(_utf8(), translate=True)

    def new_text(self) -> Iterator[str]:
        for data in read_chunks(self._path, self._at):
            self._at += len(data)
            text = self._decoder.decode(data)
            if text:
                yield text

    def rest(self) -> str:
        return self._decoder.decode(b"", final=True)


def _start_of_last(path: Path, lines: int) -> int:
    """Where the last lines of a file begin. A file that does not exist begins at 0."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return 0
    n_bytes = TAIL_BYTES
    while True:
        begin = max(0, size - n_bytes)
        found = b"".join(read_chunks(path, begin, size)).splitlines(keepends=True)
        if begin == 0 or len(found) > lines:
            last = found[len(found) - lines :] if lines < len(found) else found
            return size - sum(map(len, last))
        n_bytes *= 4


def task_log_chunks(view: View, word: str) -> Iterator[str]:
    """What was printed while a task ran, attempt by attempt, each under its name.

    word: what `find_task` understands. Raises UsageError for a word that means no task, before
    anything is yielded; OSError.
    """
    return _task_log(view, find_task(view, word))


def _task_log(view: View, task: int) -> Iterator[str]:
    headers = _Headers()
    for attempt, _, line in view.lines_of(task):
        if line.task == task and line.log is not None:
            is_told = False
            for text in filter(None, _text(view, attempt, *line.log)):
                # Each try has a header, so that a second one in the same attempt is told apart.
                if not is_told:
                    yield headers.new(attempt)
                    is_told = True
                yield headers.under(attempt, text)
    # Of a call that its process did not survive no line tells, and the closing has the log's end.
    for attempt, closing in view.closed.items():
        for loss in (*closing.held, *closing.failures):
            if loss.task == task and loss.error.log_tail:
                yield headers.new(attempt)
                yield headers.under(attempt, f"{loss.error.log_tail.rstrip()}\n")


def _text(view: View, attempt: str, start: int, stop: int) -> Iterator[str]:
    """What stands in the bytes start..stop of an attempt's log."""
    decoder = io.IncrementalNewlineDecoder(_utf8(), translate=True)
    for data in read_chunks(view.layout.log(attempt), start, stop):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def _utf8() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")
