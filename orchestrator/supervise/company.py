"""The other parents of a run, as this one sees them.

Every host runs a parent, and parents are equal: each owns by wait(2) what it started, and nothing
else. Some things only one of them should do, since it takes a reading of the whole spool: ruling
about failures, sweeping, ending the run for --max-failed. That one is the *gatherer*: the parent of
the lowest epoch that is not proved dead, and not silent for a lease. Each parent judges that for
itself, so for some moments there may be two, or none that knows it. Two do the same work twice, and
of all that they publish one link(2) wins; while there is none, that work waits, and the tasks go
on.
"""

from __future__ import annotations

import msgspec

from gpuspool.spool.identity import is_here
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.publish import remove_quietly
from gpuspool.spool.states import Life

# Whoever lives beats several times in such a part of a lease, and that is seen too, even where a
# network file system shows a listing a minute late.
QUIET_PART = 0.5


class Quiet(msgspec.Struct, frozen=True):
    """A parent of which nothing was heard for so long, and for how long that may be, in seconds."""

    epoch: int
    silent_s: float
    lease_s: float


class Company:
    """Who else is there, as of the last look. Read its attributes, never change them.

    others: the epochs of the other parents that are not proved dead, the lowest first. newest: the
    newest epoch that any parent has had. has_lost_a_neighbour: at this very look a parent of this
    host was found to have ended or died. was_taken_for_dead: at this very look others were found to
    have written that this parent is lost.
    """

    def __init__(self, layout: Layout, detector: FailureDetector, epoch: int) -> None:
        self._layout = layout
        self._detector = detector
        self._epoch = epoch
        self.others: list[int] = []
        self.newest = epoch
        self.has_lost_a_neighbour = False
        # Whether, at the last look, it was news that others took this parent for dead.
        self.was_taken_for_dead = False
        # Whether they have said so, and it could not be taken back: the spool cannot be written to.
        self._is_said_lost = False
        # The others that `newly_quiet` has named, and that have not beaten since.
        self._quiet: set[int] = set()
        # The others that have ended or died, as of the last look.
        self._known_gone: set[int] = set()

    def look(self) -> None:
        """List the parents, and judge those that have not said that they ended. Raises OSError."""
        self._detector.look()
        self._judge()

    def glance(self) -> bool:
        """As `look`, but of the listings take only those that are due.

        So a parent elsewhere that comes or goes is known when the beats are listed next. Returns
        whether they were now. Raises OSError.
        """
        has_listed = self._detector.glance()
        self._judge()
        return has_listed

    def _judge(self) -> None:
        """Judge all parents without an end, and write the ends of those that are lost."""
        parents = self._detector.parents
        if any(map(self._is_lost, parents.without_end())):
            # It may have said how it ended, or have woken, since the last listings.
            self._detector.look_anew()
        self._take_back_own_end()
        without_end = [epoch for epoch in parents.without_end() if epoch != self._epoch]
        others: list[int] = []
        for epoch in without_end:
            if self._detector.epoch_life(epoch) is not Life.DEAD:
                others.append(epoch)
            elif self._is_lost(epoch):
                parents.say_lost(epoch)
        # One that came and died between two listings was never seen to live, and is gone too.
        gone = {*self.others, *without_end}.difference(others)
        self.has_lost_a_neighbour = any(map(self._is_neighbour, gone - self._known_gone))
        self._known_gone = (self._known_gone | gone).difference(others)
        self.others = others
        self.newest = max(self._epoch, parents.newest)

    def _take_back_own_end(self) -> None:
        """Remove the end that others have written for this parent, which lives.

        With it, what this one starts would be closed as that of a dead parent.
        """
        parents = self._detector.parents
        self.was_taken_for_dead = parents.was_lost(self._epoch) and not self._is_said_lost
        if parents.was_lost(self._epoch):
            remove_quietly(self._layout.parent_end(self._epoch))
            parents.refresh()
        self._is_said_lost = parents.was_lost(self._epoch)

    def _is_lost(self, epoch: int) -> bool:
        """Whether another parent is proved dead, and nobody has written how it ended."""
        if epoch == self._epoch or epoch in self._detector.parents.ends:
            return False
        return self._detector.epoch_life(epoch) is Life.DEAD

    def _is_neighbour(self, epoch: int) -> bool:
        """Whether a parent is, or was, one of this host."""
        parent = self._detector.parents.known.get(epoch)
        return parent is not None and is_here(parent)

    def newly_quiet(self) -> list[Quiet]:
        """The others that have not beaten for a good part of a lease, each once until it beats."""
        found: list[Quiet] = []
        quiet: set[int] = set()
        for epoch in self.others:
            silent_s = self._detector.parent_still_s(epoch)
            lease_s = self._detector.parent_lease_s(epoch)
            if silent_s > QUIET_PART * lease_s:
                quiet.add(epoch)
                if epoch not in self._quiet:
                    found.append(Quiet(epoch, silent_s, lease_s))
        self._quiet = quiet
        return found

    @property
    def is_alone(self) -> bool:
        """Whether no other parent may be alive."""
        return not self.others

    @property
    def is_gatherer(self) -> bool:
        """Whether this parent does what one of all has to do.

        It does not leave that to one on this host that lives, but does nothing: whoever pressed
        Ctrl-Z there would keep all others from ever coming to an end.
        """
        older = (other for other in self.others if other < self._epoch)
        return all(map(self._detector.is_parent_silent, older))
