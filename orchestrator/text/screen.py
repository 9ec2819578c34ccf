"""The lower end of a terminal: a table that is drawn again in place, and messages above it.

It guarantees:

- Whoever shows or says something never waits for the terminal. A thread draws and writes; while the
  terminal takes nothing (Ctrl-S, a connection that hangs), newer tables replace older ones, and of
  the messages the newest are kept.
- Each frame is one write(2), never has more lines than the terminal, and no line is wider. The size
  is looked at several times a second, so a table fits soon after the window was made smaller.
- Of messages nothing is cut off: what is too wide goes on in the next line.
- In the background of a terminal nothing is drawn, and messages are plain lines. A process that was
  stopped and goes on draws below what the shell has printed meanwhile, and not over it.
- Nothing of the terminal's state is changed, not even the cursor: a process that is killed leaves
  nothing to be repaired.

Used by the progress of a run and by `status --watch`. This is the only file that imports rich, and
does so once there is something to draw.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from gpuspool.orchestrator.text.cells import fold
from gpuspool.orchestrator.text.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

# How often the size of the terminal, and who is in front, is looked at: soon for people, and next
# to nothing in work.
TICK_S = 0.25

# So many lines of messages are kept for a terminal that takes nothing. All of them are in events/
# too.
MOST_ABOVE = 500

# The size of a terminal that does not tell its own, as many do that are made by programs.
USUAL_SIZE = 80, 24

# Terminals that cannot move a cursor, by $TERM. Where nothing is said, nothing is known to work.
_DUMB = ("", "dumb", "unknown")


class Line(NamedTuple):
    """One line of a table, safe for a terminal, and whether it tells of trouble."""

    text: str
    is_trouble: bool = False


# Draws a table for a terminal of so many columns in at most so many lines. It is called by the
# thread that writes, and more than once if the size changes.
Drawing = Callable[[int, int], list[Line]]


def can_draw(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal on which a table can be drawn in place."""
    if os.environ.get("TERM", "").lower() in _DUMB or stream is None:
        return False
    try:
        return stream.isatty() and stream.fileno() >= 0
    except (OSError, ValueError):
        return False


def size_of(fd: int) -> tuple[int, int]:
    """The columns and lines of a terminal.

    What it tells itself counts most: $COLUMNS is only what it was when somebody exported that.
    """
    columns, lines = 0, 0
    with contextlib.suppress(OSError):
        columns, lines = os.get_terminal_size(fd)
    return (
        columns or _number_in("COLUMNS") or USUAL_SIZE[0],
        lines or _number_in("LINES") or USUAL_SIZE[1],
    )


def _number_in(variable: str) -> int:
    word = os.environ.get(variable, "")
    return int(word) if word.isascii() and word.isdigit() else 0


class Screen:
    """A table at the lower end of a terminal, from the first word to `close`.

    stream: what is written to; its `isatty` is true. kept_lines: so many lines of the terminal stay
    free for messages. takes_prints: until `close`, what this process prints on the terminal by
    sys.stdout and sys.stderr goes above the table, too.
    """

    def __init__(self, stream: TextIO, kept_lines: int = 1, *, takes_prints: bool = False) -> None:
        self._stream = stream
        self._fd = stream.fileno()
        self._encoding = stream.encoding or "utf-8"
        self._kept_lines = kept_lines
        self._takes_prints = takes_prints
        # What the two threads share, under the lock.
        self._news = threading.Condition()
        self._drawing: Drawing | None = None
        self._is_new = False
        self._is_busy = False
        self._above: deque[str] = deque(maxlen=MOST_ABOVE)
        self._is_ending = False
        self._thread: threading.Thread | None = None
        # Set by the handler of SIGCONT, which must take no lock.
        self._was_continued = False
        self._giving_back = contextlib.ExitStack()
        # Of the thread alone.
        self._frame = _Frame()
        self._was_behind = False
        # Why nothing can be written any more; None as long as it can.
        self.error: OSError | None = None

    @property
    def is_behind(self) -> bool:
        """Whether the process is in the background now, where no table is drawn.

        What is said is printed all the same, so whoever shows a table says a line instead.
        """
        return _is_in_background(self._fd)

    @property
    def is_ready(self) -> bool:
        """Whether all that was shown so far is on the terminal, and more can be."""
        return self.error is None and not self._is_new and not self._is_busy

    @property
    def is_broken(self) -> bool:
        """Whether the thread has met an error of ours, of which it told on stderr."""
        is_gone = self._thread is not None and not self._thread.is_alive()
        return is_gone and self.error is None and not self._is_ending

    def show(self, drawing: Drawing) -> None:
        """Draw this in the place of what is there."""
        with self._news:
            self._drawing = drawing
            self._is_new = True
        self._wake()

    def say(self, text: str) -> None:
        """Print lines above the table. They are made safe for the terminal."""
        self._print(printable(text).split("\n"))

    def _print(self, lines: list[str]) -> None:
        with self._news:
            self._above.extend(lines)
        self._wake()

    def close(self, wait_s: float | None = None) -> None:
        """Leave the last table where it is.

        wait_s: for so long a terminal is waited for that takes nothing; None: without limit.
        """
        if self._thread is None:
            return
        self._giving_back.close()
        if self.is_broken:
            self._stream.writelines(f"{line}\n" for line in self._above)
            return
        with self._news:
            self._is_ending = True
            self._news.notify()
        self._thread.join(wait_s)

    def _wake(self) -> None:
        if self._thread is None:
            self._start()
        with self._news:
            self._news.notify()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="gpuspool-screen", daemon=True)
        self._giving_back.enter_context(_noting_continuation(self._note_continued))
        if self._takes_prints:
            self._giving_back.enter_context(_prints_to(self._print))
        self._thread.start()

    def _note_continued(self) -> None:
        self._was_continued = True

    def _work(self) -> None:
        """The thread's own."""
        # Signals are the main thread's. With SIGTTOU blocked a terminal on which `stty tostop` was
        # said takes what is written in the background, and does not stop the whole run for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        is_over = False
        while not is_over and self.error is None:
            with self._news:
                self._news.wait_for(self._has_news, TICK_S)
                is_over = self._is_ending
                drawing, is_new = self._drawing, self._is_new
                above = list(self._above)
                self._above.clear()
                self._is_new = False
                self._is_busy = True
            data = self._next(drawing, above, is_new=is_new, is_last=is_over)
            try:
                _write_all(self._fd, data.encode(self._encoding, "replace"))
            except OSError as error:
                # A terminal that was closed. Nobody listens any more, and the run goes on.
                self.error = error
            self._is_busy = False

    def _has_news(self) -> bool:
        return self._is_new or bool(self._above) or self._is_ending

    def _next(
        self, drawing: Drawing | None, above: list[str], *, is_new: bool, is_last: bool
    ) -> str:
        """What is to be written now; "" for nothing."""
        was_behind = self._was_behind
        is_behind = self._was_behind = self.is_behind
        if self._was_continued or was_behind or is_behind:
            self._was_continued = False
            # What stands on the terminal now is somebody else's.
            self._frame.forget()
        if drawing is None or is_behind:
            return "".join(f"{line}\n" for line in above)
        size = size_of(self._fd)
        if not (is_new or above or is_last or was_behind or size != self._frame.size):
            return ""
        columns, lines = size
        rows = drawing(columns, max(1, lines - self._kept_lines))
        return self._frame.draw(rows, above, size, is_last=is_last)


class _Frame:
    """Composes what is to be written so that a table replaces the one before.

    size: of the terminal when it was drawn last.
    """

    def __init__(self) -> None:
        self.size = 0, 0
        self._sink = _Sink()
        self._live: Live | None = None
        # How wide the lines are that were drawn last.
        self._widths: list[int] = []

    def forget(self) -> None:
        """Draw the next table where the cursor will be."""
        self._live = None
        self._widths = []

    def draw(
        self, rows: list[Line], above: list[str], size: tuple[int, int], *, is_last: bool
    ) -> str:
        """The text that prints `above` and the rows in the place of the last table.

        above: lines that may be too wide, which go on in the next one. is_last: the table stays,
        and the cursor goes below it.
        """
        if self._live is not None and size != self.size:
            self._sink.write(self._erasing(size[0]))
            self._live = None
        if self._live is None:
            self._live = _start_live(self._sink, *size)
        self.size = size
        console = self._live.console
        if above:
            folded = [Line(part) for line in above for part in fold(line.expandtabs(), size[0])]
            console.print(_Rows(folded, ends=True), crop=False)
        rows = rows[: size[1]]
        if not is_last and len(rows) < size[1]:
            # The cursor rests in a line of its own. What is typed is echoed there: the ^C of a
            # Ctrl-C behind a full line would go on in the next one, and the table with it.
            rows = [*rows, Line("")]
        self._live.update(_Rows(rows), refresh=not is_last)
        self._widths = [_cells(row.text) for row in rows]
        if is_last:
            self._live.stop()
            self._live = None
        return self._sink.take()

    # Most terminals wrap a line anew that has become too long, so that the table takes more lines
    # than were drawn. With the others a few lines above it are erased as well: the last messages,
    # which stand in events/ too.
    def _erasing(self, columns: int) -> str:
        """What goes to the table's first line and erases from there on, in a window that was
        resized to so many columns.
        """
        lines = sum(max(1, -(-width // columns)) for width in self._widths)
        up = f"\x1b[{lines - 1}A" if lines > 1 else ""
        return f"\r{up}\x1b[J"


class _Sink(io.StringIO):
    """A file in which rich collects one frame."""

    def isatty(self) -> bool:
        return True

    def take(self) -> str:
        """All that was collected; then it is empty."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


class _Rows:
    """Lines as they stand, for rich: it cuts those of a table that are too wide all the same."""

    def __init__(self, rows: list[Line], *, ends: bool = False) -> None:
        """ends: the last one ends with a newline, too."""
        self._rows = rows
        self._ends = ends

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment
        from rich.style import Style

        trouble = Style.parse("red")
        last = len(self._rows) - 1
        for number, row in enumerate(self._rows):
            yield Segment(row.text, trouble if row.is_trouble else None)
            if number < last or self._ends:
                yield Segment.line()


@functools.cache
def _console_class() -> Any:
    from rich.console import Console

    class SteadyConsole(Console):
        """A console that lets the cursor be seen: nobody would bring it back after a SIGKILL."""

        def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
            return False

    return SteadyConsole


def _start_live(sink: _Sink, columns: int, lines: int) -> Live:
    from rich.live import Live

    # What this is was found out by us: rich would ask variables that are meant for others.
    console = _console_class()(
        file=sink,
        width=columns,
        height=lines,
        force_terminal=True,
        force_interactive=True,
        force_jupyter=False,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    live = Live(
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="crop",
    )
    live.start()
    return live


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _write_all(fd: int, data: bytes) -> None:
    """Write all of it: with one write(2), unless that takes only a part. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            # Somebody has set the terminal to O_NONBLOCK, as some shells' children do.
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def _is_in_background(fd: int) -> bool:
    """Whether the terminal belongs to another group of processes now.

    False for a terminal that is not the one of this session: nobody else is known to be there.
    """
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False


@contextlib.contextmanager
def _noting_continuation(note: Callable[[], None]) -> Iterator[None]:
    """Call `note` whenever this process was stopped and goes on, as long as the block lasts.

    Off the main thread, where Python allows no handlers, and where other code than Python's handles
    SIGCONT, nothing is changed.
    """
    old = signal.getsignal(signal.SIGCONT)
    if old is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number: int, stack: Any) -> None:
        note()
        if callable(old):
            old(number, stack)

    signal.signal(signal.SIGCONT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, old)


@contextlib.contextmanager
def _prints_to(take: Callable[[list[str]], None]) -> Iterator[None]:
    """Give `take` the lines that this process prints on a terminal, as long as the block lasts."""
    replaced: list[tuple[str, _Prints]] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if can_draw(stream):
            prints = _Prints(stream, take)
            setattr(sys, name, prints)
            replaced.append((name, prints))
    try:
        yield
    finally:
        for name, prints in replaced:
            # Somebody may have put a stream of their own in its place.
            if getattr(sys, name) is prints:
                setattr(sys, name, prints.stream)
            prints.end()


class _Prints(io.TextIOBase):
    """Stands in the place of a stream, and passes on whole lines."""

    def __init__(self, stream: TextIO, take: Callable[[list[str]], None]) -> None:
        self.stream = stream
        self._take = take
        self._lock = threading.Lock()
        self._rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str, /) -> int:
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            # Of a bar that is drawn over itself the last state is kept.
            self._rest = rest.rpartition("\r")[2]
            if lines:
                self._take([line.rstrip("\r").rpartition("\r")[2] for line in lines])
        return len(text)

    def end(self) -> None:
        """Pass on what had no newline yet."""
        with self._lock:
            if self._rest:
                self._take([self._rest])
            self._rest = ""
