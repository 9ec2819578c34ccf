"""What a person sees while a run goes on: a bar on a terminal, a plain line every 30 s elsewhere.
On stderr.

Rate and time left are weighted by cost, so that a few huge inputs at the front do not fool anybody.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, Protocol

from gpuspool.orchestrator.text.printable import printable

LINE_S = 30.0
UNHEARD = (OSError, ValueError, SystemExit)


def duration(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress(Protocol):
    every_s: float  # how often it has something new to show

    def update(self, complete: int, failed: int, cost_done: float, note: str) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class Silent:
    """--quiet: errors still go to stderr."""

    every_s = LINE_S

    def update(self, complete: int, failed: int, cost_done: float, note: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """Where there is no terminal."""

    every_s = LINE_S

    def __init__(self, total: int, cost: float) -> None:
        self._total, self._cost = total, cost
        self._began = self._last = time.monotonic()
        self._first: tuple[int, float] | None = None

    def update(self, complete: int, failed: int, cost_done: float, note: str) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (complete + failed, cost_done)
        if now - self._last < LINE_S:
            return
        self._last = now
        done, cost = complete + failed - self._first[0], cost_done - self._first[1]
        seconds = now - self._began
        left = f", {duration((self._cost - cost_done) / cost * seconds)} left" if cost > 0 else ""
        rate = f"{done / seconds:.1f} tasks/s"
        self.say(
            f"{complete} complete, {failed} failed of {self._total} ({rate}{left}) {note}".rstrip()
        )

    def say(self, text: str) -> None:
        print(f"gpuspool: {printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """On a terminal. The only class that imports rich."""

    every_s = 1.0

    def __init__(self, total: int, cost: float) -> None:
        from rich import progress as r
        from rich.console import Console

        self._total = total
        self._bar: Any = r.Progress(
            r.TextColumn("{task.fields[done]} of {task.fields[total_tasks]}"),
            r.BarColumn(),
            r.TextColumn(
                "{task.percentage:3.0f} %  {task.fields[failed]} failed  {task.fields[rate]}"
            ),
            r.TimeRemainingColumn(elapsed_when_finished=True),
            r.TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=False,
        )
        fields: Any = {"done": 0, "total_tasks": total, "failed": 0, "rate": "", "note": ""}
        self._task = self._bar.add_task("", total=max(cost, 1e-9), **fields)
        self._first: tuple[float, int] | None = None
        self._bar.start()

    def update(self, complete: int, failed: int, cost_done: float, note: str) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, complete + failed)
        began, before = self._first
        rate = f"{(complete + failed - before) / (now - began):.1f}/s" if now > began + 1 else ""
        done = complete + failed
        self._bar.update(
            self._task, completed=cost_done, done=done, failed=failed, rate=rate, note=note
        )

    def say(self, text: str) -> None:
        self._bar.console.print(f"gpuspool: {printable(text)}", markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


class Deaf:
    """Goes on where nobody listens any more: a terminal that closed, a pipe without a reader, a
    full disk.

    rich answers a broken pipe with SystemExit.
    """

    def __init__(self, told: Progress) -> None:
        self._told, self.every_s = told, told.every_s

    def update(self, complete: int, failed: int, cost_done: float, note: str) -> None:
        with contextlib.suppress(*UNHEARD):
            self._told.update(complete, failed, cost_done, note)

    def say(self, text: str) -> None:
        with contextlib.suppress(*UNHEARD):
            self._told.say(text)

    def close(self) -> None:
        with contextlib.suppress(*UNHEARD):
            self._told.close()


def make_progress(total: int, cost: float, quiet: bool) -> Progress:
    """What tells of a run; it never raises."""
    if quiet or sys.stderr is None:
        return Silent()
    with contextlib.suppress(*UNHEARD):
        return Deaf(Bar(total, cost) if sys.stderr.isatty() else Lines(total, cost))
    return Silent()


def warn(text: str) -> None:
    """One line on stderr, where that can be."""
    if sys.stderr is not None:
        Deaf(Lines(0, 0)).say(f"warning: {text}")
