"""--require-complete: all results of a run, or none of them.

Two things may be missing. A task may not be complete. Or it is, and its result cannot be read any
more: its line was damaged since, or says more than this version understands. The first is known at
once, the second where results are read. So what appears whole at its end is looked at then, and
what is printed as it is read, and cannot be taken back, is looked at before.
"""

from __future__ import annotations

from gpuspool.orchestrator.report.results import Results
from gpuspool.orchestrator.text.words import count_of, to_type
from gpuspool.spool.errors import Incomplete
from gpuspool.spool.view import View


def refuse_incomplete(view: View) -> None:
    """Raise Incomplete unless every task is complete."""
    ledger = view.ledger
    if ledger.n_complete == ledger.tasks:
        return
    root = view.layout.root
    n_missing = ledger.tasks - ledger.n_finished
    facts = f"{ledger.n_failed} failed, {n_missing} without a verdict"
    ways = to_type("failed" if ledger.n_failed else "status", root)
    raise Incomplete(
        f"{root}: {ledger.n_complete} of {count_of(ledger.tasks, 'task')} are complete ({facts}), "
        f"so nothing was written. {ways} tells more."
    )


def refuse_before_printing(view: View) -> None:
    """Raise Incomplete unless every task is complete and its result can be read.

    It reads all of them, so printing takes about twice as long. Raises OSError.
    """
    refuse_incomplete(view)
    refuse_unreadable(view, Results(view).unreadable())


def refuse_unreadable(view: View, n_unreadable: int, *, is_printed: bool = False) -> None:
    """Raise Incomplete if of some complete tasks the result could not be read.

    is_printed: the other results were printed meanwhile.
    """
    if not n_unreadable:
        return
    root = view.layout.root
    end = "The others were printed." if is_printed else "Nothing was written."
    raise Incomplete(
        f"{root}: every task is complete, but of {n_unreadable} the result cannot be read any "
        f"more; {to_type('verify', root)} tells why. {end}"
    )
