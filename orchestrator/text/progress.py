"""What a person sees on stderr while a run goes on: a bar on a terminal, else a line every 30 s.

What is shown is reckoned elsewhere. Nothing in here ever raises because nobody listens: a run whose
terminal was closed goes on. The orchestrator asks after each look whether something `is_due`, calls
`update` then, and shows nothing itself.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from typing import Any, Protocol

import msgspec

from gpuspool.orchestrator.text.printable import printable

# Seconds between two lines where there is no terminal: a log of a day then has some 3,000 lines.
LINE_S = 30.0

# Seconds between two changes of the bar that people notice.
BAR_S = 1.0

# What writing to a stream may raise that nobody reads any more: a closed terminal, a pipe without a
# reader, a full disk, a stream that was closed. rich answers a broken pipe with SystemExit.
UNHEARD = (OSError, ValueError, SystemExit)


class SoFar(msgspec.Struct, frozen=True):
    """How far a run is: how many of all its tasks are complete and have failed.

    share: of the work, 0 to 1, that is finished. tasks_per_s: how many are finished a second now.
    left_s: until the last is finished. Both are None where they are not known. note: follows at the
    end.
    """

    total: int
    complete: int
    failed: int
    share: float
    tasks_per_s: float | None
    left_s: float | None
    note: str

    @property
    def percent(self) -> str:
        """The finished part of the work, 100 only where no task is left."""
        if self.complete + self.failed < self.total:
            return f"{min(int(100 * self.share), 99)} %"
        return "100 %"

    @property
    def rate(self) -> str:
        """How many tasks are finished in what time; "" where that is not known."""
        return rate_of(self.tasks_per_s)

    @property
    def left(self) -> str:
        """How long it takes yet; "" where that is not known."""
        return "" if self.left_s is None else f"{duration(self.left_s)} left"


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


class Bar:
    """A bar on a terminal. The only class that imports rich."""

    every_s = BAR_S
    is_shown = True
    is_watched = True

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar: Any = progress.Progress(
            progress.TextColumn("{task.fields[done]:,} of {task.fields[total_tasks]:,}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[facts]}"),
            console=Console(stderr=True),
            transient=False,
        )
        fields: Any = {"done": 0, "total_tasks": 0, "facts": ""}
        # It is shown once there is something to show.
        self._task = self._bar.add_task("", total=1.0, visible=False, **fields)
        self._last = -math.inf
        self._bar.start()

    def is_due(self) -> bool:
        # A look that comes a little early shows something all the same, else the next one is late.
        return time.monotonic() - self._last >= BAR_S / 2

    def update(self, so_far: SoFar) -> None:
        self._last = time.monotonic()
        self._show(so_far, so_far.rate, so_far.left, so_far.note)

    def end(self, so_far: SoFar, took_s: float) -> None:
        self._show(so_far, f"in {took(took_s)}")

    def _show(self, so_far: SoFar, *facts: str) -> None:
        failed = f"{so_far.failed:,} failed" if so_far.failed else ""
        self._bar.update(
            self._task,
            visible=True,
            completed=so_far.share,
            done=so_far.complete + so_far.failed,
            total_tasks=so_far.total,
            facts="  ".join(filter(None, (so_far.percent, failed, *facts))),
        )

    def say(self, text: str) -> None:
        self._bar.console.print(f"gpuspool: {printable(text)}", markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


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


def make_progress(quiet: bool) -> Progress:
    """What tells people how a run gets on; it never raises."""
    if quiet or sys.stderr is None:
        return Silent()
    with contextlib.suppress(*UNHEARD):
        if sys.stderr.isatty():
            return Unheard(Bar())
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
