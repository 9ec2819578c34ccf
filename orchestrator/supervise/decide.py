"""What to do next, as a pure function of what is known. It reads nothing, starts nothing and knows
no clock.

The first row that holds decides; the rows below it wait for the next look.

when                                      then
an attempt is proved dead                 close all that are, in one action: it changes what is
                                          claimable
mending claims is due                     mend them: what a power cut gave back would run twice
every task has a verdict                  say so to attempts that wait; wait for its own to end
                                          themselves, kill those that linger; end "finished"
doubtful tasks can be ruled               rule
a drain was asked for                     wait for the tasks in hand, kill past the grace; end
                                          "drained", or what the drain says
as many tasks failed as --max-failed      stop, which begins a drain
no rank's job loads, no own one is open,
    and no slot waited for the first one  end "load"
without --keep-going:
    nothing ever completed, in many tries begin a drain that ends "broken"
    nothing was finished for 15 minutes,
        and tasks fail                    begin a drain that ends "outage"
    tasks only failed lately, nobody is
        open, no sweep since the last
        launch                            sweep
something is claimable                    launch in slots without an open attempt, or a process of
                                          the last one, as many as there is work for, but not
                                          where a rank or a device was given up; if that is
                                          everywhere and no own one is open, end "gave up"
somebody is open, or time must pass before
    a doubtful task can be ruled          wait
a closed attempt's journal is not         wait: tasks that look unfinished may be finished
seen whole yet
no sweep since the last launch            sweep
else                                      end "stuck"

Of all parents of a run only the gatherer mends, rules, sweeps, and ends the run for failures. The
others see to their own slots, and wait.

The loop calls `decide` after each look; `snapshot.py` makes its argument. When the loop must wake
for a restart is told here too, by `next_restart_at`, since that must agree with the launches.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.drain import Drain
from gpuspool.orchestrator.supervise.opinions import (
    FAILING_S,
    NEWS_S,
    OPINIONS,
    OUTAGE_S,
    PATIENCE,
    Trial,
    awaits_news,
    broken_tasks,
    fruitless_row,
    patience_after,
    pause_s,
    strikes,
)
from gpuspool.spool.states import Ending, Life, Reason

# Once every task has a verdict, a worker has this long to notice it and to run its exit handlers.
# Handlers that upload a log or close a driver take seconds; a worker that takes longer hangs.
FAREWELL_S = 15.0


class OpenAttempt(msgspec.Struct, frozen=True):
    """An attempt that is not closed."""

    name: str
    # The number of the slot that it takes, -1 where none is known.
    slot: int
    life: Life
    # It has claimed nothing yet.
    is_starting: bool
    # It has nothing in hand, by its own word.
    is_idle: bool = False
    # It calls its job's `close`, and has the grace for that.
    is_leaving: bool = False
    # This parent has to reckon with it: it has started it or adopted it, or it takes one of its
    # slots.
    is_own: bool = True


class RankPast(msgspec.Struct, frozen=True):
    """What became of a slot's attempts in this epoch. Times are on the monotonic clock."""

    slot: Slot
    # Why attempts ended.
    reasons: frozenset[Reason] = frozenset()
    # The last attempts, oldest first, as far back as they matter.
    trials: tuple[Trial, ...] = ()
    # Those of all slots with this device. For CPU ranks these are the same.
    device_trials: tuple[Trial, ...] = ()
    # When the last attempt was seen to have ended.
    ended_at: float = 0.0
    # How many tasks of its fruitless row are complete.
    acquitted: int = 0
    # How many tasks of its last trial have failed in another place too.
    failed_elsewhere: int = 0
    # When the last task of its open attempt was seen to have failed; None where that has completed
    # one since.
    failed_at: float | None = None
    # Its open attempt has completed tasks, and failed none after them.
    gets_on: bool = False
    # An attempt of the slot completed a task in this epoch.
    has_completed: bool = False
    # An attempt of the slot got as far as to claim tasks in this epoch.
    has_begun: bool = True

    @property
    def number(self) -> int:
        return self.slot.number

    @property
    def device(self) -> str:
        """Its device, as no other slot of another host has it; "" for the CPU."""
        return self.slot.place if self.slot.device else ""

    @property
    def place(self) -> tuple[Trial, ...]:
        """The trials that tell of its place: its device, or the rank itself on the CPU."""
        if self.device:
            return self.device_trials
        return self.trials


class Snapshot(msgspec.Struct, frozen=True):
    """All that `decide` knows. Times are on the monotonic clock."""

    # How many tasks have no verdict, and how many positions of manifests nobody has claimed.
    tasks_left: int
    unclaimed: int
    open: Sequence[OpenAttempt]
    # What became of this parent's slots, in the order of these.
    past: Sequence[RankPast]
    # How many of all tasks have failed.
    failed: int = 0
    # What this parent was asked for, None for nothing.
    drain: Drain | None = None
    is_mending_due: bool = False
    # The journal of a closed attempt is shorter here than its closing says, and may be seen whole
    # in a moment.
    is_unsettled: bool = False
    # The spool was swept since the last launch.
    was_swept: bool = False
    # When the attempts were told that every task has a verdict, None before that.
    finished_at: float | None = None
    # The ranks that get no process before others have tried what failed there.
    without_news: frozenset[int] = frozenset()
    # Some doubtful tasks can be ruled now.
    is_ruling_due: bool = False
    # Only doubtful tasks are left, and some of them can be ruled later.
    is_ruling_awaited: bool = False
    # Only doubtful tasks are left, and verdicts on them are given.
    is_settling: bool = False
    # As in `Ground`.
    do_processes_break: bool = False
    # How many tasks there are, and how many of them are complete.
    tasks: int = 0
    complete: int = 0
    # So many tasks failed in this epoch and have no verdict, in so many attempts.
    doubtful: int = 0
    doubting: int = 0
    # When a task was finished last, and how many attempts have ended since, without those that
    # their job recycled.
    finished_last_at: float = 0.0
    barren: int = 0
    # The slots without an open attempt that must wait all the same: the process of their last one
    # still runs here, or an attempt in another slot uses their device too.
    occupied: frozenset[int] = frozenset()
    # The first rank of this start begins alone; and it does now, since nobody has imported the job
    # on this host yet.
    is_one_first: bool = False
    is_cold: bool = False
    # This parent does what one of all parents has to do.
    is_gatherer: bool = True
    # What became of the slots of other parents that are in play.
    elsewhere: Sequence[RankPast] = ()

    @property
    def everywhere(self) -> list[RankPast]:
        """What became of the attempts of all slots that are known."""
        return [*self.past, *self.elsewhere]

    @property
    def own(self) -> list[OpenAttempt]:
        """The open attempts that this parent has to reckon with."""
        return [one for one in self.open if one.is_own]


class Policy(msgspec.Struct, frozen=True):
    """What the user asked for: --max-restarts, --max-failed as a number of tasks, --keep-going and
    --grace.
    """

    max_restarts: int
    max_failed: int | None = None
    keep_going: bool = False
    grace_s: float = 0.0

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


class Rule(msgspec.Struct, frozen=True):
    """Rule about the tasks that failed and have no verdict."""


class Launch(msgspec.Struct, frozen=True):
    """Start the next attempt of a slot's rank; so many failures in a row shall end it.

    `is_doubted`: nothing was completed in its place lately, and tasks failed there.
    """

    slot: Slot
    patience: int = PATIENCE
    is_doubted: bool = False


class Kill(msgspec.Struct, frozen=True):
    """Kill an attempt of this host; nobody is blamed."""

    attempt: str


class Break(msgspec.Struct, frozen=True):
    """Begin a drain: nothing completes, so going on is in vain."""

    ending: Ending


class Sweep(msgspec.Struct, frozen=True):
    """Publish the tasks that no open attempt holds and no manifest offers."""


class End(msgspec.Struct, frozen=True):
    """The epoch is over."""

    ending: Ending


# What is done and changes nothing about the epoch; and, with the last, all that may be decided.
Act = Close | Mend | SayFinished | Stop | Rule | Launch | Kill | Break | Sweep
Action = Act | End

# After these the loop looks again at once: they change what is claimable, or who is draining. A
# launch or a kill shows only later, and the bell tells.
CHANGING = (Close, Mend, Rule, Sweep, Stop, Break)


def decide(snapshot: Snapshot, policy: Policy, now: float) -> list[Action]:
    """The next actions, to be done in this order; none means wait."""
    dead = _with_life(snapshot, Life.DEAD)
    if dead:
        return [Close(dead)]
    if snapshot.is_mending_due and snapshot.is_gatherer:
        return [Mend()]
    if snapshot.tasks_left == 0:
        return _finish(snapshot, policy, now)
    if snapshot.is_ruling_due and snapshot.is_gatherer:
        return [Rule()]
    if snapshot.drain is not None:
        # Its grace is for all that they do.
        kill_at = snapshot.drain.kill_at
        return _await_end(snapshot, snapshot.drain.ending, kill_at, kill_at, now)
    if policy.is_too_many(snapshot.failed) and snapshot.is_gatherer:
        return [Stop()]
    if not snapshot.own and _loads_nowhere(snapshot, policy):
        return [End(Ending.LOAD)]
    if snapshot.doubtful and snapshot.is_gatherer and not policy.keep_going:
        found = _where_tasks_only_fail(snapshot, now)
        if found is not None:
            return [found]
    if snapshot.unclaimed:
        return _launches(snapshot, policy, now)
    is_awaited = snapshot.open or snapshot.is_unsettled or snapshot.is_ruling_awaited
    if is_awaited or not snapshot.is_gatherer:
        return []
    if not snapshot.was_swept:
        return [Sweep()]
    return [End(Ending.STUCK)]


def _with_life(snapshot: Snapshot, life: Life) -> tuple[str, ...]:
    """The names of the open attempts of which this is known."""
    return tuple(attempt.name for attempt in snapshot.open if attempt.life is life)


def _finish(snapshot: Snapshot, policy: Policy, now: float) -> list[Action]:
    """Every task has a verdict: see the open attempts off."""
    said: list[Action] = []
    said_at = snapshot.finished_at
    if said_at is None:
        said_at = now
        if snapshot.open:
            said.append(SayFinished())
    kill_at = said_at + FAREWELL_S
    # Whoever closes its job keeps to the grace by itself, unless it cannot.
    kill_leaving_at = kill_at + policy.grace_s
    return said + _await_end(snapshot, Ending.FINISHED, kill_at, kill_leaving_at, now)


def _await_end(
    snapshot: Snapshot, ending: Ending, kill_at: float, kill_leaving_at: float, now: float
) -> list[Action]:
    """Wait for the attempts that live here, kill them from `kill_at` on, and end once none does.

    Those that call their job's `close` are killed from `kill_leaving_at` on. Nobody waits for what
    may live elsewhere: it ends itself, or is closed by its own parent or by the next resume.
    """
    here = [attempt for attempt in snapshot.open if attempt.life is Life.ALIVE]
    if not here:
        return [End(ending)]
    kills: list[Action] = []
    for attempt in here:
        if now >= (kill_leaving_at if attempt.is_leaving else kill_at):
            kills.append(Kill(attempt.name))
    return kills


def _loads_nowhere(snapshot: Snapshot, policy: Policy) -> bool:
    """Whether every attempt that ended had failed to load its job, and at least one did.

    Where one began alone, that says nothing of the slots that waited for it: as many must have
    tried as there is work for.
    """
    reasons: set[Reason] = set()
    for rank in snapshot.past:
        reasons |= rank.reasons
    if reasons != {Reason.LOAD}:
        return False
    if not snapshot.is_one_first:
        return True
    n_tried = sum(bool(rank.reasons) for rank in snapshot.past)
    is_any_untried = any(not rank.reasons for rank in _able(snapshot, policy))
    return n_tried >= snapshot.unclaimed or not is_any_untried


def _where_tasks_only_fail(snapshot: Snapshot, now: float) -> Action | None:
    """What is done where tasks fail and nothing is finished; None where that may change by itself.

    As long as doubtful tasks are given out again and again, something is always claimable. So what
    is stranded must be looked for meanwhile: it may be all that can complete.
    """
    if _is_broken(snapshot):
        return Break(Ending.BROKEN)
    if _is_outage(snapshot, now):
        return Break(Ending.OUTAGE)
    if snapshot.barren and not snapshot.open and not snapshot.was_swept:
        return Sweep()
    return None


def _is_broken(snapshot: Snapshot) -> bool:
    """Whether the job fails whatever it is given: nothing ever completed, everywhere.

    It takes many different tasks, or all that there are, and two processes at least. And every rank
    that runs must have failed a row of tasks in processes before this one, unless no task is left
    that it could try: a few bad inputs say nothing of a job, and neither do many that failed on one
    sick device, while another was about to begin.
    """
    if snapshot.complete or snapshot.doubting < OPINIONS:
        return False
    if snapshot.doubtful >= snapshot.tasks_left:
        return True
    if snapshot.doubtful < broken_tasks(snapshot.tasks):
        return False
    busy = {attempt.slot for attempt in snapshot.open}
    return all(_has_failed_a_row(rank) for rank in snapshot.everywhere if rank.number in busy)


def _has_failed_a_row(rank: RankPast) -> bool:
    """Whether so many tasks failed in a place as end a process."""
    return sum(trial.failed for trial in rank.place) >= PATIENCE


def _is_outage(snapshot: Snapshot, now: float) -> bool:
    """Whether tasks only fail, and have for so long that waiting on is in vain.

    A rank whose last failure was long ago works on a long task, which may yet complete, unless it
    has nothing in hand.
    """
    if now - snapshot.finished_last_at < OUTAGE_S:
        return False
    busy = {attempt.slot for attempt in snapshot.open if not attempt.is_idle}
    for rank in snapshot.everywhere:
        is_failing = rank.failed_at is not None and now - rank.failed_at < FAILING_S
        if rank.number in busy and not is_failing:
            return False
    return True


def is_outage_likely(snapshot: Snapshot) -> bool:
    """Whether something was finished in this run, and now tasks fail in every place."""
    if not snapshot.complete or not snapshot.doubtful or snapshot.drain is not None:
        return False
    return all(map(_is_in_doubt, snapshot.everywhere))


def _launches(snapshot: Snapshot, policy: Policy, now: float) -> list[Action]:
    """The launches for what is claimable; the end of the epoch where nobody is left to launch."""
    able = _able(snapshot, policy)
    if not able and not snapshot.own:
        return [End(Ending.GAVE_UP)]
    # A process that has not ended yet holds memory, also on its device, so the next one there waits
    # for that. Those slots are `occupied` as long as the parent has patience with the process.
    ready = [rank for rank in able if restart_at(rank, snapshot) <= now]
    ready = [rank for rank in ready if rank.number not in snapshot.occupied]
    # An attempt that has claimed nothing yet will claim something, so it counts as work that is
    # taken: else the last few tasks would have every rank started for them. If it dies before it
    # claims anything, the tasks are still unclaimed and the next look starts somebody else.
    starting = {attempt.slot for attempt in snapshot.own if attempt.is_starting}
    # But a rank whose job has never loaded in this epoch may never load it: it takes no work from
    # one that has worked before.
    if any(rank.has_begun for rank in ready):
        starting &= {rank.number for rank in snapshot.past if rank.has_begun}
    n_wanted = max(0, snapshot.unclaimed - len(starting))
    n_wanted = min(n_wanted, _most_at_once(snapshot, able))
    # Who has waited longest comes first, so that all places are tried in turn.
    ready.sort(key=lambda rank: rank.ended_at)
    launches: list[Action] = []
    for rank in ready[:n_wanted]:
        patience = patience_after(
            rank.place,
            snapshot.is_settling,
            is_new=not snapshot.complete,
            do_processes_break=snapshot.do_processes_break,
        )
        launches.append(Launch(rank.slot, patience, _is_in_doubt(rank)))
    return launches


def _most_at_once(snapshot: Snapshot, able: Sequence[RankPast]) -> int:
    """How many may be launched now.

    Mostly as many as are able to. One place after the other is tried in an outage: each try costs
    some tasks' failures, and one that completes something ends the outage for all. And where
    imports come over a network, the first rank of a host imports its job alone.
    """
    is_outage = not snapshot.is_settling and all(map(_is_in_doubt, snapshot.everywhere))
    if not snapshot.is_cold and not is_outage:
        return len(able)
    return 0 if snapshot.own else 1


def _is_in_doubt(rank: RankPast) -> bool:
    """Whether nothing was completed in a place lately, and tasks failed there."""
    if rank.gets_on:
        return False
    return any(trial.failed for trial in fruitless_row(rank.place))


def _able(snapshot: Snapshot, policy: Policy) -> list[RankPast]:
    """The slots without an open attempt whose rank and device were not given up."""
    busy = {attempt.slot for attempt in snapshot.own}
    sick = sick_devices(snapshot.past, policy.max_restarts)
    able: list[RankPast] = []
    for rank in snapshot.past:
        if rank.number in busy or rank.device in sick:
            continue
        if strikes(rank.trials) <= policy.max_restarts:
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
    moments = [restart_at(rank, snapshot) for rank in _able(snapshot, policy)]
    later = [moment for moment in moments if moment > now]
    return min(later, default=None)


def restart_at(past: RankPast, snapshot: Snapshot) -> float:
    """From when on the slot's next attempt may be launched."""
    if past.number in snapshot.without_news:
        return past.ended_at + NEWS_S
    barren_rounds = snapshot.barren // max(1, len(snapshot.past))
    return past.ended_at + pause_s(past.place, barren_rounds)


def ranks_without_news(
    past: Sequence[RankPast], open_attempts: Sequence[OpenAttempt]
) -> frozenset[int]:
    """The ranks that get no process before somebody else has tried what failed there.

    None where nobody gets on who could: somebody whose attempt is open, and against whose place
    nothing speaks.
    """
    running = {attempt.slot for attempt in open_attempts}
    waiting: set[int] = set()
    does_anybody_get_on = False
    for rank in past:
        if rank.number in running:
            is_in_order = rank.gets_on or not fruitless_row(rank.place)
            does_anybody_get_on |= is_in_order and rank.failed_at is None
        elif awaits_news(rank.place, rank.acquitted, rank.failed_elsewhere):
            waiting.add(rank.number)
    return frozenset(waiting) if does_anybody_get_on else frozenset()


def trusted_devices(past: Sequence[RankPast], max_restarts: int) -> frozenset[str]:
    """The names of the devices whose opinions of tasks count.

    Those that nothing speaks against; where something speaks against all, those not given up. One
    on which no job has loaded yet, or ever will, is not waited for.
    """
    given_up = sick_devices(past, max_restarts)
    in_play = [rank for rank in past if rank.device not in given_up and rank.has_begun]
    sound = [rank for rank in in_play if not strikes(rank.place, of_device=True)]
    return frozenset(rank.slot.place for rank in sound or in_play)


def working_devices(past: Sequence[RankPast]) -> frozenset[str]:
    """The names of the devices on which a task completed in this epoch."""
    return frozenset(rank.slot.place for rank in past if rank.has_completed)


def sick_devices(past: Sequence[RankPast], max_restarts: int) -> set[str]:
    """The devices that more than `max_restarts` trials in a row speak against.

    CPU ranks share theirs with everybody and are never counted so.
    """
    sick: set[str] = set()
    for rank in past:
        if rank.device and strikes(rank.device_trials, of_device=True) > max_restarts:
            sick.add(rank.device)
    return sick
