"""Who is at work on a run, at a single look, as far as a story has to tell it."""

from __future__ import annotations

from gpuspool.orchestrator.report.parents import Beats, is_parent_live
from gpuspool.orchestrator.text.words import count_of, to_type
from gpuspool.spool.identity import is_here, is_stopped
from gpuspool.spool.layout import epoch_name, rank_of
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.records import CPU, Heartbeat
from gpuspool.spool.states import Ending, Life
from gpuspool.spool.view import View, read_control


class Presence:
    """Who of a run lives. view: has read its manifests. Nothing is read before it is asked for."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._detector = FailureDetector(view)
        self._beats: Beats | None = None
        self._parents: list[int] | None = None
        self._others: list[str] | None = None

    def life(self, attempt: str) -> Life:
        """Whether an open attempt lives. Its intent was read."""
        return self._detector.life(attempt)

    def silence(self, attempt: str) -> str:
        """`it was heard last 62 s ago, and is not proved dead`, of an attempt elsewhere that beat
        long ago, as did its parent; "" of all others.

        By two clocks, so that it is for people alone.
        """
        if self.life(attempt) is not Life.ELSEWHERE:
            return ""
        if self._beats is None:
            self._beats = Beats(self._view)
        if self._beats.is_fresh(attempt):
            return ""
        names = [attempt]
        intent = self._view.intents.get(attempt)
        if intent is not None:
            names.append(epoch_name(intent.epoch))
        ages = [age for age in map(self._beats.age_s, names) if age is not None]
        heard = f"was heard last {min(ages):.0f} s ago" if ages else "was never heard"
        return f"it {heard}, and is not proved dead"

    def standstill(self, attempt: str) -> str:
        """What is told of an attempt here whose process is stopped, "" of all others."""
        identity = self._view.identity(attempt)
        if identity is None or self.life(attempt) is not Life.ALIVE or not is_stopped(identity.pid):
            return ""
        return f"its process is stopped, and `kill -CONT {identity.pid}` wakes it"

    @property
    def parents(self) -> list[int]:
        """The epochs of the parents that are not proved dead."""
        if self._parents is None:
            self._detector.look()
            known = self._detector.parents.known
            self._parents = [
                epoch
                for epoch in sorted(known)
                if self._detector.epoch_life(epoch) is not Life.DEAD
            ]
        return self._parents

    @property
    def live(self) -> list[int]:
        """The epochs of the parents that are proved alive, or were heard of lately."""
        if self._beats is None:
            self._beats = Beats(self._view)
        known = self.parents
        return [epoch for epoch in known if is_parent_live(self._detector, self._beats, epoch)]

    def may_begin(self, epoch: int) -> bool:
        """Whether a parent begins something new: it was not told to drain."""
        return not read_control(self._view.layout).stops(epoch)

    @property
    def is_finished(self) -> bool:
        """Whether the newest parent has said that every task has a verdict."""
        parents = self._detector.parents
        self._detector.look()
        end = parents.ends.get(parents.newest)
        return end is not None and end.how == Ending.FINISHED

    @property
    def workers(self) -> list[str]:
        """The open attempts that are not proved dead. Their intents and heartbeats are read."""
        if self._others is None:
            attempts = self._view.refresh_open()
            self._others = [name for name in attempts if self.life(name) is not Life.DEAD]
        return self._others

    @property
    def is_draining(self) -> bool:
        """Whether all parents that may be there are to finish what is in hand, and no more; or all
        workers, where there is no such parent.
        """
        control = read_control(self._view.layout)
        epochs = self.parents
        if not epochs:
            intents = map(self._view.intents.get, self.workers)
            epochs = [intent.epoch for intent in intents if intent is not None]
        return bool(epochs) and all(map(control.stops, epochs))

    def who_goes_on(self) -> str:
        """Why nothing new is begun, and what to do about that; "" where a parent is at work."""
        resume = f"{to_type('resume', self._view.layout.root)} goes on"
        if self.is_draining:
            if not self.parents:
                return (
                    "what started the run is gone, and its workers drain: nobody ends one that "
                    f"hangs; {resume}"
                )
            return f"the run is being drained, and takes nothing new; {resume}"
        if self.parents:
            return self._who_is_woken()
        if any(self.life(name) is Life.ALIVE for name in self.workers):
            they = count_of(len(self.workers), "worker goes", "workers go")
            return f"what started the run is gone, and {they} on without it; {resume} too"
        if self.workers:
            they = count_of(len(self.workers), "worker")
            return (
                f"what started the run is gone, and whether {they} on another host still "
                f"{'live' if len(self.workers) > 1 else 'lives'} is not known; {resume} in any case"
            )
        return f"nobody is at work; {resume}"

    def _who_is_woken(self) -> str:
        """What is told where all parents that may be at work are stopped on this host, else ""."""
        known = [self._detector.parents.known.get(epoch) for epoch in self.parents]
        pids = [one.pid for one in known if one is not None and is_here(one)]
        if len(pids) < len(known) or not all(map(is_stopped, pids)):
            return ""
        wake = f"`kill -CONT {' '.join(map(str, pids))}`"
        return (
            f"what started the run is stopped, as by Ctrl-Z; `fg` in its shell or {wake} wakes it"
        )


def has_finished(view: View, attempt: str, beat: Heartbeat) -> bool:
    """Whether the call that a heartbeat names is over by the journal of its attempt.

    view: has followed that journal, which is newer than the heartbeat.
    """
    if beat.task is None or not 0 <= beat.task < view.ledger.tasks:
        return False
    call = view.started.get(attempt)
    is_in_hand = call is not None and beat.task in call.tasks
    return not is_in_hand and view.ledger.verdict(beat.task) is not None


def where(view: View, attempt: str) -> str:
    """A rank and its place, as people are told: `rank 1 (cpu on vm)`."""
    rank = f"rank {rank_of(attempt)}"
    intent = view.intents.get(attempt)
    if intent is None:
        return rank
    return f"{rank} ({place(intent.device)} on {intent.parent.host}{_job(intent.job_id)})"


def place(device: str) -> str:
    """A device, as people are told."""
    return CPU if device in ("", CPU) else f"device {device}"


def _job(job_id: str) -> str:
    return f", job {job_id}" if job_id else ""
