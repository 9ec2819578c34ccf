"""How the parents of a run stand: who is at work, who has ended and how, who has fallen silent.

What is proved is told as such: a process of this host, an end that was written down, a beat that
this very process has seen to stand still for a lease. Of a parent elsewhere a single look proves
nothing, so people are told how old its last beat is, by the clocks of the file system and of this
host: fresh, it is `live`; else it is `silent`. That age is shown, and decides nothing.
"""

from __future__ import annotations

import time
from typing import Any

from gpuspool.spool.beats import beaten_at, read_beats
from gpuspool.spool.identity import is_here, is_stopped
from gpuspool.spool.layout import epoch_name
from gpuspool.spool.liveness import ATTEMPT_BEATS, BEATS, PARENT_BEATS, FailureDetector
from gpuspool.spool.parents import LOST
from gpuspool.spool.records import Parent
from gpuspool.spool.states import Life
from gpuspool.spool.view import Control, View

# While its parent is silent an attempt is heard of as long as its own beat is no older than so many
# of its beats. One that lives beats every 30 s by the usual lease, so a crashed host's workers are
# not said to run for longer than its parent is said to live.
OWN_BEATS = 1.25

LIVE = "live"
SILENT = "silent"
DEAD = "dead"


class Beats:
    """How old the beats of a spool are, as one listing shows them."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._numbers = read_beats(view.layout)

    def age_s(self, name: str) -> float | None:
        """The seconds since somebody beat last, by two clocks; None where there is no beat."""
        number = self._numbers.get(name)
        if number is None:
            return None
        at = beaten_at(self._view.layout, name, number)
        return None if at is None else max(0.0, time.time() - at)

    def is_fresh(self, attempt: str) -> bool:
        """Whether an attempt, or its parent, beat lately."""
        intent = self._view.intents.get(attempt)
        lease_s = self._view.options_of(attempt).lease_s
        own_s = self.age_s(attempt)
        parent_s = None if intent is None else self.age_s(epoch_name(intent.epoch))
        if parent_s is not None and parent_s <= BEATS * lease_s / PARENT_BEATS:
            return True
        # Without a parent nobody else vouches for it, so several of its beats may be late.
        beats = BEATS if parent_s is None else OWN_BEATS
        return own_s is not None and own_s <= beats * lease_s / ATTEMPT_BEATS


def parent_rows(detector: FailureDetector, beats: Beats, control: Control) -> list[dict[str, Any]]:
    """One row for each parent, the oldest first. control: what orders there are. Raises OSError."""
    detector.look()
    known = detector.parents.known
    rows = [_row(epoch, known[epoch], detector, beats) for epoch in sorted(known)]
    for row in rows:
        row["is_draining"] = is_at_work(row) and control.stops(row["epoch"])
    return rows


def _row(
    epoch: int, parent: Parent | None, detector: FailureDetector, beats: Beats
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "epoch": epoch,
        "state": DEAD,
        "silent_s": None,
        "is_stopped": False,
        "host": None,
        "pid": None,
        "job": None,
        "command": None,
        "slots": [],
        "since": None,
        "exit_code": None,
        "ended_at": None,
        "message": None,
    }
    if parent is not None:
        row["host"] = parent.host
        row["pid"] = parent.pid
        row["command"] = parent.command
        row["slots"] = [slot.device or "cpu" for slot in parent.slots]
        row["since"] = parent.at
        if parent.scheduler is not None:
            row["job"] = parent.scheduler.job
    if epoch in detector.parents.ends:
        end = detector.parents.ends[epoch]
        row["state"] = "ended" if end is None else end.how
        if end is not None:
            row["exit_code"] = end.exit_code
            row["message"] = end.message or None
            # One that was lost did not say so itself, and nobody knows when it was.
            row["ended_at"] = None if end.how == LOST else end.at
        return row
    if is_parent_live(detector, beats, epoch):
        row["state"] = LIVE
        row["is_stopped"] = parent is not None and is_here(parent) and is_stopped(parent.pid)
    elif detector.epoch_life(epoch) is not Life.DEAD:
        row["state"] = SILENT
        age_s = beats.age_s(epoch_name(epoch))
        row["silent_s"] = None if age_s is None else round(age_s, 1)
    return row


def is_parent_live(detector: FailureDetector, beats: Beats, epoch: int) -> bool:
    """Whether a parent that has not ended is proved alive, or beat lately on another host."""
    match detector.epoch_life(epoch):
        case Life.ALIVE:
            return True
        case Life.ELSEWHERE:
            parent = detector.parents.known.get(epoch)
            lease_s = detector.lease_of_run_s if parent is None else parent.lease_s
            age_s = beats.age_s(epoch_name(epoch))
            return age_s is not None and age_s <= BEATS * lease_s / PARENT_BEATS
        case Life.DEAD:
            return False


def is_at_work(row: dict[str, Any]) -> bool:
    """Whether the parent of a row may be at work: it is neither dead nor has it ended."""
    return row["state"] in (LIVE, SILENT)
