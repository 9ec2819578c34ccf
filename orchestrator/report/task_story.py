"""What happened to one task, how it stands, and what happens next.

The state is that of docs/spool-format.md, section 5: the first row that holds. A task that an open
attempt has claimed is `running` where it is in hand, by the attempt's journal or its heartbeat, and
else `claimed`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum

from gpuspool.orchestrator.report.endings import ending, frames_of, in_words
from gpuspool.orchestrator.report.history import Given, History, Told, read_history
from gpuspool.orchestrator.report.keys import TaskKey
from gpuspool.orchestrator.report.presence import Presence, has_finished, where
from gpuspool.orchestrator.report.story import Step, Story, clock, in_order
from gpuspool.orchestrator.text.words import count_of, to_type
from gpuspool.spool.claims import NOBODY
from gpuspool.spool.layout import (
    is_added,
    is_planned,
    is_retry,
    is_ruling,
    parse_orphans,
    parse_planned,
    rank_of,
)
from gpuspool.spool.records import Claim, Closing, Error, Heartbeat, TaskFailure
from gpuspool.spool.states import ErrorKind, Life, LineState, Phase, Reason, Verdict
from gpuspool.spool.timeouts import limit_s
from gpuspool.spool.view import View

# So many names of outputs are told, and of the attempts in which a task failed.
MOST_OUTPUTS = 3
MOST_ATTEMPTS = 3
# From so many tasks on every fourth of a planned manifest comes from its other end.
MIXED_FROM = 20


class State(StrEnum):
    """How a task stands. HELD_BACK: it failed, and waits for a ruling. STRANDED: nobody has it, and
    no manifest offers it.
    """

    COMPLETE = "complete"
    FAILED = "failed"
    HELD_BACK = "held back"
    RUNNING = "running"
    CLAIMED = "claimed"
    WAITING = "waiting"
    STRANDED = "stranded"


def task_story(view: View, task: int) -> Story:
    """The story of a task of a view that has read its manifests. Raises OSError."""
    history = read_history(view, task)
    teller = _Teller(view, history)
    holder = teller.holder()
    state = teller.state(holder)
    now, then = teller.standing(state, holder)
    name = history.key if history.key is not None else f"#{task}"
    return Story(
        name=name,
        state=state,
        facts={"task": task, "key": history.key, "round": history.round},
        steps=in_order(teller.steps()),
        now=now,
        next=then,
    )


class _Teller:
    """Tells what a history holds. view: as after `read_history`."""

    def __init__(self, view: View, history: History) -> None:
        self._view = view
        self._history = history
        self._presence = Presence(view)

    # What happened.

    def steps(self) -> Iterator[Step]:
        """All steps, those of one attempt in their order."""
        for given in self._history.given:
            yield from self._giving(given)
        for attempt in sorted(self._history.attempts() | {NOBODY}):
            for round_ in range(self._history.round + 1):
                yield from self._in_attempt(attempt, round_)
            closing = self._view.closed.get(attempt)
            if closing is not None:
                yield from self._closing(closing)
        for failure in self._history.verdicts:
            yield from self._ruling(failure)

    def _in_attempt(self, attempt: str, round_: int) -> Iterator[Step]:
        """What an attempt did with the task in one round.

        It may claim a task again that failed there, by a list that says how often it had.
        """
        told = [
            one for one in self._history.told if one.attempt == attempt and one.line.round == round_
        ]
        claims = [
            (given, given.claim)
            for given in self._history.given
            if given.claim is not None
            and given.claim.attempt == attempt
            and given.line.round == round_
        ]
        n_held = 0
        for given, claim in sorted(claims, key=lambda pair: pair[1].number):
            n_known = sum(name == attempt for name, _ in given.line.failed_in)
            while told and n_held < n_known:
                one = told.pop(0)
                n_held += one.line.state is LineState.HELD
                yield self._telling(one, n_held)
            yield self._claiming(given, claim)
        for one in told:
            n_held += one.line.state is LineState.HELD
            yield self._telling(one, n_held)

    def _giving(self, given: Given) -> Iterator[Step]:
        """That a manifest gave the task out, unless it is that of a closing, told with that."""
        name = given.manifest
        place = f"place {given.position + 1} of {given.size}"
        if is_planned(name):
            text = f"planned for rank {int(name.removeprefix('rank-'))}, {place}"
            text += self._order(given)
            yield Step(at=self._view.run.created_at, what="planned", text=text, makes=(name,))
        elif is_added(name):
            added = self._view.manifests[name].added
            at = None if added is None else added.at
            text = f"added to the run, {place} of {name}"
            yield Step(at=at, what="added", text=text, makes=(name,))
        elif is_retry(name):
            word = "redone" if given.line.redo else "retried"
            verb = "redo" if given.line.redo else "retry"
            text = f"`gpuspool {verb}` gave it round {given.line.round}, {place} of {name}"
            yield Step(at=self._written_at(name), what=word, text=text, makes=(name,))
        elif is_ruling(name):
            ruling = self._view.rulings.get(name)
            at = self._written_at(name) if ruling is None else ruling.at
            failed = [attempt for attempt, _ in given.line.failed_in]
            again = f"elsewhere than in {_named(failed)}" if failed else "again"
            text = f"a parent ruled: it is to be tried {again}"
            needs = _failures_in(failed, given.line.round)
            yield Step(at=at, what="ruled", text=text, makes=(name,), needs=needs)
        elif parse_orphans(name) is None:
            text = (
                f"nobody had it, and no list offered it: it was given out again, {place} of {name}"
            )
            yield Step(at=self._written_at(name), what="swept", text=text, makes=(name,))

    def _order(self, given: Given) -> str:
        """Why a planned task stands where it does."""
        manifest = self._view.manifests[given.manifest]
        first, last = manifest.task(0), manifest.task(given.size - 1)
        if first is None or last is None or first.cost == last.cost == given.line.cost:
            return ""
        if given.size >= MIXED_FROM and given.position % 4 == 0:
            return " (longest first, but a short one in every fourth place)"
        return " (longest first)"

    def _written_at(self, manifest: str) -> float | None:
        """When a manifest was written that does not say so, by the clock of the file system."""
        try:
            return os.lstat(self._view.layout.manifest(manifest)).st_mtime
        except OSError:
            return None

    def _claiming(self, given: Given, claim: Claim) -> Step:
        if claim.attempt == NOBODY:
            text = "claimed, but the claim cannot be read: nobody holds it"
            return Step(at=None, what="claimed", text=text, needs=(given.manifest,))
        source = self._source(given, claim.attempt)
        others = claim.stop - claim.start - 1
        beside = f", with {count_of(others, 'other')}" if others else ""
        text = f"claimed by {where(self._view, claim.attempt)}, {claim.attempt}{beside}{source}"
        closing = self._view.closed.get(claim.attempt)
        if closing is not None and claim.number == 0 and claim.at > closing.at > 0:
            text = "claimed for nobody, in the place of claims that a power cut took back"
        needs = (given.manifest,)
        return Step(at=claim.at, what="claimed", text=text, attempt=claim.attempt, needs=needs)

    def _source(self, given: Given, attempt: str) -> str:
        """From where an attempt took it, if that is not its own list."""
        orphan = parse_orphans(given.manifest)
        if orphan is not None:
            return f", from what {orphan} left"
        rank = parse_planned(given.manifest)
        if rank is not None:
            return "" if rank == rank_of(attempt) else f", from rank {rank}'s list"
        return f", from {given.manifest}"

    def _telling(self, told: Told, n_held: int) -> Step:
        """What a line of a journal says. n_held: how often the task failed there by then."""
        line = told.line
        attempt = told.attempt
        others = len(line.batch)
        match line.state:
            case LineState.STARTED:
                beside = f", with {count_of(others, 'other')} in hand" if others else ", alone"
                text = f"started on {attempt}{beside}"
                return Step(at=line.start or None, what="started", text=text, attempt=attempt)
            case LineState.DEFERRED:
                return self._deferring(told)
            case LineState.HELD:
                makes = (_failure_in(attempt, line.round, n_held),)
                return self._failing(told, "held", f"failed on {attempt}", makes)
            case LineState.FAILED:
                return self._failing(told, "failed", f"failed for good on {attempt}", ())
            case LineState.COMPLETE:
                return self._completing(told)
            case LineState.IDLE:
                return Step(at=None, what="idle", text=f"{attempt} gave it up", attempt=attempt)

    def _deferring(self, told: Told) -> Step:
        line, attempt, error = told.line, told.attempt, told.line.error
        n_tasks = len(line.batch) + 1
        at = line.start + line.seconds * n_tasks if line.start else None
        details = () if error is None else frames_of(error)
        if line.batch:
            why = "" if error is None else f" ({in_words(error)})"
            text = f"a call of {n_tasks} tasks with it raised on {attempt}{why}; they run in parts"
            what = "split"
        elif error is not None:
            text = f"try {error.tries} failed on {attempt} ({in_words(error)}); it waits there"
            text += " for another"
            what = "deferred"
        elif self._asked_to_restart(told):
            text = f"no verdict on {attempt}: the job asked for a fresh process"
            what = "restart"
        else:
            text = (
                f"no verdict on {attempt}: it is not done, or has to run alone, and is called again"
            )
            what = "deferred"
        return Step(at=at, what=what, text=text, attempt=attempt, details=details)

    def _asked_to_restart(self, told: Told) -> bool:
        """Whether the job asked for a fresh process in this very call of the task.

        The attempt ended for that, after whatever other calls that gave no verdict. Only a task in
        which it was asked for is given back with a count of that, and is not called again before.
        """
        closing = self._view.closed.get(told.attempt)
        if closing is None or closing.reason is not Reason.RECYCLED or closing.error is None:
            return False
        last = [one for one in self._history.told if one.attempt == told.attempt][-1]
        is_counted = any(
            one.line.restarts and parse_orphans(one.manifest) == told.attempt
            for one in self._history.given
        )
        return closing.error.kind is ErrorKind.RESTART and told is last and is_counted

    def _failing(self, told: Told, what: str, text: str, makes: tuple[str, ...]) -> Step:
        error = told.line.error
        details: tuple[str, ...] = ()
        if error is not None:
            text += f": {in_words(error)}"
            if error.tries > 1:
                text += f" (try {error.tries})"
            if error.kind is ErrorKind.IO:
                text += "; a file system in trouble is to blame, and not the task"
            details = frames_of(error)
        at = told.line.start + told.line.seconds if told.line.start else None
        return Step(at=at, what=what, text=text, attempt=told.attempt, details=details, makes=makes)

    def _completing(self, told: Told) -> Step:
        line = told.line
        text = f"complete on {told.attempt} after {_seconds(line.seconds)}"
        names = [name for name, _ in line.outputs]
        if names:
            text += f", wrote {', '.join(names[:MOST_OUTPUTS])}"
        if len(names) > MOST_OUTPUTS:
            text += f" and {len(names) - MOST_OUTPUTS} more"
        if self._is_again(told):
            text += "; it ran twice, and the other result counts"
        at = line.start + line.seconds if line.start else None
        return Step(at=at, what="complete", text=text, attempt=told.attempt)

    def _is_again(self, told: Told) -> bool:
        """Whether a complete line does not count, though no redo has come since."""
        redone = self._history.ledger.redone.get(self._history.task, 0)
        counts = self._history.completed
        return told.line.round >= redone and counts is not None and told is not counts

    def _closing(self, closing: Closing) -> Iterator[Step]:
        """That an attempt ended that still had the task."""
        attempt = closing.attempt
        left = [one for one in self._history.given if parse_orphans(one.manifest) == attempt]
        opinions = [failure for name, failure in self._history.opinions if name == attempt]
        failures = [one for one in closing.failures if one.task == self._history.task]
        text = f"{attempt} {ending(closing)}"
        details: tuple[str, ...] = ()
        if failures:
            text += "; with that the task has failed for good"
            details = frames_of(failures[0].error)
        elif opinions:
            text += (
                f" with the task in hand, which counts against it: {in_words(opinions[0].error)}"
            )
            details = frames_of(opinions[0].error)
        elif left:
            text += f"; the task was given {'back' if _is_peaceful(closing) else 'out again'}"
            if closing.killed == self._history.task:
                text += ": a kill mostly comes from outside, and this one is counted"
            elif left[0].line.careful and closing.suspects:
                text += ", to run alone, since it may have been in hand"
        else:
            return
        at = closing.at or None
        makes = tuple(one.manifest for one in left)
        makes += tuple(_failure_in(attempt, one.round, 0) for one in opinions)
        yield Step(at=at, what="ended", text=text, attempt=attempt, details=details, makes=makes)

    def _ruling(self, failure: TaskFailure) -> Iterator[Step]:
        for ruling in self._view.rulings.values():
            if failure in ruling.failures:
                n_places = count_of(len(failure.error.attempts), "attempt")
                text = "a parent ruled: it has failed for good, "
                text += f"in {n_places}: {in_words(failure.error)}"
                needs = _failures_in(failure.error.attempts, failure.round)
                yield Step(at=ruling.at, what="failed", text=text, needs=needs)

    # How it stands.

    def holder(self) -> Given | None:
        """Where an open attempt has claimed it, and has neither failed it nor given it up."""
        for given in reversed(self._history.current):
            claim = given.claim
            if claim is None or claim.attempt == NOBODY or claim.attempt in self._view.closed:
                continue
            is_released = self._view.is_released(claim.attempt, claim.number)
            if not is_released and not self._history.has_let_go(claim.attempt, given.line):
                return given
        return None

    def state(self, holder: Given | None) -> State:
        """The first state that holds."""
        match self._history.verdict:
            case Verdict.COMPLETE:
                return State.COMPLETE
            case Verdict.FAILED:
                return State.FAILED
            case None:
                pass
        if self._history.is_held_back:
            return State.HELD_BACK
        if holder is not None:
            return State.RUNNING if self._is_in_hand(holder) else State.CLAIMED
        if self._unclaimed() is not None:
            return State.WAITING
        return State.STRANDED

    def _unclaimed(self) -> Given | None:
        unclaimed = (given for given in self._history.current if given.claim is None)
        return next(unclaimed, None)

    def _is_in_hand(self, holder: Given) -> bool:
        """Whether the attempt that has claimed it is running it, as far as it has told."""
        attempt = _claimer(holder)
        if self._presence.life(attempt) is Life.DEAD:
            return False
        call = self._view.started.get(attempt)
        if call is not None and self._history.task in call.tasks:
            last = [told.line.state for told in self._history.told if told.attempt == attempt]
            return last[-1:] == [LineState.STARTED]
        beat = self._view.heartbeat(attempt)
        if beat is None or beat.task is None:
            return False
        # A call has tasks that stand one behind the other in a claim, of which the first is told.
        manifest = self._view.manifests[holder.manifest]
        firsts = (position for position, _ in manifest.lines_of(beat.task, TaskKey))
        return any(0 <= holder.position - first < _n_in_hand(beat) for first in firsts)

    def standing(self, state: State, holder: Given | None) -> tuple[str, str]:
        """(how it stands, what happens next)."""
        match state:
            case State.COMPLETE:
                return self._stands_complete()
            case State.FAILED:
                return self._stands_failed()
            case State.HELD_BACK:
                return self._stands_held_back()
            case State.RUNNING | State.CLAIMED:
                assert holder is not None, "somebody has claimed it"
                return self._stands_claimed(state, holder)
            case State.WAITING:
                return self._stands_waiting()
            case State.STRANDED:
                return self._stands_stranded()

    def _stands_complete(self) -> tuple[str, str]:
        told = self._history.completed
        by = "" if told is None else f", by {told.attempt}"
        text = f"complete{by}; nobody runs it again"
        if self._history.ledger.duplicates:
            times = count_of(self._history.ledger.duplicates + 1, "time")
            text = f"complete{by}; it ran {times}, and the first output stayed"
        return text, ""

    def _stands_failed(self) -> tuple[str, str]:
        if self._history.is_unreadable:
            text = "failed: no readable line of a manifest describes it any more"
            return text, f"{self._to_type('verify')} tells what is damaged"
        error = self._last_error()
        why = "" if error is None else f": {in_words(error)}"
        then = f"{self._to_type('retry')} gives it another round"
        return f"failed for good{why}", f"{then}; after a fix of the job add --keep-done"

    def _stands_held_back(self) -> tuple[str, str]:
        """It failed, and nobody has ruled about that: what the ruling waits for."""
        error = self._last_error()
        places = count_of(self._history.n_failures, "attempt")
        if error is not None and error.kind is ErrorKind.IO:
            now = "a file system that it needs was in trouble; nobody has it"
            then = "it is tried again after a while, as long as it takes"
        else:
            now = f"it failed in {places}, which may be the place's fault; nobody has it"
            then = "it is tried elsewhere, or has failed, once those places have completed a task"
        return now, self._presence.who_goes_on() or then

    def _stands_claimed(self, state: State, holder: Given) -> tuple[str, str]:
        attempt = _claimer(holder)
        who = f"{where(self._view, attempt)}, {attempt},"
        life = self._presence.life(attempt)
        if life is Life.DEAD:
            now = f"{who} has died with it, and nobody has said so yet"
            return now, self._presence.who_goes_on() or "its parent gives it out again"
        then = ""
        beat = self._view.heartbeat(attempt)
        if state is State.RUNNING:
            now = f"{who} has it in hand{self._since(attempt, beat)}"
            then = self._limit(attempt, beat)
        else:
            now = f"{who} has claimed it{self._turn(holder, beat)}"
            then = "it runs when its turn comes"
        standstill = self._presence.standstill(attempt)
        if standstill:
            now += f"; {standstill}"
        return self._with_silence(attempt, now, then)

    def _with_silence(self, attempt: str, now: str, then: str) -> tuple[str, str]:
        """`now` and `then`, with the silence of an attempt on another host added."""
        silence = self._presence.silence(attempt)
        if not silence:
            return now, then
        lease_s = self._view.options_of(attempt).lease_s
        then = (
            f"once it was silent for its lease of {lease_s:g} s, who is at work gives it out again"
        )
        return f"{now}; {silence}", self._presence.who_goes_on() or then

    def _since(self, attempt: str, beat: Heartbeat | None) -> str:
        """Since when an attempt has the task in hand."""
        started = [
            told.line.start
            for told in self._history.told
            if told.attempt == attempt and told.line.state is LineState.STARTED
        ]
        since = started[-1] if started else None
        if since is None and beat is not None:
            since = beat.task_since
        if since is None:
            return ""
        return f" since {clock(since)}, for {max(0.0, time.time() - since):.0f} s"

    def _limit(self, attempt: str, beat: Heartbeat | None) -> str:
        """When a limit on time ends the call."""
        call = self._view.started.get(attempt)
        n_tasks = 1 if call is None else len(call.tasks)
        limit = limit_s(self._view.options_of(attempt), n_tasks)
        if beat is not None and beat.state is Phase.PUBLISHING:
            return "its outputs are being published"
        if limit is None:
            return "nothing ends its call if that hangs: it was started without --task-timeout"
        return f"its call is ended if it takes longer than {limit:g} s"

    def _turn(self, holder: Given, beat: Heartbeat | None) -> str:
        """What an attempt has to do before this task, as far as that is known."""
        claim = holder.claim
        assert claim is not None
        n_tasks = claim.stop - claim.start
        text = ""
        if n_tasks > 1:
            text = f" as number {holder.position - claim.start + 1} of {n_tasks}"
        if beat is None:
            return text
        if has_finished(self._view, _claimer(holder), beat):
            return f"{text}, and has finished task #{beat.task} since it told, {_ago(beat.at)}"
        if beat.task is not None:
            return f"{text}, and is at task #{beat.task} (told {_ago(beat.at)})"
        return f"{text}, and is {beat.state} (told {_ago(beat.at)})"

    def _stands_waiting(self) -> tuple[str, str]:
        given = self._unclaimed()
        assert given is not None, "it is unclaimed"
        before = given.position - given.next
        name = given.manifest
        orphan = parse_orphans(name)
        if is_planned(name):
            source = f"rank {int(name.removeprefix('rank-'))}'s list"
        elif orphan is not None:
            source = f"what {orphan} left"
        else:
            source = name
        come = "comes" if before == 1 else "come"
        tasks = count_of(before, "task")
        now = f"nobody has claimed it: {tasks} of {source} {come} before it"
        if not before:
            now = f"nobody has claimed it: it is the next of {source}"
        then = "any rank takes it when its own list is short"
        if is_planned(name):
            then = "its turn comes; any rank that runs out of its own list helps"
        if given.line.failed_in:
            failed = _named([attempt for attempt, _ in given.line.failed_in])
            now += f"; it is doubtful, since it failed in {failed}"
            then = "another place tries it, alone, behind the tasks that nobody doubts"
        return now, self._presence.who_goes_on() or then

    def _stands_stranded(self) -> tuple[str, str]:
        now = "nobody has it, and no list offers it: a claim on it was lost or given up"
        then = "the next look that finds nothing else to claim gives it out again"
        return now, self._presence.who_goes_on() or then

    def _last_error(self) -> Error | None:
        """How the task failed last: by its verdict, else as it was told."""
        for failure in reversed(self._history.verdicts):
            if failure.round == self._history.round:
                return failure.error
        errors = [
            (told.line.start, told.line.error)
            for told in self._history.told
            if told.line.error is not None
            and told.line.round == self._history.round
            and told.line.state in (LineState.HELD, LineState.FAILED)
        ]
        errors += [
            (self._view.closed[attempt].at, failure.error)
            for attempt, failure in self._history.opinions
            if failure.round == self._history.round
        ]
        return max(errors, key=lambda pair: pair[0])[1] if errors else None

    def _to_type(self, verb: str) -> str:
        return to_type(verb, self._view.layout.root)


# What a ruling knows of: each failure in an attempt, and the one of which that died.
def _failures_in(attempts: Sequence[str], round_: int) -> tuple[str, ...]:
    names: list[str] = []
    for attempt, count in Counter(attempts).items():
        names += (_failure_in(attempt, round_, number) for number in range(count + 1))
    return tuple(names)


def _failure_in(attempt: str, round_: int, number: int) -> str:
    """A name for the failure of this number in an attempt; 0 is the one of which it died."""
    return f"failure {number} in {attempt}, round {round_}"


def _named(attempts: Sequence[str]) -> str:
    """Attempts by name, each once; of many the last ones, and how many others there are."""
    names = list(dict.fromkeys(attempts))
    if len(names) <= MOST_ATTEMPTS + 1:
        return ", ".join(names)
    return f"{', '.join(names[-MOST_ATTEMPTS:])} and {len(names) - MOST_ATTEMPTS} others"


def _n_in_hand(beat: Heartbeat) -> int:
    """How many tasks the call in hand has; one where that is not told, as by earlier versions."""
    return max(1, beat.in_hand)


def _claimer(given: Given) -> str:
    assert given.claim is not None, "it is claimed"
    return given.claim.attempt


def _is_peaceful(closing: Closing) -> bool:
    """Whether an attempt ended as it was told to, or by its own will."""
    return closing.reason in (
        Reason.DRAINED,
        Reason.KILLED,
        Reason.RECYCLED,
        Reason.HANDOVER,
        Reason.FINISHED,
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def _ago(at: float) -> str:
    return f"{max(0.0, time.time() - at):.0f} s ago"
