"""How much of the spool a look of a parent reads.

One reading of the whole spool, a *full look*, opens a file or two for each rank of the run, on
whatever host. The gatherer does that often, since somebody must. If each of a hundred parents did,
they would keep the file system busy with looking at each other. So the others mostly take *light
looks*: they hear of their own children by wait(2) and of what they have adopted by the table of
processes, and list control/ every ten seconds, and beats/ and manifests/ at about each second of
these looks. They take a full one only where there may be something for them to do, for one of the
reasons in `is_full_look_due`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from gpuspool.orchestrator.supervise.company import Company
from gpuspool.orchestrator.supervise.rest import are_all_idle
from gpuspool.spool.view import Control, View

# A light look follows the one before so soon, give or take a fifth, so that many parents that were
# started together do not look all at once.
LIGHT_S = 10.0
SPREAD = 0.2


class Scope:
    """Decides, for one parent, whether a look is a full one."""

    def __init__(
        self,
        view: View,
        company: Company,
        children: Callable[[], Sequence[str]],
        *,
        is_watched: bool,
        is_timed: bool,
        lease_s: float,
    ) -> None:
        """children: the attempts that this parent has started and not forgotten. is_watched: a
        person follows the progress on a terminal. is_timed: limits of time must be seen to.
        """
        self._view = view
        self._company = company
        self._children = children
        self._is_watched = is_watched
        self._is_timed = is_timed
        self._lease_s = lease_s
        # What was noted after the last full look; a control of None stands for before the first.
        self._control: Control | None = None
        self._has_free_slot = True
        self._wake_at: float | None = None
        self._full_look_at = 0.0
        # Since when all children are seen to be idle.
        self._idle_since: float | None = None
        self._asked_idle_at = 0.0

    def is_full_look_due(self, control: Control, has_any_ended: bool, is_draining: bool) -> bool:
        """Whether this look must read the whole spool. Raises OSError.

        control: as control/ is now. has_any_ended: a child, or an attempt that is adopted, has
        ended and was not seen to yet.
        """
        if not self.has_looked_fully or self._company.is_gatherer or self._is_watched:
            return True
        # What another parent of this host has started may have to be adopted once that is gone.
        has_news = control != self._control or self._company.has_lost_a_neighbour
        if has_any_ended or is_draining or has_news:
            return True
        now = time.monotonic()
        if self._is_due_by_the_clock(now):
            return True
        # By what the view has read, and not by an older listing: a manifest that came while all was
        # read must not be overlooked.
        if self._has_free_slot and self._view.unread_manifests():
            return True
        return self._have_all_been_idle(now)

    def _is_due_by_the_clock(self, now: float) -> bool:
        if self._wake_at is not None and now >= self._wake_at:
            return True
        return self._is_timed and now - self._full_look_at >= LIGHT_S

    @property
    def has_looked_fully(self) -> bool:
        """Whether everything was read once, and what follows from it was done."""
        return self._control is not None

    def note_full_look(self, control: Control, has_free_slot: bool, wake_at: float | None) -> None:
        """Everything was read, and what follows from it was done.

        control: as control/ was then. has_free_slot: a slot runs no attempt of this parent's own.
        wake_at: when there is something to do by the clock alone.
        """
        self._control = control
        self._has_free_slot = has_free_slot
        self._wake_at = wake_at
        self._full_look_at = time.monotonic()

    def light_nap_s(self) -> float:
        """How long to wait after a light look."""
        nap_s = LIGHT_S * random.uniform(1 - SPREAD, 1 + SPREAD)
        if self._wake_at is not None:
            nap_s = min(nap_s, max(0.0, self._wake_at - time.monotonic()))
        return nap_s

    def _have_all_been_idle(self, now: float) -> bool:
        """Whether all children have had nothing to do for a lease. It is true once in each lease.

        Somebody may have died who holds what they wait for, and nobody else may see it.
        """
        if now - self._asked_idle_at < self._lease_s / 2:
            return False
        self._asked_idle_at = now
        if not are_all_idle(self._view, self._children()):
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < self._lease_s:
            return False
        self._idle_since = now
        return True
