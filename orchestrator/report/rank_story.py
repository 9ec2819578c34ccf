"""What happened to one rank: its attempts one after the other, what it is at, and what comes next.

Of all journals only those of the rank are read, and of all intents too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from gpuspool.orchestrator.report.endings import ending, frames_of
from gpuspool.orchestrator.report.keys import inputs_of
from gpuspool.orchestrator.report.presence import Presence, has_finished, place
from gpuspool.orchestrator.report.ranks import (
    HELD_UP,
    RESTARTING,
    faults_of,
    is_given_up,
    may_be_followed,
)
from gpuspool.orchestrator.report.story import Step, Story, clock, in_order
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.claims import claim_of
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import parse_attempt, parse_planned, rank_name, rank_of
from gpuspool.spool.publish import is_regular, listdir, read_sealed
from gpuspool.spool.records import Closing, Heartbeat, Intent, Parent
from gpuspool.spool.states import AttemptState, Life, Phase, Reason
from gpuspool.spool.view import View

# So many numbers of ranks are named where one is asked for that there is not.
MOST_RANKS = 20

NOT_STARTED = "not started"
LOST = "lost"

# What an attempt is at, by its heartbeat.
_PHASES = {
    Phase.LOADING: "it loads its job",
    Phase.MAKING: "it has imported its job, and makes it",
    Phase.WAITING: "it waits for another process to warm its host up",
    Phase.IDLE: "it has nothing to do, and waits for what others have in hand",
    Phase.CLOSING: "it has done its last task, and closes its job",
}


def rank_story(view: View, rank: int, attempt: str | None = None) -> Story:
    """The story of a rank, or of one attempt of it. view: has read its manifests.

    Raises UsageError for a rank or an attempt that the run does not have, OSError.
    """
    names = every = _attempts_of(view, rank)
    if not names and rank_name(rank) not in view.manifests:
        raise UsageError(_unknown_rank(view, rank))
    if attempt is not None:
        if attempt not in names:
            known = ", ".join(names) or "none has been started"
            raise UsageError(f"{view.layout.root} has no {attempt}; of rank {rank}: {known}.")
        names = [attempt]
    view.read_intents(every)
    view.follow(every)
    teller = _Teller(view, rank, names, every)
    state = teller.state()
    now, then = teller.standing(state)
    return Story(
        name=attempt or f"rank {rank}",
        state=state,
        facts={"rank": rank, "attempts": [teller.facts(name) for name in names]},
        steps=in_order(teller.steps()),
        now=now,
        next=then,
    )


def _attempts_of(view: View, rank: int) -> list[str]:
    """Those of a rank that left an intent or a closing, in order."""
    names = {name for name in view.closed if rank_of(name) == rank}
    for filename in listdir(view.layout.attempts):
        name = filename.removesuffix(".json")
        if rank_of(name) == rank and is_regular(view.layout.intent(name)):
            names.add(name)
    return sorted(names, key=lambda name: parse_attempt(name) or (0, 0))


def _unknown_rank(view: View, rank: int) -> str:
    names = [filename.removesuffix(".json") for filename in listdir(view.layout.attempts)]
    known = {rank_of(name) for name in names if parse_attempt(name) is not None}
    known.update(one for one in map(parse_planned, view.manifests) if one is not None)
    shown = sorted(known)
    text = ", ".join(map(str, shown[:MOST_RANKS])) or "none"
    if len(shown) > MOST_RANKS or (len(shown) > 2 and shown == list(range(len(shown)))):
        text = f"{shown[0]} to {shown[-1]}"
    return f"{view.layout.root} has no rank {rank}. Its ranks: {text}."


class _Teller:
    """Tells of some attempts of a rank.

    names: these. every: all of the rank, whose intents and journals were read.
    """

    def __init__(self, view: View, rank: int, names: list[str], every: list[str]) -> None:
        self._view = view
        self._rank = rank
        self._names = names
        self._every = every
        self._presence = Presence(view)
        self._parents: dict[int, Parent | None] = {}

    # What happened.

    def steps(self) -> Iterator[Step]:
        for number, name in enumerate(self._names):
            intent = self._view.intents.get(name)
            before = self._names[number - 1] if number else None
            yield self._starting(name, intent, before)
            closing = self._view.closed.get(name)
            if closing is None:
                continue
            yield from self._getting_ready(name, intent, closing)
            yield self._closing(name, closing)

    def _starting(self, name: str, intent: Intent | None, before: str | None) -> Step:
        if intent is None:
            text = f"{name} was started; what its parent wrote of it cannot be read"
            return Step(at=None, what="started", text=text, attempt=name)
        parent = self._parent(intent.epoch)
        by = f"by the parent of epoch {intent.epoch}"
        if parent is not None:
            by += f" (`{parent.command}`, pid {parent.pid} on {parent.host})"
        job = f" in job {intent.job_id}" if intent.job_id else ""
        text = f"{name} started on {intent.parent.host}, {place(intent.device)}{job}, {by}"
        earlier = None if before is None else self._view.intents.get(before)
        if earlier is not None and earlier.epoch != intent.epoch:
            text += "; another start took the rank over"
        return Step(at=intent.at, what="started", text=text, attempt=name)

    def _parent(self, epoch: int) -> Parent | None:
        if epoch not in self._parents:
            path = self._view.layout.parent(epoch)
            self._parents[epoch] = read_sealed(path, Parent)
        return self._parents[epoch]

    def _getting_ready(self, name: str, intent: Intent | None, closing: Closing) -> Iterator[Step]:
        ready_s = _ready_s(closing)
        if intent is not None and ready_s is not None:
            text = f"{name} ready after {ready_s:.1f} s"
            # What it took was counted in ticks of the kernel, by which a short attempt would have
            # ended before it was ready.
            at = min(intent.at + ready_s, closing.at or math.inf)
            yield Step(at=at, what="ready", text=text, attempt=name)

    def _closing(self, name: str, closing: Closing) -> Step:
        text = f"{name} {ending(closing)}; {self._counts(name)}"
        left = len(self._view.manifests[f"{name}.orphans"])
        if left:
            text += f", {count_of(left, 'task')} given back"
        details: tuple[str, ...] = ()
        if closing.error is not None:
            details = frames_of(closing.error)
        if closing.close_error is not None:
            text += f"; its job's close failed: {closing.close_error.message}"
        at = closing.at or None
        return Step(at=at, what="ended", text=text, attempt=name, details=details)

    def _counts(self, name: str) -> str:
        text = f"{count_of(self._view.completed(name), 'task')} complete"
        n_failed = self._view.failed_by.get(name, 0)
        if n_failed:
            text += f", {n_failed} failed there"
        n_held = len(self._view.failed_in.get(name, ()))
        if n_held:
            text += f", {count_of(n_held, 'failure')} there without a verdict"
        return text

    def facts(self, name: str) -> dict[str, Any]:
        """What programs are told of an attempt."""
        intent = self._view.intents.get(name)
        closing = self._view.closed.get(name)
        identity = self._view.identity(name)
        ready_s = None if closing is None else _ready_s(closing)
        found: dict[str, Any] = {
            "attempt": name,
            "epoch": None if intent is None else intent.epoch,
            "device": None if intent is None else intent.device,
            "host": None if intent is None else intent.parent.host,
            "pid": None if identity is None else identity.pid,
            "started": None if intent is None else intent.at,
            "ready_s": ready_s,
            "done": self._view.completed(name),
            "failed": self._view.failed_by.get(name, 0),
            "doubtful": len(self._view.failed_in.get(name, ())),
            "state": None,
            "reason": None,
            "ended": None,
        }
        if closing is not None:
            found["state"], found["reason"] = str(closing.state), str(closing.reason)
            found["ended"] = closing.at or None
        return found

    # How it stands.

    def state(self) -> str:
        """As `status` calls it: how the last attempt ended, or what it is at."""
        if not self._names:
            return NOT_STARTED
        newest = self._names[-1]
        closing = self._view.closed.get(newest)
        if closing is not None:
            if not self._is_followed(closing):
                return str(closing.state)
            return RESTARTING if self._is_anything_unclaimed() else HELD_UP
        if self._presence.life(newest) is Life.DEAD:
            return LOST
        beat = self._view.heartbeat(newest)
        return "starting" if beat is None else str(beat.state)

    def _is_followed(self, closing: Closing) -> bool:
        """Whether the parent of the last attempt starts the next one, once there is work for it."""
        intent = self._view.intents.get(closing.attempt)
        parents = self._presence
        if self._next_of(closing.attempt) is not None or intent is None:
            return False
        if intent.epoch not in parents.live or parents.is_finished:
            return False
        if not may_be_followed(self._view, self._every, closing):
            return False
        return parents.may_begin(intent.epoch)

    def _next_of(self, attempt: str) -> str | None:
        """The attempt of the rank that came after this one."""
        later = self._every[self._every.index(attempt) + 1 :]
        return later[0] if later else None

    def _is_anything_unclaimed(self) -> bool:
        """Whether any list has tasks that nobody has claimed."""
        for name, manifest in self._view.manifests.items():
            size = len(manifest)
            if size and claim_of(self._view.layout, name, size - 1, size)[0] is None:
                return True
        return False

    def standing(self, state: str) -> tuple[str, str]:
        """(how it stands, what happens next)."""
        if state == NOT_STARTED:
            now = f"no process of this rank was ever started; {self._own_list()}"
            if self._presence.is_finished:
                return now, ""
            return now, self._presence.who_goes_on() or "other ranks take what is in its list"
        newest = self._names[-1]
        closing = self._view.closed.get(newest)
        if closing is not None:
            return self._stands_closed(closing)
        if state == LOST:
            now = f"{newest} has died, and nobody has said so yet; {self._counts(newest)}"
            then = "its parent gives out again what it had"
            return now, self._presence.who_goes_on() or then
        return self._stands_open(newest)

    def _stands_open(self, newest: str) -> tuple[str, str]:
        beat = self._view.heartbeat(newest)
        if beat is None:
            return f"{newest} starts: it has not said yet what it is at", ""
        now = f"{newest} (pid {beat.pid} on {beat.host}): {self._doing(newest, beat)}"
        parts = [now, self._counts(newest), self._doubt(newest), self._presence.standstill(newest)]
        now = "; ".join(filter(None, parts))
        silence = self._presence.silence(newest)
        if silence:
            return f"{now}; {silence}", self._presence.who_goes_on()
        then = self._presence.who_goes_on()
        if (
            beat.state in (Phase.RUNNING, Phase.PUBLISHING, Phase.LOADING, Phase.MAKING)
            and not then
        ):
            then = self._own_list()
        return now, then

    def _doubt(self, attempt: str) -> str:
        """That an attempt was started where nothing was completed lately, while that holds."""
        intent = self._view.intents.get(attempt)
        if intent is None or not intent.is_doubted or self._view.completed(attempt):
            return ""
        return "it is doubted until it completes a task, since tasks failed in its place"

    def _doing(self, attempt: str, beat: Heartbeat) -> str:
        ago = f"{max(0.0, time.time() - beat.at):.0f} s ago"
        if beat.state in _PHASES:
            return f"{_PHASES[beat.state]} (told {ago})"
        verb = "publishes the outputs of" if beat.state is Phase.PUBLISHING else "runs"
        if beat.task is None:
            return f"it looks for tasks (told {ago})"
        key = beat.key or self._key(beat.task)
        # The journal is newer than the heartbeat.
        if has_finished(self._view, attempt, beat):
            return f"it has finished {key} since it told what it is at, {ago}"
        since = "" if beat.task_since is None else f" since {clock(beat.task_since)}"
        more = f" +{beat.in_hand - 1:,}" if beat.in_hand > 1 else ""
        return f"it {verb} {key}{more}{since} (told {ago})"

    def _key(self, task: int) -> str:
        found = inputs_of(self._view, {task: self._rank}).get(task)
        return f"#{task}" if found is None else found.key

    def _own_list(self) -> str:
        """How much of what was planned for the rank nobody has claimed."""
        name = rank_name(self._rank)
        manifest = self._view.manifests.get(name)
        if manifest is None:
            return "it has no list of its own, and takes from those of others"
        size = len(manifest)
        if not size:
            return "its own list is empty"
        # The claim on the last position tells, or what lies before it.
        claim, stop = claim_of(self._view.layout, name, max(size - 1, 0), size)
        left = 0 if claim is not None else size - stop
        if not left:
            helps = "; it helps others" if self._names else ""
            return f"all of its own list is claimed{helps}"
        return f"{count_of(left, 'task')} of its own list are still unclaimed"

    def _stands_closed(self, closing: Closing) -> tuple[str, str]:
        n_done = sum(map(self._view.completed, self._names))
        now = f"nothing of it runs; {count_of(n_done, 'task')} complete in all"
        if closing.state is AttemptState.COMPLETE or self._presence.is_finished:
            return now, ""
        later = self._next_of(closing.attempt)
        if later is not None:
            return now, f"{later} came after it"
        goes_on = self._presence.who_goes_on()
        if goes_on:
            return now, goes_on
        intent = self._view.intents.get(closing.attempt)
        if intent is not None and intent.epoch not in self._presence.parents:
            return now, "its parent is gone; others have their own ranks and do its tasks"
        if is_given_up(self._view, self._every):
            return now, "its parent starts no other; other ranks do its tasks"
        if closing.reason is Reason.HANDOVER:
            return now, "its parent decides who tries these tasks"
        then = "its parent starts another"
        n_faults = len(faults_of(self._view, self._every))
        if n_faults:
            most = self._view.options_of(closing.attempt).max_restarts
            then += f" (--max-restarts allows {most} in vain, and this was number {n_faults})"
        if closing.reason in (Reason.DRAINED, Reason.KILLED):
            then += ", unless it drains"
        if not self._is_anything_unclaimed():
            return now, f"{then}, once there is something to do"
        return now, f"{then}; other ranks do its tasks meanwhile"


def _ready_s(closing: Closing) -> float | None:
    """How long an attempt took to start and to load its job; None where it did not say."""
    stats = closing.stats
    if stats is None or not stats.ready:
        return None
    # The sum of two numbers of milliseconds has more digits than both.
    return round(stats.idle_s.get("start", 0.0) + stats.idle_s.get("load", 0.0), 3)
