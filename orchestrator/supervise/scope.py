"""How much of the spool a look reads.

One reading of the whole spool opens a file or two for each rank of the run, on whatever host. The
gatherer does that often, since somebody must. If each of a hundred parents did, they would keep the
file system busy with looking at each other. So the others look lightly: they hear of their own
children by wait(2) and of what they have adopted by the table of processes, and list control/ every
ten seconds, and beats/ and manifests/ at about each second of these looks. They read everything
only where something may be for them to do, for one of the reasons in `needs_all`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from gpuspool.orchestrator.supervise.company import Company
from gpuspool.spool.states import Phase
from gpuspool.spool.view import Control, View

# A light look follows the one before so soon, give or take a fifth, so that many parents that were
# started together do not look all at once.
LIGHT_S = 10.0
SPREAD = 0.2


class Scope:
    """Decides, for one parent, whether a look reads everything."""

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
        self._control: Control | None = None
        self._has_free_slot = True
        self._wake_at: float | None = None
        self._read_at = 0.0
        # Since when all children are seen to be idle.
        self._idle_since: float | None = None
        self._asked_idle_at = 0.0

    def needs_all(self, control: Control, has_any_ended: bool, is_draining: bool) -> bool:
        """Whether this look must read the whole spool. Raises OSError.

        control: as control/ is now. has_any_ended: a child, or an attempt that is adopted, has
        ended and was not seen to yet.
        """
        now = time.monotonic()
        if self._control is None or self._company.is_gatherer or self._is_watched:
            return True
        if has_any_ended or is_draining or control != self._control:
            return True
        if self._company.has_lost_a_neighbour:
            # What it has started on this host may have to be adopted.
            return True
        if self._wake_at is not None and now >= self._wake_at:
            return True
        if self._is_timed and now - self._read_at >= LIGHT_S:
            return True
        # By what the view has read, and not by an older listing: a manifest that came while all was
        # read must not be overlooked.
        if self._has_free_slot and self._view.unread_manifests():
            return True
        return self._have_all_been_idle(now)

    @property
    def has_read(self) -> bool:
        """Whether everything was read once, and what follows from it was done."""
        return self._control is not None

    def note_read(self, control: Control, has_free_slot: bool, wake_at: float | None) -> None:
        """Everything was read, and what follows from it was done.

        has_free_slot: a slot runs no attempt of this parent's own. wake_at: when there is something
        to do by the clock alone.
        """
        self._control = control
        self._has_free_slot = has_free_slot
        self._wake_at = wake_at
        self._read_at = time.monotonic()

    def light_nap_s(self) -> float:
        """How long to wait after a light look."""
        nap_s = LIGHT_S * random.uniform(1 - SPREAD, 1 + SPREAD)
        if self._wake_at is not None:
            nap_s = min(nap_s, max(0.0, self._wake_at - time.monotonic()))
        return nap_s

    def _have_all_been_idle(self, now: float) -> bool:
        """Whether all children have had nothing to do for a lease: once in each lease.

        Somebody may have died who holds what they wait for, and nobody may see it.
        """
        if now - self._asked_idle_at < self._lease_s / 2:
            return False
        self._asked_idle_at = now
        beats = [self._view.heartbeat(attempt) for attempt in self._children()]
        if not all(beat is not None and beat.state is Phase.IDLE for beat in beats):
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < self._lease_s:
            return False
        self._idle_since = now
        return True
