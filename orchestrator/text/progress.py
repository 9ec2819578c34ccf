"""What a person sees while a run goes on: a live table on a terminal or in a notebook, else a line
on stderr every 30 s.

What is shown is reckoned elsewhere. Nothing in here ever raises because nobody listens: a run whose
terminal was closed goes on. The orchestrator asks after each look whether something `is_due`, calls
`update` then, and shows nothing itself.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from gpuspool.orchestrator.text.notebook import Cell, is_notebook
from gpuspool.orchestrator.text.printable import printable
from gpuspool.orchestrator.text.screen import Drawing, Screen, can_draw

# Seconds between two lines where there is no terminal: a log of a day then has some 3,000 lines.
LINE_S = 30.0

# Seconds between two tables on a terminal: what people notice.
TABLE_S = 1.0

# The same in a notebook, where each one is a message to a browser.
CELL_S = 2.0

# What a table costs to look up is at most this part of the time of the process that shows it.
MOST_OF_A_CORE = 0.02

# Above the table of a terminal so many lines stay free for messages, in a window of 24 lines.
KEPT_LINES = 4

# For so long the end of a run waits for a terminal that takes nothing at the moment.
CLOSE_S = 2.0

# The bar of the finished part, in characters.
BAR_CELLS = 20

# What writing to a stream may raise that nobody reads any more: a closed terminal, a pipe without a
# reader, a full disk, a stream that was closed. rich answers a broken pipe with SystemExit.
UNHEARD = (OSError, ValueError, SystemExit)


class SoFar(msgspec.Struct, frozen=True):
    """How far a run is: how many of all its tasks are complete and have failed.

    tasks_per_s: how many are finished a second now. left_s: until the last is finished. Both are
    None where they are not known. note: follows at the end. took_s: how long it took, once it has
    ended. longest_s: how long the longest task took so far, where that is known.
    """

    total: int
    complete: int
    failed: int
    tasks_per_s: float | None
    left_s: float | None
    note: str
    took_s: float | None = None
    longest_s: float | None = None

    @property
    def percent(self) -> str:
        """The finished part of the tasks, as `percent_of` has it."""
        return f"{percent_of(self.complete + self.failed, self.total)} %"

    @property
    def rate(self) -> str:
        """How many tasks are finished in what time; "" where that is not known."""
        return rate_of(self.tasks_per_s)

    @property
    def left(self) -> str:
        """How long it takes yet; "" where that is not known, and where no task is left."""
        is_over = self.complete + self.failed >= self.total
        return "" if self.left_s is None or is_over else f"{duration(self.left_s)} left"


# Every percentage of a run that people see is this one: of two kinds nobody could tell which is
# meant. What tasks cost counts for the time left alone.
def percent_of(finished: int, total: int) -> int:
    """The finished part of all tasks, 100 only where none is left."""
    return 100 if finished >= total else 100 * finished // total


def rate_of(tasks_per_s: float | None) -> str:
    """ "2.9 tasks/s", or of a minute or an hour where they are few; "" where it is not known."""
    if not tasks_per_s:
        return ""
    for seconds, unit in ((1, "s"), (60, "min"), (3600, "h")):
        tasks = tasks_per_s * seconds
        if tasks >= 1 or unit == "h":
            break
    return f"{tasks:,.1f} tasks/{unit}" if tasks < 100 else f"{tasks:,.0f} tasks/{unit}"


class Progress(Protocol):
    """Tells people how a run gets on.

    every_s: how often, in seconds, it has something new to show. is_shown: whether anybody sees it.
    is_watched: whether somebody sees it now, at a terminal.
    """

    every_s: float
    is_shown: bool
    is_watched: bool

    def is_due(self) -> bool:
        """Whether something new is to be shown now."""

    def update(self, so_far: SoFar) -> None:
        """Show how far the run is."""

    def end(self, so_far: SoFar, took_s: float) -> None:
        """Show how far the run came in the time that it took."""

    def say(self, text: str) -> None:
        """Show a message at once."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Silent:
    """--quiet: shows nothing. Errors still go to stderr, from elsewhere."""

    every_s = LINE_S
    is_shown = False
    is_watched = False

    def is_due(self) -> bool:
        return False

    def update(self, so_far: SoFar) -> None:
        pass

    def end(self, so_far: SoFar, took_s: float) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """Plain lines, where stderr is not a terminal."""

    every_s = LINE_S
    is_shown = True
    is_watched = False

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._last >= LINE_S

    def update(self, so_far: SoFar) -> None:
        self._last = time.monotonic()
        facts = ", ".join(filter(None, (so_far.percent, so_far.rate, so_far.left)))
        text = f"{so_far.complete:,} complete, {so_far.failed:,} failed of {so_far.total:,} tasks "
        self.say(f"{text}({facts}) {so_far.note}".rstrip())

    def end(self, so_far: SoFar, took_s: float) -> None:
        pass

    def say(self, text: str) -> None:
        print(f"gpuspool: {printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Table(Protocol):
    """Knows how a run stands."""

    def look(self, so_far: SoFar) -> Drawing:
        """A drawing of the run as it is now. Raises OSError."""


class Due:
    """Says when a table is due: every so many seconds, and more rarely where it costs much."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last = -math.inf
        self._cost_s = 0.0

    def is_due(self) -> bool:
        # A look that comes a little early shows something all the same, else the next one is late.
        pause_s = max(self._every_s / 2, self._cost_s / MOST_OF_A_CORE)
        return time.monotonic() - self._last >= pause_s

    def take(self, look: Callable[[], Drawing]) -> Drawing | None:
        """What a look returns; None where the file system is in trouble, which others tell of."""
        began = time.thread_time()
        drawing: Drawing | None = None
        with contextlib.suppress(OSError):
            drawing = look()
        self._cost_s = time.thread_time() - began
        self._last = time.monotonic()
        return drawing


class Live:
    """The table of a run at the lower end of a terminal."""

    every_s = TABLE_S
    is_shown = True
    is_watched = True

    def __init__(self, table: Table) -> None:
        self._table = table
        self._screen = Screen(sys.stderr, KEPT_LINES, takes_prints=True)
        self._due = Due(TABLE_S)
        self._lines = Lines()
        self._end: SoFar | None = None

    def is_due(self) -> bool:
        return self._due.is_due() and self._screen.is_ready

    def update(self, so_far: SoFar) -> None:
        if self._screen.is_behind and not self._lines.is_due():
            return
        if self._screen.is_behind:
            self._lines.update(so_far)
            return
        drawing = self._due.take(lambda: self._table.look(so_far))
        if drawing is not None:
            self._screen.show(drawing)

    def end(self, so_far: SoFar, took_s: float) -> None:
        self._end = msgspec.structs.replace(so_far, took_s=took_s)

    def say(self, text: str) -> None:
        self._screen.say(f"gpuspool: {text}")

    def close(self) -> None:
        if self._end is not None:
            self.update(self._end)
            self._end = None
        self._screen.close(CLOSE_S)


class Notebook:
    """The table of a run as the output of a cell, and messages below it."""

    every_s = CELL_S
    is_shown = True
    is_watched = True

    def __init__(self, table: Table) -> None:
        self._table = table
        self._cell = Cell()
        self._due = Due(CELL_S)
        self._end: SoFar | None = None

    def is_due(self) -> bool:
        return self._due.is_due()

    def update(self, so_far: SoFar) -> None:
        drawing = self._due.take(lambda: self._table.look(so_far))
        if drawing is not None:
            self._cell.show(drawing)

    def end(self, so_far: SoFar, took_s: float) -> None:
        self._end = msgspec.structs.replace(so_far, took_s=took_s)

    def say(self, text: str) -> None:
        print(f"gpuspool: {printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._end is not None:
            self.update(self._end)
            self._end = None


def headline(so_far: SoFar, columns: int) -> str:
    """How far a run is, as a bar of its tasks, in at most so many columns.

    What does not fit is left out. How fast it is, and what is left, the table tells below it.
    """
    done = so_far.complete + so_far.failed
    filled = BAR_CELLS if done >= so_far.total else BAR_CELLS * done // so_far.total
    bar = "█" * filled + "░" * (BAR_CELLS - filled)
    failed = f"{so_far.failed:,} failed" if so_far.failed else ""
    ended = ""
    if so_far.took_s is not None:
        ended = f"{so_far.percent}  in {took(so_far.took_s)}"
    line = f"{done:,} of {so_far.total:,}"
    for fact in filter(None, (ended, failed)):
        if len(line) + 2 + len(fact) <= columns:
            line += f"  {fact}"
    if len(line) + 2 + BAR_CELLS <= columns:
        line = f"{bar}  {line}"
    return line[:columns]


class Unheard:
    """Passes on to another progress, and goes on where nobody listens any more."""

    def __init__(self, told: Progress) -> None:
        self._told = told
        self.every_s = told.every_s
        self.is_shown = told.is_shown
        self.is_watched = told.is_watched

    def is_due(self) -> bool:
        return self._told.is_due()

    def update(self, so_far: SoFar) -> None:
        with contextlib.suppress(*UNHEARD):
            self._told.update(so_far)

    def end(self, so_far: SoFar, took_s: float) -> None:
        with contextlib.suppress(*UNHEARD):
            self._told.end(so_far, took_s)

    def say(self, text: str) -> None:
        with contextlib.suppress(*UNHEARD):
            self._told.say(text)

    def close(self) -> None:
        with contextlib.suppress(*UNHEARD):
            self._told.close()


def make_progress(quiet: bool, table: Table) -> Progress:
    """What tells people how a run gets on; it never raises where nobody listens."""
    if quiet or sys.stderr is None:
        return Silent()
    with contextlib.suppress(*UNHEARD):
        if is_notebook():
            return Unheard(Notebook(table))
        if can_draw(sys.stderr):
            return Unheard(Live(table))
        return Unheard(Lines())
    return Silent()


def say(text: str) -> bool:
    """One message on stderr. False: nobody listens there."""
    return write_message(f"gpuspool: {text}\n")


def write_message(text: str) -> bool:
    """Write whole lines to stderr, made safe for a terminal. False: nobody listens there."""
    if sys.stderr is None:
        return False
    try:
        print(printable(text), end="", file=sys.stderr, flush=True)
    except UNHEARD:
        return False
    return True


def warn(text: str) -> None:
    """One warning on stderr, if anybody listens there."""
    say(f"warning: {text}")


def took(seconds: float) -> str:
    """How long something took: "12.3 s", from 100 s on "2:03" as `duration` has it."""
    return f"{seconds:.1f} s" if seconds < 99.95 else duration(seconds)


def duration(seconds: float) -> str:
    """Seconds as "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """Roughly how long something took or has been: "40 s", "5 min", "3 h", "12 days"."""
    for unit_s, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
