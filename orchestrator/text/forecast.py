"""How long a run will take yet, learned from what ran in it. Pure: no file and no clock is read.

Nobody knows what a cost means. It may be bytes that take their time, bytes that take none, or a
number that somebody made up. So three laws are tried on what ran: each task takes as long as
another; a task takes as long as its cost says; it takes some time whatever it costs, and more with
its cost. Each law is judged by how well it would have told each task from the others, and what they
tell is averaged by that. So few tasks, which prove nothing, give a compromise, and many give the
law that holds.

What a law tells is the share of the work that is left, in seconds of its own. What such a second
takes in truth is measured by itself: how long the ranks were at work on what was finished in this
start, with claims, inputs and outputs, and without loading the job or waiting for others; only
where processes are recycled, loading it again is part of the work. That part is right even where no
law is. Time left is what is left of the work, by the ranks that work now.

A parent's `Telling` feeds it with what the view reads, and `report.outlook` does for whoever looks
at a run from outside; both ask it where something is to be shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from gpuspool.spool.layout import rank_of

# Before the ranks have worked for so many seconds, all together, a rate would be that of a moment:
# twenty tiny tasks say that half a million are done a second.
RATE_FROM_S = 1.0
# So many calls are kept to learn from. Once there are more, every second one is let go of, and of
# the later ones as few are kept: they stand for the whole run, and cost little to look at.
SAMPLES = 512
# Of the tasks of one call so many are kept.
MOST_OF_CALL = 64
# After a task that took less than this, so many bytes of its journal are passed over: to learn from
# each of a million tiny tasks would take longer than to account for it.
TINY_S = 0.002
PASSED_OVER_BYTES = 8192
# With fewer tasks than this a law with two numbers is not tried: it fits any two tasks.
LEAST_FOR_TWO = 5
# A law is judged by leaving out one part in so many at a time.
FOLDS = 5
# The laws are made anew whenever there are so many times more tasks to learn from.
RELEARN = 1.1
# No task is expected to take less than this part of the mean: a law that says 0 says too much.
LEAST_PART = 0.001
# What a rank has in hand is asked for only once it was silent for so long: with short tasks that
# costs more than it tells.
BEGUN_LEAST_S = 0.2
# A call that takes longer than expected is expected to go on for this part of what it is late by.
OVERDUE_PART = 0.5
# Before so many calls have ended the longest of them tells nothing of others.
LEAST_ENDED = 5
# A rank whose silence is so many times longer than any that ended is not counted on any more,
SILENT_TIMES = 4.0
# but no silence that is shorter than this tells anything.
SILENT_LEAST_S = 10.0


class Law(msgspec.Struct, frozen=True):
    """That a task takes `per_task` seconds, and `per_cost` for each unit of its cost."""

    per_task: float
    per_cost: float

    def seconds(self, tasks: float, cost: float) -> float:
        """How long so many tasks take, which cost so much together."""
        return self.per_task * tasks + self.per_cost * cost


class Work(msgspec.Struct, frozen=True):
    """How many tasks there are, and what they cost together."""

    tasks: int
    cost: float


class Outlook(msgspec.Struct, frozen=True):
    """How a run gets on, as far as that is known.

    tasks_per_s: how many are finished a second, by the ranks that work now. left_s: until the last.
    longest_s: how long the longest task took that was seen to end, once some were; of a call of
    several tasks its share.
    """

    tasks_per_s: float | None = None
    left_s: float | None = None
    longest_s: float | None = None


class _Times(msgspec.Struct):
    """What is known of the time of one attempt.

    seen_at, news_at: when it was seen first, and when a line of it was read last, on the reader's
    clock. began, start: when its first and its last call began, on its own clock. tasks: some of
    those that the last call finished; n_tasks: how many it had; took_s: how long it took. worked_s:
    how long the attempt was at work before it waited for others last. is_resting: it waits for
    others now. is_fresh: a line of it was read since the last look.
    """

    seen_at: float
    news_at: float | None = None
    began: float | None = None
    start: float = 0.0
    took_s: float = 0.0
    tasks: list[int] = msgspec.field(default_factory=list)
    n_tasks: int = 0
    worked_s: float = 0.0
    is_resting: bool = False
    is_fresh: bool = False

    @property
    def spent_s(self) -> float:
        """How long it was at work, up to the end of its last call."""
        if self.began is None:
            return self.worked_s
        return self.worked_s + max(0.0, self.start + self.took_s - self.began)


class _Call(msgspec.Struct, frozen=True):
    """What an attempt has in hand: so many tasks, what they cost, and since when."""

    tasks: int
    cost: float
    begun_s: float


class Forecast:
    """What was learned of the tasks and the ranks of one run since it was started."""

    def __init__(self, finished: Work, is_cost_known: Callable[[int], bool] | None = None) -> None:
        """finished: what was finished before this start, which says nothing of its pace.

        is_cost_known: whether it is known what a task costs; None: of every one. A task of unknown
        cost tells how long ranks were at work, and nothing of the law.
        """
        self._before = finished
        self._is_cost_known = is_cost_known
        # Calls that are over: (some of its tasks, the seconds of each). Each `_every`th is kept.
        self._samples: list[tuple[list[int], float]] = []
        self._every = 1
        self._n_calls = 0
        # How many calls were heard of.
        self._n_begun = 0
        # How many lines were given, and how long their tasks took together.
        self._given = 0
        self._given_s = 0.0
        self._law: Law | None = None
        # How many lines had been given when that was made.
        self._learned_at = 0
        self._times: dict[str, _Times] = {}
        # How long the attempts that are closed were at work.
        self._spent_s = 0.0
        # By rank: when its recycled process was done, until a later one has finished something.
        self._recycled_at: dict[int, float] = {}
        # The longest waits that ended: for the first line of a rank, and for another.
        self._longest_first_s = 0.0
        self._longest_s = 0.0
        # The longest share that a task had of a call that ended.
        self._longest_task_s = 0.0

    # What the view reads.

    def take(self, attempt: str, at: int, task: int, start: float, seconds: float) -> int:
        """A call with this task ended, as the line at an offset of the attempt's journal tells.

        start: when the call began, on the clock of the attempt. seconds: the task's share of it.
        Returns the offset from which on another line is wanted.
        """
        times = self._hear(attempt, 1, start, seconds)
        self._given += 1
        self._given_s += seconds
        if len(times.tasks) < MOST_OF_CALL and self._is_known(task):
            times.tasks.append(task)
        return at if seconds >= TINY_S else at + PASSED_OVER_BYTES

    # A try that failed, a step of a long task, a batch that is split: none of these says how long a
    # task takes. But the rank was at work meanwhile, and its next call begins after that.
    def put_off(self, attempt: str, tasks: int, start: float, seconds: float) -> None:
        """A call with so many tasks ended that have no verdict by it. The rest as for `take`."""
        self._hear(attempt, tasks, start, seconds)

    def _hear(self, attempt: str, tasks: int, start: float, seconds: float) -> _Times:
        """Of so many tasks of a call something was read; seconds: the share of each."""
        times = self._times.setdefault(attempt, _Times(math.nan))
        times.is_fresh = True
        times.is_resting = False
        if times.began is None:
            times.began = self._recycled_at.pop(rank_of(attempt), start)
        if start != times.start:
            self._keep_call(times)
            self._n_begun += 1
            times.start, times.took_s, times.tasks, times.n_tasks = start, 0.0, [], 0
        times.took_s += seconds * tasks
        times.n_tasks += tasks
        self._longest_s = max(self._longest_s, times.took_s)
        self._longest_task_s = max(self._longest_task_s, seconds)
        return times

    def _is_known(self, task: int) -> bool:
        return self._is_cost_known is None or self._is_cost_known(task)

    def _keep_call(self, times: _Times) -> None:
        """Keep the last call of an attempt to learn from, once it is over."""
        if not times.tasks:
            return
        self._n_calls += 1
        if self._n_calls % self._every == 0:
            self._samples.append((times.tasks, times.took_s / times.n_tasks))
            if len(self._samples) > SAMPLES:
                self._samples = self._samples[::2]
                self._every *= 2

    def rest(self, attempt: str) -> None:
        """The attempt has nothing to do from here on, until its next line."""
        self._recycled_at.pop(rank_of(attempt), None)
        times = self._times.setdefault(attempt, _Times(math.nan))
        times.worked_s = times.spent_s
        times.began = None
        times.is_resting = True

    def end(self, attempt: str, at: float, is_recycled: bool) -> None:
        """The attempt is closed. is_recycled: a fresh process goes on in its place.

        To start that and to load the job again is part of the work then, since it comes again and
        again: where a process lasts for few tasks, it may take most of the time. So are processes
        that finish nothing, whose tasks are not done. at: when it ended, on its clock, which is
        that of the next one of its rank.
        """
        times = self._times.pop(attempt, None)
        if times is not None:
            self._keep_call(times)
            self._spent_s += times.spent_s
            if times.began is not None:
                at = times.start + times.took_s
        if is_recycled:
            self._recycled_at.setdefault(rank_of(attempt), at)

    def note(
        self, working: Collection[str], now: float, heard: Mapping[str, float] | None = None
    ) -> None:
        """What could be read by now was given. working: the attempts that are open.

        heard: when attempts have finished a call last, by the same clock as `now`, for a reader who
        may have come long after that. Of all others it is taken to be now.
        """
        heard = heard or {}
        for attempt in working:
            times = self._times.setdefault(attempt, _Times(now))
            if math.isnan(times.seen_at):
                times.seen_at = now
        for attempt, times in self._times.items():
            if attempt in heard:
                times.news_at = heard[attempt]
                times.is_fresh = False
            if not times.is_fresh:
                continue
            times.is_fresh = False
            if times.news_at is None:
                self._longest_first_s = max(self._longest_first_s, now - times.seen_at)
            else:
                self._longest_s = max(self._longest_s, now - times.news_at)
            times.news_at = now

    # What is told.

    @property
    def longest_task_s(self) -> float | None:
        """How long the longest task took of the calls that were seen to end; None before some were.

        Of a call of several tasks each took its share.
        """
        return self._longest_task_s if self._n_begun >= LEAST_ENDED else None

    def outlook(
        self,
        whole: Work,
        finished: Work,
        working: Collection[str],
        cost_of: Callable[[int], float],
        in_hand: Callable[[str, int], Sequence[float]],
        now: float,
    ) -> Outlook:
        """How the run gets on.

        whole: all its tasks. finished: those that are complete or failed. working: the attempts
        that are open. cost_of: what a task costs. in_hand: what the tasks cost that an attempt is
        at, at most so many.
        """
        if finished.tasks >= whole.tasks:
            return Outlook(left_s=0.0)
        law = self._learn(cost_of)
        done = Work(finished.tasks - self._before.tasks, finished.cost - self._before.cost)
        if law is None or done.tasks <= 0:
            return Outlook()
        calls = self._calls(self._counted_on(working, now), in_hand, now)
        calls += [_Call(0, 0.0, 0.0)] * self._n_between(working)
        # What takes longer than the law says is something to learn from before it has ended.
        overdue = [call for call in calls if call.begun_s > law.seconds(call.tasks, call.cost)]
        if overdue:
            law = self._law_of(cost_of, overdue)
        spent_s = self._spent_s + sum(times.spent_s for times in self._times.values())
        done_s = law.seconds(done.tasks, done.cost)
        for call in overdue:
            spent_s += call.begun_s
            done_s += law.seconds(call.tasks, call.cost)
        # With what has taken too long already: where all ranks hang, less and less is finished.
        rate = len(calls) * done.tasks / spent_s if spent_s >= RATE_FROM_S else None
        whole_s = law.seconds(whole.tasks, whole.cost)
        # Costs may be so large that they cannot be reckoned with.
        is_known = 0 < done_s < math.inf and 0 < whole_s < math.inf
        if not is_known or not calls:
            return Outlook()
        left = Work(whole.tasks - finished.tasks, max(0.0, whole.cost - finished.cost))
        left_s = _until_the_last(left, law, spent_s / done_s, calls)
        return Outlook(rate, left_s, self.longest_task_s)

    def _counted_on(self, working: Collection[str], now: float) -> list[str]:
        """The open attempts that get on, as far as can be told; where none seems to, those that
        have something to do; else all.
        """
        known = [name for name in working if name in self._times]
        at_work = [name for name in known if not self._times[name].is_resting]
        get_on = [name for name in at_work if self._gets_on(self._times[name], now)]
        return get_on or at_work or known

    def _n_between(self, working: Collection[str]) -> int:
        """How many ranks are between two processes: one was recycled, and none is open."""
        busy = set(map(rank_of, working))
        return sum(rank not in busy for rank in self._recycled_at)

    def _gets_on(self, times: _Times, now: float) -> bool:
        """Whether an attempt is not silent for longer than any has been."""
        longest_s = self._longest_s
        since = times.news_at
        if since is None:
            since = times.seen_at
            longest_s = self._longest_first_s
        return now - since <= max(SILENT_LEAST_S, SILENT_TIMES * longest_s)

    def _calls(
        self, attempts: Sequence[str], in_hand: Callable[[str, int], Sequence[float]], now: float
    ) -> list[_Call]:
        """What each of these attempts has in hand, as far as that can be told."""
        calls: list[_Call] = []
        for attempt in attempts:
            times = self._times[attempt]
            begun_s = 0.0
            costs: Sequence[float] = ()
            if times.news_at is not None and now - times.news_at >= BEGUN_LEAST_S:
                begun_s = now - times.news_at
                costs = in_hand(attempt, times.n_tasks)
            calls.append(_Call(len(costs), sum(costs), begun_s if costs else 0.0))
        return calls

    def _learn(self, cost_of: Callable[[int], float]) -> Law | None:
        """The law, made anew where enough was given since; None while nothing ran."""
        if self._given and self._given >= RELEARN * self._learned_at:
            self._law = self._law_of(cost_of, ())
            self._learned_at = self._given
        return self._law

    def _law_of(self, cost_of: Callable[[int], float], overdue: Sequence[_Call]) -> Law:
        # Where several tasks share a call nobody knows which of them took how long, so what is told
        # apart are calls, by the mean of their tasks' costs.
        calls = list(self._samples)
        for times in self._times.values():
            if times.tasks:
                calls.append((times.tasks, times.took_s / times.n_tasks))
        if not calls:
            return Law(self._given_s / max(1, self._given), 0.0)
        samples = [(sum(map(cost_of, tasks)) / len(tasks), each_s) for tasks, each_s in calls]
        for call in overdue:
            samples.append((call.cost / call.tasks, call.begun_s / call.tasks))
        return learn(samples)


# A rank takes a call at a time, and what it has in hand is partly done: with one task left of ten
# minutes, nine of which are over, one minute is left. At the end some ranks have nothing more to
# do, and the others finish what they have, on average half a call later than if all ended at once.
def _until_the_last(left: Work, law: Law, pace: float, calls: Sequence[_Call]) -> float:
    """How long it takes until the last of these tasks is finished, by ranks that have these calls.

    pace: how many seconds one of the law's takes in truth.
    """
    left_s = law.seconds(left.tasks, left.cost) * pace
    a_call = max(1.0, max(call.tasks for call in calls))
    n_calls = max(1.0, left.tasks / a_call)
    n_busy = min(float(len(calls)), n_calls)
    longest_s = 0.0
    for call in calls:
        expected_s = law.seconds(call.tasks, call.cost) * pace
        begun_s = min(call.begun_s, expected_s)
        left_s -= begun_s
        yet_s = max(expected_s - begun_s, OVERDUE_PART * (call.begun_s - begun_s))
        longest_s = max(longest_s, yet_s)
    left_s = max(0.0, left_s)
    return max(longest_s, left_s / n_busy + left_s / n_calls / 2 * (1 - 1 / n_busy))


def learn(samples: Sequence[tuple[float, float]]) -> Law:
    """The law by which tasks of these (cost, seconds) took as long as they did; there is one."""
    tried = [(same_for_all(samples), _told_apart(same_for_all, samples))]
    costs = {cost for cost, _ in samples}
    if len(costs) > 1 and min(costs) > 0:
        tried.append((by_cost(samples), _told_apart(by_cost, samples)))
    if len(costs) > 1 and len(samples) >= LEAST_FOR_TWO:
        tried.append((by_both(samples), _told_apart(by_both, samples)))
    best = min(error for _, error in tried)
    weights = [math.exp((best - error) / 2) for _, error in tried]
    total = sum(weights)
    return Law(
        sum(weight * law.per_task for weight, (law, _) in zip(weights, tried, strict=True)) / total,
        sum(weight * law.per_cost for weight, (law, _) in zip(weights, tried, strict=True)) / total,
    )


def same_for_all(samples: Sequence[tuple[float, float]]) -> Law:
    """That each task takes the mean."""
    return Law(sum(seconds for _, seconds in samples) / len(samples), 0.0)


def by_cost(samples: Sequence[tuple[float, float]]) -> Law:
    """That a task takes as long as its cost says."""
    cost = sum(cost for cost, _ in samples)
    return Law(0.0, sum(seconds for _, seconds in samples) / cost if cost > 0 else 0.0)


# Least squares of the error as a part of what was expected: else the few longest tasks would say
# alone how long a million short ones take. What is expected is that of the step before.
def by_both(samples: Sequence[tuple[float, float]]) -> Law:
    """That a task takes some time, and more with its cost."""
    law = same_for_all(samples)
    least_s = LEAST_PART * law.per_task or LEAST_PART
    for _ in range(3):
        n = sum_c = sum_s = sum_cc = sum_cs = 0.0
        for cost, seconds in samples:
            weight = max(law.seconds(1, cost), least_s) ** -2
            n += weight
            sum_c += weight * cost
            sum_s += weight * seconds
            sum_cc += weight * cost * cost
            sum_cs += weight * cost * seconds
        spread = n * sum_cc - sum_c * sum_c
        if spread <= 1e-9 * n * sum_cc:
            return same_for_all(samples)
        per_cost = (n * sum_cs - sum_c * sum_s) / spread
        per_task = (sum_s - per_cost * sum_c) / n
        if per_cost < 0:
            return same_for_all(samples)
        if per_task < 0:
            return by_cost(samples)
        law = Law(per_task, per_cost)
    return law


def _told_apart(
    make: Callable[[Sequence[tuple[float, float]]], Law], samples: Sequence[tuple[float, float]]
) -> float:
    """How badly a kind of law tells the tasks that it was not made from; smaller is better.

    That is -2 log likelihood, up to a constant, where errors are a part of what was expected and
    normally distributed. With a single task there is nothing to tell: 0.
    """
    if len(samples) < 2:
        return 0.0
    folds = min(len(samples), FOLDS)
    least_s = LEAST_PART * sum(seconds for _, seconds in samples) / len(samples) or LEAST_PART
    squares = logs = 0.0
    for fold in range(folds):
        law = make([one for number, one in enumerate(samples) if number % folds != fold])
        for cost, seconds in samples[fold::folds]:
            expected_s = max(law.seconds(1, cost), least_s)
            squares += (seconds / expected_s - 1) ** 2
            logs += math.log(expected_s)
    n = len(samples)
    # No law is better than to a thousandth.
    return n * math.log(max(squares / n, 1e-6)) + 2 * logs
