"""The standard streams of the command line: all that a verb prints arrives, or it is an error.

While `standard_output` is entered, whatever the process prints goes through one `_Descriptor`,
which guarantees:

- A write(2) that takes only a part is continued, and one that would block is waited for, because
  whoever started us may have set the pipe to O_NONBLOCK.
- The first error is raised where it was met and kept. What is printed afterwards is dropped, so
  that nobody meets the error a second time, in the middle of the interpreter's own end.
- Text that the stream's encoding cannot say is escaped instead of raised.

`Output.end` then says with which exit code the process must end. Called by `main` alone.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from gpuspool.orchestrator.text.progress import say
from gpuspool.spool.errors import EXIT_READER_GONE, GpuspoolError

# So much is collected before it is written. A listing of a million tasks takes some 200 MB, and a
# write(2) of 64 KiB fills a pipe once.
BUFFER_BYTES = 64 * 1024

# How long the end of the process waits for a stderr that takes nothing at the moment. An error
# message is worth some seconds, but a terminal that was stopped must not keep a batch job alive.
STDERR_WAIT_MS = 5000

STDOUT = 1
STDERR = 2


class RunEnded(SystemExit):
    """The end of `run`, `resume`, `retry` or `redo`, whose exit code tells how the run ended.

    That code stays if stdout takes nothing, unless it is 0: a batch script that submits itself
    again on code 75 must not fail to do so because its log is full.
    """


class _Descriptor(io.RawIOBase):
    """A file descriptor to which each write is whole, or raises OSError once.

    error: the first error, None while there was none.
    """

    def __init__(self, fd: int, is_closed: bool) -> None:
        """is_closed: the process began without this descriptor, so every write fails."""
        super().__init__()
        self.error: OSError | None = None
        self._fd = fd
        self._is_closed = is_closed

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._write_all(view)
            except OSError as error:
                self.error = error
                raise
        return len(view)

    def _write_all(self, view: memoryview) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                _wait_writable(self._fd, None)


class Output:
    """What the process prints, and whether all of it arrived.

    stream: where it prints; None where somebody has taken stdout away.
    """

    def __init__(self, stream: TextIO | None, descriptor: _Descriptor | None = None) -> None:
        """descriptor: None where somebody else has put a stream in the place of stdout."""
        self.stream = stream
        self._descriptor = descriptor
        self._error: OSError | None = None

    @property
    def error(self) -> OSError | None:
        """The first error that stdout gave, None while there was none."""
        if self._descriptor is not None and self._descriptor.error is not None:
            return self._descriptor.error
        return self._error

    def flush(self) -> None:
        """Write what is collected; an error is kept, not raised."""
        if self.stream is None:
            return
        try:
            self.stream.flush()
        except OSError as error:
            self._error = error

    def end(self, code: int, is_of_run: bool) -> int:
        """The exit code of a process that would end with `code`, if all that it printed arrived.

        Where it did not, stderr is told, except that a reader which went away needs no message:
        `head` has seen enough. is_of_run: the code tells how a run ended, see `RunEnded`.
        """
        self.flush()
        error = self.error
        if error is None:
            return code
        wanted = EXIT_READER_GONE
        if error.errno != errno.EPIPE:
            wanted = GpuspoolError.exit_code
            say(
                f"standard output: {error.strerror or error}, errno {error.errno}. What was "
                "printed is not whole. Fix it, then run the same command again."
            )
        if is_of_run and code != 0:
            return code
        return wanted


@contextlib.contextmanager
def standard_output() -> Iterator[Output]:
    """Let all that is printed inside go through a `_Descriptor`.

    Not where somebody has put a stream of their own in the place of sys.stdout: they get what is
    printed, as they asked.
    """
    _fill_closed()
    before = sys.stdout
    if before is not sys.__stdout__:
        yield Output(before)
        return
    descriptor = _Descriptor(STDOUT, is_closed=before is None)
    output = Output(_text_stream(descriptor, before), descriptor)
    sys.stdout = output.stream
    try:
        yield output
    finally:
        output.flush()
        sys.stdout = before


def _text_stream(descriptor: _Descriptor, before: TextIO | None) -> TextIO:
    encoding = "utf-8"
    if before is not None:
        encoding = before.encoding
    return io.TextIOWrapper(
        io.BufferedWriter(descriptor, BUFFER_BYTES),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=descriptor.isatty(),
    )


def _fill_closed() -> None:
    """Open /dev/null in the place of each standard stream that the process began without.

    Otherwise the next file that is opened takes the number, and whatever is printed lands in it.
    """
    for fd in (0, STDOUT, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def flush_stderr() -> None:
    """Write what stderr still holds, if it takes it within some seconds."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except BlockingIOError:
        _wait_writable(STDERR, STDERR_WAIT_MS)
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
    except (OSError, ValueError):
        # Nobody listens, and there is no other place to say it.
        return


def _wait_writable(fd: int, timeout_ms: int | None) -> None:
    """Wait until a descriptor takes more, or until its reader is gone."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll(timeout_ms)
