"""The workers that this process started: it owns them by wait(2).

Of a child the parent knows for certain whether it runs and how it ended, whatever stands in the
spool. Nobody else may judge it. What other processes started is in `others.py`; `Workers` joins the
two.
"""

from __future__ import annotations

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.launch import Child, Orders, launch
from gpuspool.orchestrator.supervise.ranks import Ranks
from gpuspool.spool.identity import myself
from gpuspool.spool.records import Closing
from gpuspool.spool.states import Life
from gpuspool.spool.view import View


class Children:
    """The attempts that this process started and has not forgotten, for one epoch."""

    def __init__(self, view: View, orders: Orders) -> None:
        self._view = view
        self._orders = orders
        self._me = myself()
        self._children: dict[str, Child] = {}
        self._closed_at: dict[str, float] = {}

    def __contains__(self, attempt: str) -> bool:
        return attempt in self._children

    def get(self, attempt: str) -> Child | None:
        """The process of an attempt, None where this process did not start it."""
        return self._children.get(attempt)

    def attempts(self) -> list[str]:
        return list(self._children)

    def launch(self, slot: Slot, ranks: Ranks, patience: int, is_doubted: bool) -> Child:
        """Start the next attempt in a slot, of a rank that is free. Raises OSError as `launch`."""
        for rank in ranks.candidates(slot):
            child = launch(self._view, slot, rank, self._orders, patience, is_doubted)
            if child is not None:
                ranks.take(slot, rank)
                self._children[child.attempt] = child
                return child
        raise AssertionError("candidates never end")

    def nudge(self) -> None:
        """Tell the children that run that there is news in the spool."""
        for child in self._children.values():
            child.nudge()

    def exit_code(self, attempt: str) -> int | None:
        """How a child ended, -N for signal N; None while it runs, and for what is no child."""
        child = self._children.get(attempt)
        if child is None:
            return None
        return child.exit_code()

    def life(self, attempt: str) -> Life:
        """Whether a child runs."""
        if self._children[attempt].exit_code() is None:
            return Life.ALIVE
        return Life.DEAD

    def running(self) -> dict[str, int]:
        """attempt -> pid of the children that run."""
        found: dict[str, int] = {}
        for attempt, child in self._children.items():
            if child.exit_code() is None:
                found[attempt] = child.pid
        return found

    def ended_at(self, attempt: str) -> float | None:
        """When a child was seen to have ended, on the monotonic clock; None while it runs, and for
        what is no child.
        """
        child = self._children.get(attempt)
        if child is None or child.exit_code() is None:
            return None
        return child.ended_at

    def is_stillborn(self, attempt: str) -> bool:
        """Whether this very process published the intent of an attempt and could not start it."""
        if attempt in self._children:
            return False
        intent = self._view.intents.get(attempt)
        if intent is None or intent.epoch != self._orders.epoch or intent.parent != self._me:
            return False
        return self._view.identity(attempt) is None

    def leaving(self, now: float) -> dict[str, float]:
        """attempt -> for how many seconds it was seen to be closed, of children that still run."""
        found: dict[str, float] = {}
        for attempt in self._children:
            if attempt in self._view.closed and self.exit_code(attempt) is None:
                closed_at = self._closed_at.setdefault(attempt, now)
                found[attempt] = now - closed_at
        return found

    def reap(self) -> list[Closing]:
        """Forget the children that are closed and have ended; returns their closings."""
        closings = []
        for attempt, child in list(self._children.items()):
            closing = self._view.closed.get(attempt)
            if closing is not None and child.exit_code() is not None:
                del self._children[attempt]
                closings.append(closing)
        return closings
