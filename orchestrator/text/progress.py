"""What a person sees on stderr while a run goes on: a bar on a terminal, else a line every 30 s.

Rate and time left are weighted by the cost of the tasks, so that a few huge inputs at the front do
not mislead anybody. Nothing in here ever raises because nobody listens: a run whose terminal was
closed goes on. The orchestrator calls `update` after each look, and shows nothing itself.
"""

from __future__ import annotations

import contextlib
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

    cost: the sum of the costs of all tasks. cost_done: of the complete ones.
    """

    total: int
    complete: int
    failed: int
    cost: float
    cost_done: float


class Progress(Protocol):
    """Tells people how a run gets on.

    every_s: how often, in seconds, it has something new to show.
    """

    every_s: float

    def update(self, so_far: SoFar, note: str) -> None:
        """Show how far the run is; the note follows at the end."""

    def say(self, text: str) -> None:
        """Show a message at once."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Silent:
    """--quiet: shows nothing. Errors still go to stderr, from elsewhere."""

    every_s = LINE_S

    def update(self, so_far: SoFar, note: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """Plain lines, where stderr is not a terminal."""

    every_s = LINE_S

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = self._began
        # What was finished before this start, which says nothing about the rate of this one.
        self._first: tuple[int, float] | None = None

    def update(self, so_far: SoFar, note: str) -> None:
        now = time.monotonic()
        done = so_far.complete + so_far.failed
        if self._first is None:
            self._first = (done, so_far.cost_done)
        if now - self._last < LINE_S:
            return
        self._last = now
        seconds = now - self._began
        done_before, cost_before = self._first
        cost = so_far.cost_done - cost_before
        tasks_per_s = (done - done_before) / seconds
        rate = f"{tasks_per_s:.1f} tasks/s"
        if cost > 0:
            left_s = (so_far.cost - so_far.cost_done) / cost * seconds
            rate += f", {duration(left_s)} left"
        text = f"{so_far.complete} complete, {so_far.failed} failed of {so_far.total} "
        text += f"({rate}) {note}"
        self.say(text.rstrip())

    def say(self, text: str) -> None:
        print(f"gpuspool: {printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A bar on a terminal. The only class that imports rich."""

    every_s = BAR_S

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar: Any = progress.Progress(
            progress.TextColumn("{task.fields[done]} of {task.fields[total_tasks]}"),
            progress.BarColumn(),
            progress.TextColumn(
                "{task.percentage:3.0f} %  {task.fields[failed]} failed  {task.fields[rate]}"
            ),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            progress.TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=False,
        )
        fields: Any = {"done": 0, "total_tasks": 0, "failed": 0, "rate": "", "note": ""}
        self._task = self._bar.add_task("", total=1.0, **fields)
        # When the first update came, and what was finished then.
        self._first: tuple[float, int] | None = None
        self._bar.start()

    def update(self, so_far: SoFar, note: str) -> None:
        now = time.monotonic()
        done = so_far.complete + so_far.failed
        if self._first is None:
            self._first = (now, done)
        began, before = self._first
        rate = ""
        if now > began + 1:
            tasks_per_s = (done - before) / (now - began)
            rate = f"{tasks_per_s:.1f}/s"
        self._bar.update(
            self._task,
            completed=so_far.cost_done,
            # A run without any cost is complete at once; rich divides by the total.
            total=max(so_far.cost, 1e-9),
            done=done,
            total_tasks=so_far.total,
            failed=so_far.failed,
            rate=rate,
            note=note,
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

    def update(self, so_far: SoFar, note: str) -> None:
        with contextlib.suppress(*UNHEARD):
            self._told.update(so_far, note)

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


def duration(seconds: float) -> str:
    """Seconds as "1:02:03" or "2:03"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"
