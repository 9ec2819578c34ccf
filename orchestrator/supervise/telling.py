"""What an orchestrator tells people: its story in events.jsonl, and its progress on stderr.

Nothing here is ever read to decide anything, and nothing here raises: a full disk or a closed
terminal must not end a run. The loop and the modules that act for it tell what they did; `Progress`
shows it.
"""

from __future__ import annotations

import array
import contextlib
import os
import time
from collections.abc import Callable

import msgspec

from gpuspool.orchestrator.text.printable import one_line, recordable
from gpuspool.orchestrator.text.progress import Progress, SoFar
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import open_to_append, write_all
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
        self._path = layout.events
        self._epoch = epoch
        self._progress = progress
        # How many tasks the run had when progress was weighed.
        self._n_weighed = -1

    @property
    def every_s(self) -> float:
        """How often the display has something new to show, in seconds."""
        return self._progress.every_s

    def record(self, event: str, **fields: object) -> None:
        """Append one line to events.jsonl with a single write(2)."""
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

    def show(self, view: View) -> None:
        """Show how far the run is."""
        ledger = view.ledger
        if ledger.tasks != self._n_weighed:
            weigh_progress(view)
            self._n_weighed = ledger.tasks
        note = f"{len(view.open_attempts)} ranks"
        so_far = SoFar(
            total=ledger.tasks,
            complete=ledger.n_complete,
            failed=ledger.n_failed,
            cost=view.cost or ledger.tasks,
            cost_done=ledger.cost_complete,
        )
        self._progress.update(so_far, note)


def _recordable(value: object) -> object:
    if isinstance(value, str):
        return recordable(value)
    return value


def weigh_progress(view: View) -> None:
    """Weigh progress by what tasks cost, where costs differ.

    Reads every manifest's lines once. Where all tasks cost the same, which run.json tells, nothing
    is read.
    """
    n_tasks, cost = view.ledger.tasks, view.cost
    if cost in (0, n_tasks):
        return
    costs = array.array("d", bytes(8 * n_tasks))
    for manifest in view.manifests.values():
        for task in manifest.tasks():
            if 0 <= task.task < n_tasks:
                costs[task.task] = task.cost
    view.ledger.weigh(costs)
