"""What a parent tells people: its story in events/, and its progress on stderr.

Nothing here is ever read to decide anything, and telling never raises: a full disk or a closed
terminal must not end a run. The loop and the modules that act for it tell what they did; `Progress`
shows it. What is shown of a view is partly read from the spool then, and that raises OSError, as
any look does.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable

import msgspec

from gpuspool.orchestrator.supervise.firsts import Firsts
from gpuspool.orchestrator.supervise.waits import Waits
from gpuspool.orchestrator.text.forecast import Forecast, Work
from gpuspool.orchestrator.text.printable import one_line, recordable
from gpuspool.orchestrator.text.progress import Progress, SoFar
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import open_to_append, write_all
from gpuspool.spool.states import Reason
from gpuspool.spool.view import View


class Telling:
    """The story of one epoch."""

    def __init__(
        self, layout: Layout, epoch: int, progress: Progress, check_spool: Callable[[], None]
    ) -> None:
        """check_spool: raises where the spool is not the folder that it was. Then nothing is
        recorded: the story of this run must not stand in another one's.
        """
        self._check_spool = check_spool
        self._path = layout.events(epoch)
        self._epoch = epoch
        self._progress = progress
        # How many tasks the run had when progress was weighed, and what they cost together.
        self._n_weighed = -1
        self._cost = 0.0
        self._forecast: Forecast | None = None
        # How many attempts were closed when that was told last.
        self._n_closed = 0
        self._firsts = Firsts()
        self._waits = Waits()

    @property
    def every_s(self) -> float:
        """How often the display has something new to show, in seconds."""
        return self._progress.every_s

    def record(self, event: str, **fields: object) -> None:
        """Append one line to this epoch's file in events/ with a single write(2)."""
        # Texts may name paths that are not UTF-8.
        told = {name: _recordable(value) for name, value in fields.items()}
        story = {"at": time.time(), "event": event, "epoch": self._epoch, **told}
        line = msgspec.json.encode(story) + b"\n"
        with contextlib.suppress(OSError):
            self._check_spool()
            fd = open_to_append(self._path)
            try:
                write_all(fd, line)
            finally:
                os.close(fd)

    def tell(self, event: str, text: str, **fields: object) -> None:
        """Record an event, and print its text, in which a newline could forge a line of ours."""
        self.record(event, text=text, **fields)
        self._progress.say(one_line(text))

    def follow(self, view: View) -> None:
        """From now on hear of what is read of a view: how fast the run is, and what fails.

        Raises OSError.
        """
        view.listener = self
        if not self._progress.is_shown:
            return
        # What tasks cost is read once it is asked for. Many a run is over before.
        finished = Work(0, 0.0)
        if view.ledger.n_finished:
            self._weigh(view)
            finished = _finished(view)
        self._forecast = Forecast(finished)
        self._n_closed = len(view.closed)

    def take(self, attempt: str, at: int, task: int, start: float, seconds: float) -> int:
        """As `Listener.take`."""
        if self._forecast is None:
            return sys.maxsize
        return self._forecast.take(attempt, at, task, start, seconds)

    def put_off(self, attempt: str, tasks: int, start: float, seconds: float) -> None:
        """As `Listener.put_off`."""
        if self._forecast is not None:
            self._forecast.put_off(attempt, tasks, start, seconds)

    def rest(self, attempt: str) -> None:
        """As `Listener.rest`."""
        if self._forecast is not None:
            self._forecast.rest(attempt)

    def failed(self, attempt: str, at: int, error: msgspec.Raw) -> None:
        """As `Listener.failed`."""
        self._firsts.failed(attempt, at, error)

    def split(self, attempt: str, at: int) -> None:
        """As `Listener.split`."""
        self._firsts.split(attempt, at)

    def show(self, view: View) -> None:
        """Tell what a look found for the first time, and how far the run is, if that is due.

        Raises OSError.
        """
        now = time.monotonic()
        for text in self._firsts.news(view):
            self.tell("first", text)
        for text in self._waits.news(view, self._epoch, now):
            self.tell("slow_to_begin", text)
        if self._forecast is not None:
            for closing in itertools.islice(view.closed.values(), self._n_closed, None):
                is_recycled = closing.reason is Reason.RECYCLED
                self._forecast.end(closing.attempt, closing.at, is_recycled)
            self._n_closed = len(view.closed)
            self._forecast.note(view.open_attempts, now)
        if self._progress.is_due():
            self._progress.update(self._so_far(view))

    def show_end(self, view: View, seconds: float) -> None:
        """Show how far the run came in so many seconds. Raises OSError."""
        if self._progress.is_shown:
            self._progress.end(self._so_far(view), seconds)

    def _so_far(self, view: View) -> SoFar:
        """How far the run is, and how it gets on."""
        ledger = view.ledger
        self._weigh(view)
        tasks_per_s: float | None = None
        left_s: float | None = None
        longest_s: float | None = None
        if self._forecast is not None:
            outlook = self._forecast.outlook(
                Work(ledger.tasks, self._cost),
                _finished(view),
                view.open_attempts,
                ledger.cost_of,
                lambda attempt, most: [line.cost for line in view.at_hand(attempt, most)],
                time.monotonic(),
            )
            tasks_per_s, left_s = outlook.tasks_per_s, outlook.left_s
            longest_s = outlook.longest_s
        return SoFar(
            total=ledger.tasks,
            complete=ledger.n_complete,
            failed=ledger.n_failed,
            tasks_per_s=tasks_per_s,
            left_s=left_s,
            note=count_of(len(view.open_attempts), "rank"),
            longest_s=longest_s,
        )

    def _weigh(self, view: View) -> None:
        """Learn what tasks cost, where that is not known yet."""
        if view.ledger.tasks != self._n_weighed:
            self._cost = weigh_progress(view)
            self._n_weighed = view.ledger.tasks


def _finished(view: View) -> Work:
    """The tasks that have a verdict."""
    return Work(view.ledger.n_finished, view.ledger.cost_finished)


def _recordable(value: object) -> object:
    if isinstance(value, str):
        return recordable(value)
    return value


def weigh_progress(view: View) -> float:
    """Tell the ledger what tasks cost, where costs differ; returns what they cost together.

    Reads every manifest's lines once. Where all tasks cost the same, which run.json tells, nothing
    is read, and each counts 1.
    """
    n_tasks, cost = view.ledger.tasks, view.cost
    if cost in (0, n_tasks):
        return float(n_tasks)
    costs = array.array("d", bytes(8 * n_tasks))
    for manifest in view.manifests.values():
        for task in manifest.tasks():
            if 0 <= task.task < n_tasks:
                costs[task.task] = task.cost
    view.ledger.weigh(costs)
    return sum(costs)
