"""Verdicts and states, derived from what was read; never stored.

a task is      when
complete       a journal says so, in any round
failed         else: its newest round says so, in a journal or in the `lost` of a closing; or no readable
               manifest line describes it any more
claimed        else: an attempt that is not closed holds a claim on its line
unclaimed      else: its line lies beyond the last claim of a manifest
missing        else: its claim was lost or damaged; the sweep publishes it again

an attempt is  when
starting       it has an intent and no journal
open           it has a journal and no orphans manifest
complete, failed, stopped     its orphans manifest says so

a run is       when
complete       every task is complete
failed         every task is complete or failed
running        else: a live orchestrator holds it, or an attempt of it is alive
stopped        else; `resume` goes on
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Ledger:
    """The verdicts of all tasks, as the lines are fed to it in any order.

    `complete` is one byte a task; failures and raised rounds are few and live in dicts.
    """

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.costs: Sequence[float] | None = None
        self._cost_done = 0.0
        self.complete = bytearray(tasks)
        self.n_complete = 0
        self.duplicates = 0
        self.failed_round: dict[int, int] = {}
        self.newest_round: dict[int, int] = {}
        self.unreadable: set[int] = set()

    def feed(self, task: int, round_: int, state: str) -> None:
        """Take one journal line or loss; raises IndexError for a task that the run does not have."""
        if not 0 <= task < self.tasks:
            raise IndexError(task)
        if state == "complete":
            if self.complete[task]:
                self.duplicates += 1
            else:
                self.complete[task] = 1
                self.n_complete += 1
                if self.costs is not None:
                    self._cost_done += self.costs[task]
        elif state == "failed":
            self.failed_round[task] = max(round_, self.failed_round.get(task, -1))

    def weigh(self, costs: Sequence[float]) -> None:
        """From now on progress is told by what tasks cost, else each counts 1."""
        self.costs = costs
        self._cost_done = sum(cost for cost, done in zip(costs, self.complete, strict=True) if done)

    @property
    def cost_done(self) -> float:
        return float(self.n_complete) if self.costs is None else self._cost_done

    def raise_round(self, task: int, round_: int) -> None:
        """A retry manifest gives this task another round."""
        self.newest_round[task] = max(round_, self.newest_round.get(task, 0))

    def round_of(self, task: int) -> int:
        return self.newest_round.get(task, 0)

    def is_done(self, task: int, round_: int) -> bool:
        """Whether nobody needs to run this task's line of this round."""
        return bool(self.complete[task]) or self.failed_round.get(task, -1) >= round_

    def verdict(self, task: int) -> str | None:
        """ "complete", "failed" or None."""
        if self.complete[task]:
            return "complete"
        if task in self.unreadable or self.failed_round.get(task, -1) >= self.round_of(task):
            return "failed"
        return None

    def failed(self) -> Iterator[int]:
        """The tasks that have failed for good, in no order."""
        candidates = self.failed_round.keys() | self.unreadable
        return (task for task in candidates if self.verdict(task) == "failed")

    @property
    def n_failed(self) -> int:
        return sum(1 for _ in self.failed())

    def missing(self) -> Iterator[int]:
        """The tasks without a verdict, in order."""
        task = self.complete.find(0)
        while task >= 0:
            if self.verdict(task) is None:
                yield task
            task = self.complete.find(0, task + 1)

    @property
    def is_finished(self) -> bool:
        """Whether every task is complete or failed."""
        return self.n_complete + self.n_failed == self.tasks


def run_state(ledger: Ledger, is_live: bool) -> str:
    if ledger.is_finished:
        return "complete" if ledger.n_complete == ledger.tasks else "failed"
    return "running" if is_live else "stopped"
