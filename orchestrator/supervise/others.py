"""Attempts that some other process started, as one parent sees them.

This process cannot wait(2) for them, so it judges them from outside: on this host by the process
table, elsewhere by a lease.

- As long as the parent of such an attempt is not proved dead, the attempt is that parent's alone.
  Here it is ELSEWHERE, whatever is known of its process, and is neither closed nor signalled,
  killed or timed out. There is one exception: where the parent lives on this host and has done
  nothing for a lease, since it is stopped or hangs, what dies of its attempts is DEAD here too.
- An attempt that lives on this host and whose parent is dead is adopted: it is watched and
  signalled like a child. In `Others`, ALIVE means just that.
- One that is dead, and its parent dead or silent, is DEAD, and whoever sees that first closes it.

What this process started itself is in `children.py`.
"""

from __future__ import annotations

import itertools

from gpuspool.orchestrator.supervise.children import Children
from gpuspool.spool.identity import is_here, liveness
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.states import Life
from gpuspool.spool.view import View


class Others:
    """The attempts of a run that are not among `children`. Raises OSError as the view does.

    Methods that say so read nothing of the spool: they tell what is known as of the last look, and
    what the table of processes shows.
    """

    def __init__(self, view: View, children: Children, lease_s: float) -> None:
        self._view = view
        self._children = children
        # One for the whole epoch, since a lease takes time to run out.
        self.detector = FailureDetector(view, lease_s)
        # The closed attempts whose processes may still run, as far as the closings were read.
        self._leaving: dict[str, None] = {}
        self._closings_read = 0
        # Those that were adopted once, as far as `newly_adopted` told.
        self._adopted: set[str] = set()

    def open_attempts(self) -> list[str]:
        """Those that are not closed."""
        return [name for name in self._view.open_attempts if name not in self._children]

    def life(self, attempt: str) -> Life:
        """DEAD if the attempt is proved dead and its parent will not see to it, ALIVE if it is
        adopted here.

        All else is ELSEWHERE, and none of this process's business.
        """
        # Both are asked always, so that their leases run side by side.
        found = self.detector.life(attempt)
        parent_life = self.detector.parent_life(attempt)
        is_left = self.detector.is_left_by_parent(attempt)
        if self._view.intents.get(attempt) is None:
            # Its intent is damaged: whose it is nobody can tell, and so it is anybody's.
            return found
        if found is Life.DEAD and is_left:
            return Life.DEAD
        return found if parent_life is Life.DEAD else Life.ELSEWHERE

    def newly_adopted(self) -> list[str]:
        """Those that are adopted, and were not yet when this was asked last."""
        found = [name for name in self.open_attempts() if name not in self._adopted]
        found = [name for name in found if self.is_adopted(name)]
        self._adopted.update(found)
        return found

    def is_adopted(self, attempt: str) -> bool:
        """Whether an attempt lives on this host without a parent."""
        return self.life(attempt) is Life.ALIVE

    def adopted_running(self) -> dict[str, int]:
        """attempt -> pid of those that are adopted, open and run. Reads nothing of the spool."""
        found: dict[str, int] = {}
        for name in self._adopted_open():
            pid = self.pid_running(name)
            if pid is not None:
                found[name] = pid
        return found

    def adopted_epochs(self) -> set[int]:
        """The epochs of those in `adopted_running`. Their parents were all of this host."""
        intents = map(self._view.intents.get, self.adopted_running())
        return {intent.epoch for intent in intents if intent is not None}

    def has_adopted_ended(self) -> bool:
        """Whether any that is adopted and open runs no more. Reads nothing of the spool."""
        return len(self.adopted_running()) < len(self._adopted_open())

    def _adopted_open(self) -> list[str]:
        return [name for name in self._adopted if name not in self._view.closed]

    def may_live_here(self, attempt: str) -> bool:
        """Whether an attempt of this host lives, or may be about to, whoever started it."""
        if self.detector.life(attempt) is Life.DEAD:
            return False
        intent = self._view.intents.get(attempt)
        return intent is not None and is_here(intent.parent)

    def lease_s(self, attempt: str) -> float:
        """For how long a beat must stand still before its owner elsewhere counts as dead."""
        return self.detector.lease_s(attempt)

    def running(self) -> dict[str, int]:
        """attempt -> pid of the open ones that are proved alive on this host."""
        found: dict[str, int] = {}
        for name in self.open_attempts():
            who = self._view.identity(name) if self.is_adopted(name) else None
            if who is not None:
                found[name] = who.pid
        return found

    def pid_here(self, attempt: str) -> int | None:
        """The pid of an attempt whose process is, or was, one of this host."""
        who = self._view.identity(attempt)
        if who is None or not is_here(who):
            return None
        return who.pid

    def leaving(self) -> dict[str, int]:
        """attempt -> pid of the closed ones whose processes still run on this host."""
        # The caller asks until the last process has gone, and there may be thousands of closed
        # attempts. So one that is once found to be gone is not judged again: a process does not
        # come back. The view holds the heads of all journals, so no file of the spool is read.
        closed = self._view.closed
        for name in itertools.islice(closed, self._closings_read, len(closed)):
            self._leaving[name] = None
        self._closings_read = len(closed)
        found: dict[str, int] = {}
        for name in list(self._leaving):
            if name in self._children:
                continue
            pid = self.pid_running(name)
            if pid is None or self.detector.is_copied(name):
                # It is gone, or it is a worker of the spool of which this one is a copy.
                del self._leaving[name]
            elif self.is_parent_dead(name):
                # If its parent lived, that would see it off.
                found[name] = pid
        return found

    def is_parent_dead(self, attempt: str) -> bool:
        """Whether the parent of an attempt is proved dead, as of the last look: reads nothing."""
        return self.detector.known_parent_life(attempt) is Life.DEAD

    def pid_running(self, attempt: str) -> int | None:
        """The pid of an attempt that its journal proves to run here. Reads nothing of the spool."""
        journal = self._view.journals.get(attempt)
        if journal is None or journal.head is None:
            return None
        # A pid alone proves nothing, since it may be somebody else's by now; `liveness` compares
        # when it was started.
        if liveness(journal.head) is not Life.ALIVE:
            return None
        return journal.head.pid
