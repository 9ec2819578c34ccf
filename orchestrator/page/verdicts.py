"""From which call each task has its verdict: one rule for the curves and for the list of jobs.

A task may have been called often: once in each round, and twice where a kill came between its call
and the line of it. Of a complete task that call counts which completed it first, by the clock; of
one that was redone, the first since then. Of a failed task it is the last one of its newest round.
The rounds are the ledger's, so that all verbs agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpuspool.orchestrator.page.calls import CallOutcome, Calls
from gpuspool.spool.ledger import Ledger

# A call by the calls of its attempt and its place among them.
_Place = tuple[Calls, int]


def mark_verdicts(every: Sequence[Calls], ledger: Ledger) -> None:
    """Leave `tells` with those calls alone from which tasks have their verdicts.

    Nearly always a task has one call at most that may tell, and there is nothing to do.
    """
    found: dict[int, _Place] = {}
    for calls in every:
        if ledger.duplicates == 0 and calls.are_all_complete():
            continue
        for at, tells in enumerate(calls.tells):
            if not tells or (ledger.duplicates == 0 and not calls.outcomes[at]):
                continue
            task = calls.tasks[at]
            one = (calls, at)
            other = found.get(task)
            if other is not None:
                one, loser = (one, other) if _is_better(one, other) else (other, one)
                loser[0].tells[loser[1]] = False
            found[task] = one


def _is_better(one: _Place, other: _Place) -> bool:
    """Whether a task has its verdict from one call rather than from another."""
    is_complete = one[0].outcomes[one[1]] == CallOutcome.COMPLETE
    return _end(one) < _end(other) if is_complete else _end(one) > _end(other)


def _end(place: _Place) -> float:
    calls, at = place
    return calls.begins[at] + calls.durations[at]
