"""The parents of a run: who has started attempts of it, on which hosts, and who still may.

Each start of `run`, `resume` or `join` is one epoch of the run, and its process is the parent of
that epoch. Parents are equal. It links `parents/<epoch>.json` before it starts anything, and
`parents/<epoch>.end.json` once it has seen off all that it had started. A parent without an end is
alive until the opposite is proved: here by the table of processes, elsewhere by a lease (see
`liveness.py`).

Whoever proves that writes the end in its place: LOST. A host that stood still for a lease may wake,
though. Its parent finds that end then, and removes it, since it is there; and on its own host
nobody believes such an end more than the table of processes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from gpuspool.spool.codec import pretty
from gpuspool.spool.identity import is_here, is_myself, liveness
from gpuspool.spool.layout import Layout, parse_parent
from gpuspool.spool.open_folder import folder_id, is_same_folder
from gpuspool.spool.publish import listdir, publish, read_record, read_sealed
from gpuspool.spool.records import Identity, Parent, ParentEnd
from gpuspool.spool.states import Life

# How a parent ended that others proved dead.
LOST = "lost"

# The epochs of which this very process is the parent now: (folder of the spool, epoch).
_running: set[tuple[str, int]] = set()


@contextlib.contextmanager
def being_parent(layout: Layout, epoch: int) -> Iterator[None]:
    """As long as the block lasts this process is the parent of an epoch.

    A program that calls the Python API lives on after that, and may be the parent of the next one.
    """
    key = folder_id(layout.root), epoch
    _running.add(key)
    try:
        yield
    finally:
        _running.discard(key)


class Parents:
    """All parents that a spool tells of, as of the last `refresh`. Read its attributes only.

    known: the records by epoch, None where one cannot be read. ends: likewise the ends of those
    that have one, whoever wrote it. returned: the epochs of those that were taken for dead and have
    taken that back, once for each time.
    """

    def __init__(self, layout: Layout) -> None:
        """Nothing is read before the first `refresh`."""
        self._layout = layout
        self.known: dict[int, Parent | None] = {}
        self.ends: dict[int, ParentEnd | None] = {}
        self.returned: list[int] = []
        # Which folder the spool is, as of the last `refresh`.
        self._folder = ""

    def refresh(self) -> Parents:
        """Read what is new, by one listing and one open for each new file. Raises OSError."""
        self._folder = folder_id(self._layout.root)
        ended: set[int] = set()
        for filename in listdir(self._layout.parents):
            parsed = parse_parent(filename)
            if parsed is None:
                continue
            epoch, is_end = parsed
            if is_end:
                ended.add(epoch)
                if epoch not in self.ends:
                    self.ends[epoch] = read_record(self._layout.parent_end(epoch), ParentEnd)
            elif epoch not in self.known:
                self.known[epoch] = read_sealed(self._layout.parent(epoch), Parent)
        for epoch in self.ends.keys() - ended:
            # It was taken for dead, was not, and has removed the end that others wrote for it.
            del self.ends[epoch]
            self.returned.append(epoch)
        return self

    def say_lost(self, epoch: int) -> None:
        """Publish, by link(2), the end of a parent that is proved dead.

        So nobody need prove that again: a later start would have to wait for a lease, and whoever
        looks only once could never know. If the parent wakes it takes that back. Raises OSError.
        """
        end = ParentEnd(how=LOST, exit_code=1, at=time.time())
        publish(self._layout.parent_end(epoch), pretty(end))
        # It is known from here on, so that it is noticed when it is not there any more.
        self.ends[epoch] = end

    @property
    def newest(self) -> int:
        """The newest epoch that a parent has, -1 without any."""
        return max(self.known, default=-1)

    def without_end(self) -> list[int]:
        """The epochs whose parents have not said that they ended, the lowest first."""
        return sorted(epoch for epoch in self.known if not self.has_ended(epoch))

    def has_ended(self, epoch: int) -> bool:
        """Whether it is on record that a parent has ended, and may be believed.

        That others lost a parent of this host is not: the table of processes knows better.
        """
        if epoch not in self.ends:
            return False
        parent = self.known.get(epoch)
        is_of_this_host = parent is not None and is_here(parent)
        return not (self.was_lost(epoch) and is_of_this_host)

    def was_lost(self, epoch: int) -> bool:
        """Whether others have written that a parent is dead."""
        end = self.ends.get(epoch)
        return end is not None and end.how == LOST

    def life_without_lease(self, epoch: int) -> Life:
        """What is proved of a parent at a single look: by its end, or by its process if it is here.

        ELSEWHERE means that only a lease could prove more. A parent that worked in the folder of
        which this spool is a copy is none of ours, and counts as dead.
        """
        if self.has_ended(epoch):
            return Life.DEAD
        parent = self.known.get(epoch)
        if parent is None:
            return Life.ELSEWHERE
        if is_of_another_folder(parent, parent.folder, self._folder):
            return Life.DEAD
        if is_myself(parent) and (self._folder, epoch) not in _running:
            return Life.DEAD
        return liveness(parent)

    def maybe_alive(self) -> dict[int, Life]:
        """Those that are not proved dead at a single look, by epoch."""
        lives = {epoch: self.life_without_lease(epoch) for epoch in self.without_end()}
        return {epoch: life for epoch, life in lives.items() if life is not Life.DEAD}


def is_of_another_folder(writer: Identity, written_in: str, folder: str) -> bool:
    """Whether a process of this host wrote a record in another folder, of which this is a copy.

    written_in: the folder that the record tells, "" where it tells none. folder: the one in which
    it was found. Both are as `folder_id` has them.
    """
    if not written_in or not is_here(writer):
        return False
    return not is_same_folder(written_in, folder, is_one_host=True)


def may_any_parent_live(layout: Layout) -> bool:
    """Whether any parent of a run may be alive, here or elsewhere, at a single look."""
    return bool(Parents(layout).refresh().maybe_alive())


def does_any_parent_live_here(layout: Layout) -> bool:
    """Whether a parent of a run is proved alive on this host."""
    return Life.ALIVE in Parents(layout).refresh().maybe_alive().values()
