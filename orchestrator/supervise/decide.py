"""What to do next, as a pure function of what is known. It reads nothing, starts nothing and knows
no clock.

The first row that holds decides; the rows below it wait for the next look.

when                                      then
an attempt is proved dead                 close all that are, in one action: it changes what is
                                          claimable
mending claims is due                     mend them: what a power cut gave back would run twice
every task has a verdict                  say so to attempts that wait; wait for all to end
                                          themselves, kill those that linger; end "finished"
a drain was asked for                     wait for the tasks in hand, kill past the grace; end
                                          "drained", or what the drain says
as many tasks failed as --max-failed      stop, which begins a drain
no rank's job loads, nobody is open       end "load"
something is claimable                    launch in slots without an open attempt, as many as there
                                          is work for, but not where a rank or a device was given
                                          up; if that is everywhere and nobody is open, end
                                          "gave up"
somebody is open                          wait
a closed attempt's journal is not         wait: tasks that look unfinished may be finished
seen whole yet
no sweep since the last launch            sweep
else                                      end "stuck"

The loop calls `decide` after each look; `snapshot.py` makes its argument. When the loop must wake
for a restart is told here too, by `next_restart_at`, since that must agree with the launches.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.drain import Drain
from gpuspool.spool.records import Closing
from gpuspool.spool.states import AttemptState, Ending, Life, Reason

# Once every task has a verdict, a worker has this long to notice it and to run its exit handlers.
# Handlers that upload a log or close a driver take seconds; a worker that takes longer hangs.
FAREWELL_S = 15.0

# A rank's first restart after a failure waits this long, and each further one in a row twice as
# long as the one before. What fails at once must not be started a thousand times an hour.
BACKOFF_FIRST_S = 1.0

# No restart waits longer than this: a device that comes back should be used soon.
BACKOFF_MOST_S = 30.0


class OpenAttempt(msgspec.Struct, frozen=True):
    """An attempt that is not closed. `is_starting`: it has claimed nothing yet."""

    name: str
    rank: int
    life: Life
    is_starting: bool


class AttemptEnd(msgspec.Struct, frozen=True):
    """How one attempt ended, and how many tasks it finished."""

    closing: Closing
    finished: int


class RankPast(msgspec.Struct, frozen=True):
    """What became of a slot's attempts in this epoch.

    `closings` are those of the attempts that ended, oldest first; `finished` says for each how many
    tasks it finished. `ended_at` is when the last was seen to have ended, on the monotonic clock.
    `done` counts the tasks that all its attempts finished, those of the open one too.
    """

    slot: Slot
    closings: tuple[Closing, ...] = ()
    finished: tuple[int, ...] = ()
    ended_at: float = 0.0
    done: int = 0

    @property
    def rank(self) -> int:
        return self.slot.rank

    @property
    def device(self) -> str:
        return self.slot.device

    @property
    def ends(self) -> list[AttemptEnd]:
        """How each attempt ended, oldest first."""
        pairs = zip(self.closings, self.finished, strict=True)
        return [AttemptEnd(closing, finished) for closing, finished in pairs]


class Snapshot(msgspec.Struct, frozen=True):
    """All that `decide` knows. Times are on the monotonic clock.

    `is_settling`: the journal of a closed attempt is shorter here than its closing says, and may be
    seen whole in a moment. `finished_at` is when the attempts were told that every task has a
    verdict, None before that.
    """

    tasks_left: int
    unclaimed: int
    open: Sequence[OpenAttempt]
    past: Sequence[RankPast]
    failed: int = 0
    drain: Drain | None = None
    is_mending_due: bool = False
    is_settling: bool = False
    was_swept: bool = False
    finished_at: float | None = None


class Policy(msgspec.Struct, frozen=True):
    """What the user asked for: --max-restarts, and --max-failed as a number of tasks."""

    max_restarts: int
    max_failed: int | None = None

    def is_too_many(self, failed: int) -> bool:
        """Whether so many failed tasks end the run."""
        return self.max_failed is not None and failed >= self.max_failed


class Close(msgspec.Struct, frozen=True):
    """Close these attempts, which are proved dead. One pass over the spool serves all of them."""

    attempts: tuple[str, ...]


class Mend(msgspec.Struct, frozen=True):
    """Claim again what a power cut may have given back."""


class SayFinished(msgspec.Struct, frozen=True):
    """Tell the attempts that wait for work that every task has a verdict."""


class Stop(msgspec.Struct, frozen=True):
    """Begin a drain: too many tasks have failed."""


class Launch(msgspec.Struct, frozen=True):
    """Start the next attempt of a slot's rank."""

    slot: Slot


class Kill(msgspec.Struct, frozen=True):
    """Kill an attempt of this host; nobody is blamed."""

    attempt: str


class Sweep(msgspec.Struct, frozen=True):
    """Publish the tasks that no open attempt holds and no manifest offers."""


class End(msgspec.Struct, frozen=True):
    """The epoch is over."""

    ending: Ending


# What is done and changes nothing about the epoch; and, with the last, all that may be decided.
Act = Close | Mend | SayFinished | Stop | Launch | Kill | Sweep
Action = Act | End

# After these the loop looks again at once: they change what is claimable, or who is draining. A
# launch or a kill shows only later, and the bell tells.
CHANGING = (Close, Mend, Sweep, Stop)


def decide(snapshot: Snapshot, policy: Policy, now: float) -> list[Action]:
    """The next actions, to be done in this order; none means wait."""
    dead = _with_life(snapshot, Life.DEAD)
    if dead:
        return [Close(dead)]
    if snapshot.is_mending_due:
        return [Mend()]
    if snapshot.tasks_left == 0:
        return _finish(snapshot, now)
    if snapshot.drain is not None:
        return _await_end(snapshot, snapshot.drain.ending, snapshot.drain.kill_at, now)
    if policy.is_too_many(snapshot.failed):
        return [Stop()]
    if not snapshot.open and _loads_nowhere(snapshot.past):
        return [End(Ending.LOAD)]
    if snapshot.unclaimed:
        return _launches(snapshot, policy, now)
    if snapshot.open or snapshot.is_settling:
        return []
    if not snapshot.was_swept:
        return [Sweep()]
    return [End(Ending.STUCK)]


def _with_life(snapshot: Snapshot, life: Life) -> tuple[str, ...]:
    """The names of the open attempts of which this is known."""
    return tuple(attempt.name for attempt in snapshot.open if attempt.life is life)


def _finish(snapshot: Snapshot, now: float) -> list[Action]:
    """Every task has a verdict: see the open attempts off."""
    if snapshot.finished_at is not None:
        kill_at = snapshot.finished_at + FAREWELL_S
        return _await_end(snapshot, Ending.FINISHED, kill_at, now)
    said: list[Action] = []
    if snapshot.open:
        said.append(SayFinished())
    kill_at = now + FAREWELL_S
    return said + _await_end(snapshot, Ending.FINISHED, kill_at, now)


def _await_end(snapshot: Snapshot, ending: Ending, kill_at: float, now: float) -> list[Action]:
    """Wait for the attempts that live here, kill them from `kill_at` on, and end once none does.

    Nobody waits for what may live elsewhere: it ends itself, or is closed by its own parent or by
    the next resume.
    """
    here = _with_life(snapshot, Life.ALIVE)
    if not here:
        return [End(ending)]
    if now < kill_at:
        return []
    return [Kill(name) for name in here]


def _loads_nowhere(past: Sequence[RankPast]) -> bool:
    """Whether every attempt that ended had failed to load its job, and at least one did."""
    reasons: set[Reason] = set()
    for rank in past:
        reasons.update(closing.reason for closing in rank.closings)
    return reasons == {Reason.LOAD}


def _launches(snapshot: Snapshot, policy: Policy, now: float) -> list[Action]:
    able = _able(snapshot, policy)
    if not able and not snapshot.open:
        return [End(Ending.GAVE_UP)]
    # An attempt that has claimed nothing yet will claim something, so it counts as work that is
    # taken: else the last few tasks would have every rank started for them. If it dies before it
    # claims anything, the tasks are still unclaimed and the next look starts somebody else.
    n_starting = sum(attempt.is_starting for attempt in snapshot.open)
    n_wanted = max(0, snapshot.unclaimed - n_starting)
    ready = [rank for rank in able if restart_at(rank) <= now]
    return [Launch(rank.slot) for rank in ready[:n_wanted]]


def _able(snapshot: Snapshot, policy: Policy) -> list[RankPast]:
    """The slots without an open attempt whose rank and device were not given up."""
    busy = {attempt.rank for attempt in snapshot.open}
    sick = sick_devices(snapshot.past, policy.max_restarts)
    able: list[RankPast] = []
    for rank in snapshot.past:
        if rank.rank in busy or rank.device in sick:
            continue
        if failures_in_a_row(rank) <= policy.max_restarts:
            able.append(rank)
    return able


def next_restart_at(snapshot: Snapshot, policy: Policy, now: float) -> float | None:
    """When the next slot that waits for its backoff may be launched; None where none waits.

    A rank that was given up waits for nothing. Neither does one whose moment has come: if it was
    not launched, there was no work for it, and an event will tell when there is.
    """
    is_ending = snapshot.drain is not None or snapshot.tasks_left == 0
    if is_ending or not snapshot.unclaimed:
        return None
    moments = [restart_at(rank) for rank in _able(snapshot, policy)]
    later = [moment for moment in moments if moment > now]
    return min(later, default=None)


def restart_at(past: RankPast) -> float:
    """From when on the slot's next attempt may be launched."""
    return past.ended_at + backoff_s(failures_in_a_row(past))


def backoff_s(failures: int) -> float:
    """How long a restart waits after so many failures in a row."""
    if not failures:
        return 0.0
    doublings = failures - 1
    wait_s = BACKOFF_FIRST_S * 2.0**doublings
    return min(wait_s, BACKOFF_MOST_S)


def sick_devices(past: Sequence[RankPast], max_restarts: int) -> set[str]:
    """The devices on which more than `max_restarts` attempts in a row failed for nothing.

    The attempts of all ranks of a device form one row, in the order in which they ended. CPU ranks
    share theirs with everybody and are never counted so. A crash that made a task suspect speaks
    for the device as long as no other device gets anything done; once one does, the device counts
    as the cause.
    """
    devices = {rank.device for rank in past if rank.device}
    return {device for device in devices if _is_sick(device, past, max_restarts)}


def _is_sick(device: str, past: Sequence[RankPast], max_restarts: int) -> bool:
    # The excuse of a suspect task ends once another device gets something done. The same tasks go
    # round all devices, so if they were at fault the others would crash as well. Before that
    # nobody can tell a bad device from a bad first task, and giving the only device up for the
    # task would end the run for nothing.
    others = [rank for rank in past if rank.device != device]
    works_elsewhere = any(rank.done for rank in others)
    n_fruitless = _fruitless(_telling_ends(device, past), is_excused=not works_elsewhere)
    return n_fruitless > max_restarts


def _telling_ends(device: str, past: Sequence[RankPast]) -> list[AttemptEnd]:
    """The ends that say something about a device, oldest first.

    An attempt that ended in peace and found no work says nothing.
    """
    telling: list[AttemptEnd] = []
    for rank in past:
        if rank.device != device:
            continue
        for end in rank.ends:
            is_failed = end.closing.state is AttemptState.FAILED
            if is_failed or end.finished:
                telling.append(end)
    telling.sort(key=lambda end: end.closing.at)
    return telling


def failures_in_a_row(past: RankPast) -> int:
    """How many of the rank's last attempts failed for nothing.

    The row is broken by an attempt that finished a task, made a task suspect, failed a task, or
    was killed by its parent. An attempt whose death nobody saw is passed over.
    """
    return _fruitless(past.ends, is_excused=True)


def _fruitless(ends: Sequence[AttemptEnd], is_excused: bool) -> int:
    """How many of the last attempts failed for nothing.

    With `is_excused`, a crash that made a task suspect is explained by that task.
    """
    count = 0
    for end in reversed(ends):
        if not _failed_for_nothing(end, is_excused):
            break
        if end.closing.reason is not Reason.LOST:
            count += 1
    return count


def _failed_for_nothing(end: AttemptEnd, is_excused: bool) -> bool:
    """Whether an attempt failed, or was stopped by a stranger, and nothing but itself explains it.

    A failed task always does.
    """
    closing = end.closing
    # A stop that this parent ordered begins a drain, and a drain launches nothing. So whoever is
    # asked about here was stopped by somebody else.
    was_stopped = closing.reason is Reason.DRAINED
    if closing.state is not AttemptState.FAILED and not was_stopped:
        return False
    if end.finished or closing.failures:
        return False
    if closing.suspects:
        return not is_excused
    return True
