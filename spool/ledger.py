"""Verdicts and states, derived from what was read; never stored.

a task is      when
complete       a journal says so, in any round; if the task was redone, in that round or a later one
failed         else: its newest round says so, in a journal or in a closing; or no readable
               manifest line describes it any more
claimed        else: an open attempt holds a claim on its line, and did not say that it gave it up
unclaimed      else: its line lies beyond the last claim of a manifest
stranded       else: its claim was lost or damaged; the sweep publishes it again

an attempt is  when
starting       it has an intent and no journal
open           it has a journal and no orphans manifest
complete, failed, stopped     its orphans manifest says so

a run is       when
complete       every task is complete
failed         every task is complete or failed; but not while a task is unreadable and
               something of the run may be alive, which may have it in hand
running        else: a parent or an attempt of it is alive, or was heard lately
silent         else: of one on another host nothing is proved
stopped        else; `resume` goes on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gpuspool.spool.states import LineState, RunState, Verdict

# Looking up a member of an enum costs some 100 ns, a name of this module 20. `Ledger.feed` needs
# these two for every finished task.
_COMPLETE = LineState.COMPLETE
_FAILED = LineState.FAILED


class Ledger:
    """The verdicts of all tasks of a run, as the lines of its journals are fed to it in any order.

    `complete` has one byte for each task. Failures, rounds of retries and unreadable tasks are few,
    and each stands in a dict or set. Every count is kept while lines are fed, so asking costs
    nothing.
    """

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.complete = bytearray(tasks)
        self.n_complete = 0
        # How many complete lines say again what another said: their tasks ran twice.
        self.duplicates = 0
        # The newest round in which a task failed, and the newest that a retry gave it.
        self.failed_round: dict[int, int] = {}
        self.newest_round: dict[int, int] = {}
        # The newest round that a redo gave a task: what was finished in earlier ones is forgotten.
        self.redone: dict[int, int] = {}
        # The rounds of all complete lines of a task, but where that is one line of round 0.
        self._complete_rounds: dict[int, list[int]] = {}
        # The tasks whose verdict is "failed", kept in step with the three above and `_unreadable`.
        self._failed: set[int] = set()
        self._unreadable: frozenset[int] = frozenset()
        self._costs: Sequence[float] | None = None
        self._cost_finished = 0.0

    def grow(self, n_tasks: int) -> None:
        """Take in so many tasks that were added to the run. Progress is to be weighed anew."""
        self.tasks += n_tasks
        self.complete.extend(bytes(n_tasks))
        self._costs = None

    def feed(self, task: int, round_: int, state: LineState) -> None:
        """Take what one line says; raises IndexError for a task that the run does not have."""
        if not 0 <= task < self.tasks:
            raise IndexError(task)
        if self.redone and round_ < self.redone.get(task, 0):
            return
        if state is _COMPLETE:
            if self.complete[task]:
                self._complete_rounds.setdefault(task, [0]).append(round_)
                self.duplicates += 1
                return
            if round_:
                self._complete_rounds[task] = [round_]
            self.complete[task] = 1
            self.n_complete += 1
            if self._failed and task in self._failed:
                # Its cost counts already.
                self._failed.remove(task)
            elif self._costs is not None:
                self._cost_finished += self._costs[task]
        elif state is _FAILED:
            self.failed_round[task] = max(round_, self.failed_round.get(task, -1))
            self._judge(task)

    def feed_complete(self, tasks: Iterable[int]) -> None:
        """Take lines of round 0 that say of these tasks, all of them the run's, that each is
        complete.

        As many calls of `feed` do, in a fraction of the time: nearly all lines are such ones.
        """
        complete = self.complete
        failed = self._failed
        is_plain = not self.redone and self._costs is None
        n_new = 0
        for task in tasks:
            if is_plain and not complete[task] and task not in failed:
                complete[task] = 1
                n_new += 1
            else:
                self.feed(task, 0, _COMPLETE)
        self.n_complete += n_new

    def raise_round(self, task: int, round_: int) -> None:
        """A retry manifest gives this task another round; IndexError as for `feed`."""
        if not 0 <= task < self.tasks:
            raise IndexError(task)
        self.newest_round[task] = max(round_, self.newest_round.get(task, 0))
        self._judge(task)

    def redo(self, task: int, round_: int) -> None:
        """A redo gives this task a round, whatever it came to before; IndexError as for `feed`."""
        if not 0 <= task < self.tasks:
            raise IndexError(task)
        self.redone[task] = max(round_, self.redone.get(task, 0))
        if self.complete[task]:
            self._forget_before(task, round_)
        self.raise_round(task, round_)

    def _forget_before(self, task: int, round_: int) -> None:
        """Take back what complete lines of earlier rounds said of a task that is complete."""
        rounds = self._complete_rounds.pop(task, [0])
        left = [one for one in rounds if one >= round_]
        if left:
            self._complete_rounds[task] = left
            self.duplicates -= len(rounds) - len(left)
            return
        self.duplicates -= len(rounds) - 1
        self.complete[task] = 0
        self.n_complete -= 1
        if self._costs is not None:
            self._cost_finished -= self._costs[task]

    @property
    def unreadable(self) -> frozenset[int]:
        """The tasks that no readable manifest line describes and that are not complete."""
        return self._unreadable

    @unreadable.setter
    def unreadable(self, tasks: frozenset[int]) -> None:
        changed = self._unreadable ^ tasks
        self._unreadable = tasks
        for task in changed:
            self._judge(task)

    def _judge(self, task: int) -> None:
        """Keep `_failed` true for one task, after anything about it has changed."""
        is_failed = self.verdict(task) is Verdict.FAILED
        if is_failed == (task in self._failed):
            return
        if is_failed:
            self._failed.add(task)
        else:
            self._failed.remove(task)
        # A complete task is never among the failed ones, and its cost is counted elsewhere.
        if self._costs is not None and not self.complete[task]:
            self._cost_finished += self._costs[task] if is_failed else -self._costs[task]

    def weigh(self, costs: Sequence[float]) -> None:
        """From now on what tasks cost is known; else each task costs 1."""
        self._costs = costs
        pairs = zip(costs, self.complete, strict=True)
        self._cost_finished = sum(cost for cost, is_complete in pairs if is_complete)
        self._cost_finished += sum(costs[task] for task in self._failed)

    def cost_of(self, task: int) -> float:
        """What a task costs, as far as `weigh` was told."""
        if self._costs is None:
            return 1.0
        return self._costs[task]

    @property
    def cost_finished(self) -> float:
        """What the tasks with a verdict cost together, in the unit of `weigh`."""
        if self._costs is None:
            return float(self.n_finished)
        return self._cost_finished

    def round_of(self, task: int) -> int:
        """The newest round of a task: 0, or what a retry gave it."""
        return self.newest_round.get(task, 0)

    def is_finished_in(self, task: int, round_: int) -> bool:
        """Whether nobody needs to run this task's line of this round.

        Nobody ever needs to run a task that the run does not have, as a foreign line may name one.
        """
        if not 0 <= task < self.tasks or round_ < self.redone.get(task, 0):
            return True
        return bool(self.complete[task]) or self.failed_round.get(task, -1) >= round_

    def verdict(self, task: int) -> Verdict | None:
        """What became of a task; None while it is not finished."""
        if self.complete[task]:
            return Verdict.COMPLETE
        if task in self._unreadable:
            return Verdict.FAILED
        if self.failed_round.get(task, -1) >= self.round_of(task):
            return Verdict.FAILED
        return None

    def failed(self) -> Iterator[int]:
        """The tasks that have failed for good, in no order."""
        return iter(self._failed)

    @property
    def n_failed(self) -> int:
        return len(self._failed)

    @property
    def n_finished(self) -> int:
        """How many tasks have a verdict."""
        return self.n_complete + self.n_failed

    @property
    def is_finished(self) -> bool:
        """Whether every task is complete or failed."""
        return self.n_finished == self.tasks

    def unfinished(self) -> Iterator[int]:
        """The tasks without a verdict, in order."""
        task = self.complete.find(0)
        while task >= 0:
            if task not in self._failed:
                yield task
            task = self.complete.find(0, task + 1)


def run_state(ledger: Ledger, is_live: bool, is_silent: bool = False) -> RunState:
    """How a run stands. is_live: a parent or an attempt of it may be alive. is_silent: but of
    nobody was heard lately.
    """
    if ledger.n_complete == ledger.tasks:
        return RunState.COMPLETE
    # An attempt may have read the line of an unreadable task before that was damaged, and complete
    # it yet. So the orchestrator does not end while anybody is open, and neither does `wait`.
    may_complete = is_live and len(ledger.unreadable) > 0
    if ledger.is_finished and not may_complete:
        return RunState.FAILED
    if is_live:
        return RunState.SILENT if is_silent else RunState.RUNNING
    return RunState.STOPPED
