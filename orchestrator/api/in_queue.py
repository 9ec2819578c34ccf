"""Whether a run of which nothing lives waits in Slurm's queue.

Elements that are pending leave no trace in a spool. So a run that was just submitted, or all of
whose elements are between two starts, looks like one that has stopped. Where it was given to Slurm,
squeue is asked; and where squeue does not answer, the run is taken for what it looks like.

squeue is asked rarely, since the controller has one answer for all users of a cluster. That an
element has started is seen in the spool, within two seconds; only that one has left the queue
without having worked is learned from squeue.

Called by `reading` and `watching`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.orchestrator.report.queued import queue_words, stuck_words, with_queue
from gpuspool.orchestrator.slurm.commands import ASK_S
from gpuspool.orchestrator.slurm.elements import Queued, counted, elements_of
from gpuspool.orchestrator.slurm.script import job_name
from gpuspool.spool.layout import Layout, parse_slurm_script
from gpuspool.spool.publish import listdir
from gpuspool.spool.states import RunState
from gpuspool.spool.view import View

# Between two questions lie so many seconds. An element that ends is in the queue for a second or
# two after its last sign of life, so the first question is soon asked again; each pause is twice as
# long as the one before, and the longest is what sites ask of those who ask without end.
SHORTEST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 30.0

# A question is given at least so many seconds, however little time is left to the one who waits.
LEAST_ASK_S = 0.2

# Once squeue has told of elements, it may fail for so many seconds before it is believed no more:
# the queue outlives a controller that crashes or is upgraded, and that takes minutes.
UNANSWERED_S = 1800.0

# An element is ending until its node is clean. It may be pending after that. One whose node does
# not answer may stay so for hours and is not waited for longer than so many seconds.
ENDING_S = 300.0


def unheard(text: str) -> None:
    """What nobody is told."""


def is_submitted(layout: Layout) -> bool:
    """Whether a run was ever given to Slurm by `gpuspool submit`."""
    return any(map(parse_slurm_script, listdir(layout.slurm)))


def pause_after(n_asked: int) -> float:
    """How long squeue is not asked again once it was asked so often, in seconds."""
    # After ten doublings it is the longest anyway, and a number of many more bits is no float.
    doublings = min(n_asked - 1, 10)
    return min(SHORTEST_PAUSE_S * (1 << doublings), LONGEST_PAUSE_S)


class SlurmQueue:
    """What Slurm has of one run, for those who look at it again and again."""

    def __init__(
        self, view: View, named: Path | None = None, tell: Callable[[str], object] = unheard
    ) -> None:
        """named: the spool as the user named it. tell: is called with what people should know of a
        run that is waited for.
        """
        self._spool = os.fspath(named or view.layout.root)
        self._layout = view.layout
        self._name = job_name(view.run.id)
        self._tell = tell
        self._told: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        """The run lives, or is finished: what was heard before is of no use."""
        self._heard: Queued | None = None
        self._heard_at = -math.inf
        self._only_ending_since: float | None = None
        self._n_asked = 0
        self._due_at = -math.inf

    def with_look(self, now: dict[str, Any], left_s: float = math.inf) -> dict[str, Any]:
        """A status with its field `queued`. Asks squeue if only that can tell, and if it is time.

        left_s: for how many seconds an answer is of use.
        """
        if now["state"] != RunState.STOPPED:
            self._forget()
        elif self._is_due(left_s) and is_submitted(self._layout):
            self._ask(left_s)
        return self.with_last_look(now)

    def with_last_look(self, now: dict[str, Any]) -> dict[str, Any]:
        """A status with the field `queued` that the last look found, without another look."""
        queued = None
        if self._heard is not None and now["state"] == RunState.STOPPED:
            queued = msgspec.to_builtins(self._heard)
        return with_queue(now, queued, self._spool)

    def _is_due(self, left_s: float) -> bool:
        # Towards the end of a wait a question is given less time than it may need. That it was not
        # answered then would say nothing, so what was heard last has to do.
        if left_s < ASK_S and self._heard is not None:
            return False
        return time.monotonic() >= self._due_at

    def _ask(self, left_s: float) -> None:
        elements = elements_of(self._name, min(ASK_S, max(left_s, LEAST_ASK_S)))
        clock = time.monotonic()
        self._n_asked += 1
        self._due_at = clock + pause_after(self._n_asked)
        if isinstance(elements, str):
            self._miss(elements, clock)
        else:
            self._hear(counted(elements), clock)

    def _miss(self, trouble: str, clock: float) -> None:
        """squeue gave no answer."""
        heard = self._heard
        if heard is None or not heard.alive or clock - self._heard_at > UNANSWERED_S:
            self._heard = None
            return
        self._tell_once(
            "unanswered",
            f"what Slurm has of it now is not known ({trouble}); {queue_words(_plain(heard))} when "
            f"squeue answered last, so this waits on, for {UNANSWERED_S / 60:.0f} minutes",
        )

    def _hear(self, queued: Queued, clock: float) -> None:
        """squeue gave an answer."""
        if queued.alive or not queued.ending:
            self._only_ending_since = None
        elif self._only_ending_since is None:
            self._only_ending_since = clock
        elif clock - self._only_ending_since > ENDING_S:
            queued = msgspec.structs.replace(queued, ending=0)
        self._heard = queued
        self._heard_at = clock
        self._told.discard("unanswered")
        self._tell_of(queued)

    def _tell_of(self, queued: Queued) -> None:
        """Tell what is waited for, once, and each reason for which Slurm starts nothing, once."""
        # Right after a submission Slurm has no reasons yet, and where nodes are idle it starts all
        # within a second: then there is nothing to tell.
        if queued.alive and (queued.reasons or self._n_asked > 1):
            text = f"nothing of it is at work now; Slurm has {queue_words(_plain(queued))}"
            self._tell_once("queue", f"{text}: waits for that")
        new = [reason for reason in queued.stuck if reason not in self._told]
        if new:
            text = stuck_words(_plain(msgspec.structs.replace(queued, stuck=new)))
            self._told.update(new)
            self._tell(f"{text} (`squeue --me -n {self._name}`); waits on")

    def _tell_once(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._tell(text)


def _plain(queued: Queued) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(queued)
    return plain
