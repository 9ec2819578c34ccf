"""Who is to blame for a failure: the task, or the place where it ran.

A failure (an exception, an exit status, a crash, a time-out) speaks against its task, and against
the device and the process in which it happened. One failure alone decides nothing: it is an
`Opinion`, and the task is held back until there are more. One theory answers both questions:

- **The task is to blame** when it failed in two places and each of them completed another task
  afterwards. An outage, a broken process and a broken device complete nothing, so they can fail no
  good task.
- **The place is to blame** when process after process there completes nothing, while the tasks that
  failed there complete elsewhere.
- **Nobody is to blame** as long as nothing completes anywhere. If nothing ever did, the job is
  broken, and the run ends early. Otherwise this is an outage, which is waited out.

A place is a device where a run has several of them, else a process: CPU ranks share one device.

When only doubtful tasks are left, no place can prove itself by completing another one. In this last
phase a failure counts without that proof, if the task has been proved bad elsewhere before, or if
the phase has lasted long enough to rule out an outage of some moments.

Some processes break by use: they complete tasks, and from some moment on they fail all others, or
die. Where that was seen, an opinion is worth less if its process may just have broken, and a fresh
process must agree.

A failure for which a file system in trouble was seen to be the cause is no opinion. Its task is
tried again after a while, as long as it takes.

All functions are pure. `rulings.py` and `snapshot.py` gather the facts for them, and
tests/test_blame_worlds.py runs them in simulated worlds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, auto

import msgspec

from gpuspool.spool.records import USUAL_PATIENCE

# So many failures in a row, with nothing completed between them, end a process: it may be broken,
# and a fresh one may not be. Every fourth task of a manifest comes from its other end, so a block
# of bad inputs is no such row; and with a quarter of all inputs bad at random, a healthy process is
# ended for nothing once in four thousand tasks.
PATIENCE = USUAL_PATIENCE

# The patience with a fresh process in a place where the last one completed nothing. It only has to
# show whether the place is in order.
NEXT_PATIENCE = 2

# The patience once only doubtful tasks are left, and verdicts are given: each failure is expected.
LAST_PATIENCE = 50

# So many places must have an opinion of a task before it fails, and so many in the last phase if
# none of them has proved itself.
OPINIONS = 2
UNPROVEN_OPINIONS = 3
# So many crashes are wanted if each was in a process that had completed tasks before. That one may
# have been about to die, whatever it did next, and two such processes may well meet one task.
UNSURE_CRASHES = 3

# How long nothing must complete in the last phase before opinions count that no place has
# confirmed: so many seconds for each task without a confirmed opinion, since an outage strikes
# many, and a bad end of a list strikes few.
LAST_S_PER_TASK = 5.0
# It is never longer than this.
LAST_S = 300.0
# Neither is it longer than this part of the run's time so far, or than the time for one task.
LAST_FRACTION = 0.25

# If more than this part of a run's tasks, and more than a few, have no confirmed opinion in the
# last phase, they are hardly all bad. Then an outage is waited for to its end, also in a short run.
PLAUSIBLE_FRACTION = 0.15
PLAUSIBLE_TASKS = 10

# So many different tasks must have failed, and none may have completed, before a job counts as
# broken; in a small run it takes a part of all tasks. With a quarter of all inputs bad, at random
# or all of them in front, that does not happen.
BROKEN_TASKS = 16
BROKEN_FRACTION = 1 / 3

# If nothing is finished for so long, an outage is not waited out any more: the run ends, and the
# same command goes on later.
OUTAGE_S = 900.0

# An attempt that failed a task so long ago, and has ended none since, works on a long one.
FAILING_S = 450.0

# The pauses before a restart double from the first to the last of these, in seconds: where tasks
# failed, and where a process failed with no task in hand.
FIRST_PAUSE_S = 0.5
FIRST_FAULT_PAUSE_S = 1.0
MOST_PAUSE_S = 30.0

# A task that was kept from running by a file system in trouble is tried again after the first of
# these, in seconds, and after twice as long each time, up to MOST_PAUSE_S.
FIRST_EXCUSE_S = 1.0
# Of many that wait so, this many are tried at once at first, and so many a second after that: each
# try leaves files behind. Two more may be tried for each that completes, so all are at work again
# in moments once the trouble is over.
EXCUSED_AT_ONCE = 20.0
EXCUSED_A_SECOND = 1.0
EXCUSED_FOR_EACH = 2.0

# A task that failed in several places, where no place can prove itself any more, is tried again
# after so many seconds, and after twice as long each time, up to NEWS_S.
FIRST_UNPROVED_S = 1.0

# A place in doubt waits for the second opinions about its tasks before it gets another process, but
# no longer than this while others get on.
NEWS_S = 300.0


class Opinion(msgspec.Struct, frozen=True):
    """One attempt's failure of one task.

    attempt, device: where. is_confirmed: the place completed another task afterwards. since_s: when
    the failure was first seen, on the monotonic clock. is_sure: the process had not just broken,
    since it completed another task itself afterwards, or had completed none before. is_crash: the
    process died of it.
    """

    attempt: str
    device: str
    is_confirmed: bool
    since_s: float
    is_sure: bool = True
    is_crash: bool = False


class Ground(msgspec.Struct, frozen=True):
    """What is known of the run when tasks are judged.

    devices: those whose opinions count; with one or none, places are processes. working: those on
    which a task completed since this start. quiet_since_s: since when all unfinished tasks are
    doubtful and none of them completed; None while some are not doubtful. unproven: how many of
    these have no confirmed opinion, or no sure one where processes break. elapsed_s: how long this
    epoch has been going on. now: the monotonic clock. tasks: how many the run has.
    do_processes_break: a process failed a task after it had completed others, and the task
    completed elsewhere.
    """

    devices: frozenset[str]
    working: frozenset[str]
    quiet_since_s: float | None
    unproven: int
    elapsed_s: float
    now: float
    tasks: int
    do_processes_break: bool = False

    @property
    def is_like_an_outage(self) -> bool:
        """Whether so many tasks have no confirmed opinion that they are hardly all bad."""
        return self.unproven > max(PLAUSIBLE_TASKS, PLAUSIBLE_FRACTION * self.tasks)

    @property
    def is_old(self) -> bool:
        """Whether the last phase has lasted so long that opinions count without a proof."""
        return self.old_in_s <= 0

    @property
    def old_in_s(self) -> float:
        """In how many seconds the last phase will have lasted so long; infinite before it."""
        if self.quiet_since_s is None:
            return math.inf
        most_s = max(LAST_S_PER_TASK, LAST_FRACTION * self.elapsed_s)
        wanted_s = min(LAST_S, most_s, LAST_S_PER_TASK * self.unproven)
        if self.is_like_an_outage:
            wanted_s = LAST_S
        return self.quiet_since_s + wanted_s - self.now


class Finding(Enum):
    """What is to be done with a doubtful task."""

    # It has failed for good.
    FAIL = auto()
    # It must be tried in another place.
    AGAIN = auto()
    # It has been tried enough; only time must pass before it has failed.
    WAIT = auto()


def rule(opinions: Sequence[Opinion], ground: Ground, least: int = OPINIONS) -> Finding:
    """Whether a doubtful task has failed.

    least: it takes so many opinions; --max-crashes asks for more where the worker crashed each
    time.
    """
    counted = [one for one in opinions if one.device in ground.devices]
    if len(counted) < max(least, OPINIONS):
        return Finding.AGAIN
    if not any(one.is_sure for one in counted):
        is_few = len(counted) < UNSURE_CRASHES and all(one.is_crash for one in counted)
        if ground.do_processes_break or is_few:
            return Finding.AGAIN
    confirmed = [one for one in counted if one.is_confirmed]
    if _n_places(confirmed, ground) >= OPINIONS:
        return Finding.FAIL
    if ground.quiet_since_s is None:
        return Finding.AGAIN
    return _rule_in_last_phase(counted, confirmed, ground)


def _rule_in_last_phase(
    counted: Sequence[Opinion], confirmed: Sequence[Opinion], ground: Ground
) -> Finding:
    """Whether a task has failed that too few places have confirmed, when only such are left."""
    assert ground.quiet_since_s is not None, "the last phase has begun"
    # What was not confirmed before counts for nothing: there was an outage, or a place was not in
    # order.
    late = [one for one in counted if one.since_s >= ground.quiet_since_s and not one.is_confirmed]
    if ground.do_processes_break:
        # One that had just broken proves nothing, whatever its place completed afterwards, and a
        # broken device would agree with it.
        late = [one for one in late if one.is_sure]
        confirmed = [one for one in confirmed if one.is_sure]
    is_proved = bool(confirmed)
    if _n_places([*confirmed, *late], ground) < _n_wanted(is_proved, ground):
        return Finding.AGAIN
    if not is_proved and not _has_met_all(late, ground):
        return Finding.AGAIN
    if is_proved or ground.is_old:
        return Finding.FAIL
    # Whether an outage is over shows only where something is tried.
    return Finding.AGAIN if ground.is_like_an_outage else Finding.WAIT


def _has_met_all(late: Sequence[Opinion], ground: Ground) -> bool:
    """Whether a task without a confirmed opinion failed on every device that works.

    Broken devices agree with each other, also those that worked before.
    """
    return ground.working & ground.devices <= {one.device for one in late}


def _n_places(opinions: Sequence[Opinion], ground: Ground) -> int:
    """In how many different places these failures happened."""
    if len(ground.devices) > 1:
        return len({one.device for one in opinions})
    return len({one.attempt for one in opinions})


def _n_wanted(is_proved: bool, ground: Ground) -> int:
    """How many places must have an opinion of a task in the last phase."""
    if is_proved or len(ground.devices) <= OPINIONS:
        return OPINIONS
    return UNPROVEN_OPINIONS


class Trial(msgspec.Struct, frozen=True):
    """What became of one attempt, as evidence for or against its place.

    completed: how many tasks it completed. failed: how many failed in it or took it along.
    acquitted, convicted: how many of these are complete by now, or have failed for good. known: how
    many tasks that failed in the place had been acquitted when the attempt was launched. is_fault:
    it failed with no task in hand, so no task can be to blame; is_trouble: with a file system in
    trouble, which speaks against no device. is_excused: such trouble failed each of these tasks.
    is_silent: it says nothing, since somebody ended it, it found nothing to do, or nobody saw how
    it ended.
    """

    completed: int = 0
    failed: int = 0
    acquitted: int = 0
    convicted: int = 0
    known: int = 0
    is_fault: bool = False
    is_trouble: bool = False
    is_excused: bool = False
    is_silent: bool = False

    @property
    def is_explained(self) -> bool:
        """Whether all the tasks that failed in it have been found to be at fault."""
        return 0 < self.failed == self.convicted

    @property
    def is_fruitless(self) -> bool:
        """Whether it completed nothing, and something failed."""
        return not self.completed and (self.failed > 0 or self.is_fault)


def fruitless_row(trials: Sequence[Trial]) -> list[Trial]:
    """The last trials of a place that failed and completed nothing, oldest first."""
    row: list[Trial] = []
    for trial in reversed(trials):
        if trial.completed:
            break
        if trial.is_silent or trial.is_explained:
            continue
        if not trial.is_fruitless:
            break
        row.append(trial)
    row.reverse()
    return row


def strikes(trials: Sequence[Trial], of_device: bool = False) -> int:
    """How many of the last trials of a place speak against the place, or against its device.

    A trial without a task in hand does. One in which tasks failed does if one of these completed
    elsewhere. But of all trials that were launched between two such acquittals only one counts: an
    outage may have been the cause of them, and who is launched afterwards proves whether it was.
    """
    count = 0
    known = -1
    for trial in fruitless_row(trials):
        if trial.is_fault:
            count += not (of_device and trial.is_trouble)
        elif trial.acquitted and trial.known > known:
            known = trial.known
            count += 1
    return count


def broken_tasks(n_tasks: int) -> int:
    """How many different tasks of a run must fail, and none complete, before its job is broken."""
    return min(BROKEN_TASKS, max(1, math.ceil(BROKEN_FRACTION * n_tasks)))


def patience_after(
    trials: Sequence[Trial], is_settling: bool, is_new: bool, do_processes_break: bool = False
) -> int:
    """How many failures in a row shall end the next process of a place that had these trials.

    is_settling: only doubtful tasks are left, and verdicts are given. is_new: nothing completed in
    this run yet, so nobody knows whether the job works at all. do_processes_break: as in `Ground`.
    """
    if is_settling:
        return PATIENCE if do_processes_break else LAST_PATIENCE
    if is_new:
        return PATIENCE
    if any(trial.failed for trial in fruitless_row(trials)):
        return NEXT_PATIENCE
    return PATIENCE


def awaits_news(trials: Sequence[Trial], acquitted: int, failed_elsewhere: int) -> bool:
    """Whether a place should get no process before there is a second opinion of its last tasks.

    acquitted: how many tasks of its fruitless row are complete. failed_elsewhere: how many tasks of
    its last trial have failed in another place too. A first fresh process is given at once, since
    it may be all that is needed.
    """
    row = fruitless_row(trials)
    if len(row) < 2 or row[-1].is_fault or row[-1].is_excused:
        return False
    return acquitted <= row[-1].known and not failed_elsewhere


def pause_s(trials: Sequence[Trial], barren_rounds: int) -> float:
    """How long a place waits for its next process after those that it had.

    barren_rounds: how many processes each place of the run has had, on the average, since a task
    was finished anywhere.
    """
    row = fruitless_row(trials)
    if not row:
        return 0.0
    faults = 0
    while faults < len(row) and row[-1 - faults].is_fault:
        faults += 1
    if faults:
        return _doubled(FIRST_FAULT_PAUSE_S, faults)
    return _doubled(FIRST_PAUSE_S, max(strikes(trials), barren_rounds) - 1)


def excuse_pause_s(times: int) -> float:
    """How long a task waits that a file system in trouble kept from running so many times."""
    return _doubled(FIRST_EXCUSE_S, times)


def unproved_pause_s(n_opinions: int) -> float:
    """How long a task waits that failed so many times, where no place can prove itself just now.

    All other tasks are in hand, so another failure would prove nothing: that it completes after all
    is all that can be found out. Meanwhile each try may take a process that loads the job anew.
    """
    return _doubled(FIRST_UNPROVED_S, n_opinions - OPINIONS, NEWS_S)


def _doubled(first_s: float, times: int, most_s: float = MOST_PAUSE_S) -> float:
    """The pause after so many failures: after one it is `first_s`, then twice as long each time."""
    if times < 1:
        return 0.0
    doublings = min(times - 1, 16)
    return min(first_s * 2.0**doublings, most_s)
