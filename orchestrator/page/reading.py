"""What is read of a run once, for its page, its trace and its list of jobs alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpuspool.orchestrator.page.axis import Axis
from gpuspool.orchestrator.page.calls import read_calls
from gpuspool.orchestrator.page.lives import Attempt, Standing, read_attempts
from gpuspool.orchestrator.page.verdicts import mark_verdicts
from gpuspool.orchestrator.report.parents import Beats
from gpuspool.orchestrator.report.status import status
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.states import Life
from gpuspool.spool.view import View


@dataclass
class Reading:
    """What was read of a run.

    now: `status` as of `made_at`. named: the spool, as its user named it.
    """

    view: View
    now: dict[str, Any]
    attempts: list[Attempt]
    axis: Axis
    named: str
    made_at: float

    @property
    def n_calls(self) -> int:
        return sum(len(attempt.calls) for attempt in self.attempts)

    def tasks_called(self) -> set[int]:
        """The tasks that have a call."""
        found: set[int] = set()
        for attempt in self.attempts:
            found.update(attempt.calls.tasks)
        return found


def read_run(view: View, named: str) -> Reading:
    """Read all calls of a view that was just refreshed. Raises OSError."""
    detector = FailureDetector(view)
    standings = _standings(view, detector)
    now = status(view, detector, names_tasks=False, named=named)
    made_at = time.time()
    attempts = read_attempts(view, read_calls(view), standings, made_at)
    mark_verdicts([attempt.calls for attempt in attempts], view.ledger)
    axis = Axis((attempt.began, attempt.ended) for attempt in attempts)
    return Reading(view, now, attempts, axis, named, made_at)


# An attempt may have closed itself since the view was refreshed. Its process is gone then, and it
# would count as lost in a run in which all went well. So where one is dead and open, the view is
# refreshed once more: whatever a process wrote, it wrote before it died.
def _standings(view: View, detector: FailureDetector) -> Mapping[str, Standing]:
    """How the open attempts stand, of a view that may be refreshed for it."""
    lives = {attempt: detector.life(attempt) for attempt in view.open_attempts}
    if Life.DEAD in lives.values():
        view.refresh()
    beats = Beats(view)
    found: dict[str, Standing] = {}
    for attempt in view.open_attempts:
        match lives.get(attempt) or detector.life(attempt):
            case Life.ALIVE:
                found[attempt] = Standing.RUNNING
            case Life.DEAD:
                found[attempt] = Standing.LOST
            case Life.ELSEWHERE:
                is_fresh = beats.is_fresh(attempt)
                found[attempt] = Standing.RUNNING if is_fresh else Standing.SILENT
    return found
