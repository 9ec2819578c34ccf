"""Whether an attempt, and the parent that started it, are alive or proved dead.

The proof on the same host is the process table (`identity`). A process that lives counts only where
it belongs to this very folder: in a copy of a spool, everything speaks of the processes of the
original, which write there and not here. From elsewhere it is a lease: the
attempt's beat and its parent's beat both unmoved for the whole of it, on this process's own clock.
A parent's beat vouches for its children, since a worker may be inside a long C call that holds the
interpreter's lock and so keeps its own beat from moving.
"""

from __future__ import annotations

import time

from gpuspool.spool.identity import is_here, liveness
from gpuspool.spool.open_folder import folder_id, is_same_folder
from gpuspool.spool.publish import read_record
from gpuspool.spool.records import Intent, ParentBeat
from gpuspool.spool.states import Life
from gpuspool.spool.view import View

# Seconds between two beats, of a worker and of a parent. Twelve fit into the default lease of 120
# s.
BEAT_S = 10.0
# The shortest lease that anybody may judge an attempt by is so many of its own beats.
BEATS = 3
# Between two looks at most this part of a lease counts as silence: this process may have been
# suspended itself, and who did not look knows nothing.
MAX_GAP_COUNTED = 0.3


class LeaseWatch:
    """For how long, on this process's own clock, each watched beat has not moved."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        # name -> (the beat as last seen, seconds that it has stood still, time of the last look)
        self._seen: dict[str, tuple[object, float, float]] = {}

    def is_expired(self, name: str, beat: object, now: float, lease_s: float = 0.0) -> bool:
        """Whether `beat` (any value that changes while its owner lives) stood still for a lease.

        now: on the monotonic clock. lease_s: 0 for the lease of this watch.
        """
        lease_s = lease_s or self.lease_s
        seen = self._seen.get(name)
        if seen is None or seen[0] != beat:
            self._seen[name] = (beat, 0.0, now)
            return False
        _, still_s, looked_at = seen
        still_s += min(now - looked_at, MAX_GAP_COUNTED * lease_s)
        self._seen[name] = (beat, still_s, now)
        return still_s > lease_s


class FailureDetector:
    """Judges the attempts of one spool.

    Keep one for as long as you watch a spool: leases take time to run out, and only looks of the
    same detector count. Raises OSError where a heartbeat cannot be read.
    """

    def __init__(self, view: View, lease_s: float | None = None) -> None:
        """lease_s: what to judge by; None for the lease that the run was made with."""
        self.view = view
        if lease_s is None:
            lease_s = view.run.options.lease_s
        self._watch = LeaseWatch(lease_s)
        self._folder = folder_id(view.layout.root)

    def is_copied(self, attempt: str) -> bool:
        """Whether the attempt ran in another folder, on this host, of which this one is a copy.

        Then its process, and its parent's, are none of ours, and will never write here.
        """
        intent = self.view.intents.get(attempt)
        if intent is None or not intent.folder or not is_here(intent.parent):
            return False
        return not is_same_folder(intent.folder, self._folder, is_one_host=True)

    def life(self, attempt: str) -> Life:
        """ALIVE, DEAD, or ELSEWHERE while there is no proof."""
        if self.is_copied(attempt):
            return Life.DEAD
        who = self.view.identity(attempt)
        if who is None:
            return self.parent_life(attempt)
        near = liveness(who)
        if near is not Life.ELSEWHERE:
            return near
        heartbeat = self.view.heartbeat(attempt)
        own_beat = None if heartbeat is None else heartbeat.beat
        return self._by_lease(attempt, attempt, (own_beat, self._parent_beat(attempt)))

    def parent_life(self, attempt: str) -> Life:
        """The life of the process that started the attempt.

        Without a readable intent nobody vouches for the attempt, so a lease decides.
        """
        if self.is_copied(attempt):
            return Life.DEAD
        intent = self.view.intents.get(attempt)
        if intent is not None:
            near = liveness(intent.parent)
            if near is not Life.ELSEWHERE:
                return near
        return self._by_lease(attempt, f"parent of {attempt}", self._parent_beat(attempt))

    def is_orphan(self, attempt: str) -> bool:
        """Whether the attempt is proved dead, and so is its parent, which else would close it."""
        # Both are asked always, so that their leases run side by side.
        life = self.life(attempt)
        parent_life = self.parent_life(attempt)
        return life is Life.DEAD and parent_life is Life.DEAD

    def lease_s(self, attempt: str) -> float:
        """For how long the attempt's beat may stand still.

        Never less than BEATS of its own beats, whatever lease is asked for now.
        """
        beat_s = min(BEAT_S, self.view.options_of(attempt).lease_s / 12)
        return max(self._watch.lease_s, BEATS * beat_s)

    def _by_lease(self, attempt: str, name: str, beat: object) -> Life:
        lease_s = self.lease_s(attempt)
        if self._watch.is_expired(name, beat, time.monotonic(), lease_s):
            return Life.DEAD
        return Life.ELSEWHERE

    def _parent_beat(self, attempt: str) -> int | None:
        intent = self.view.intents.get(attempt)
        if intent is None:
            return None
        return read_parent_beat(self.view, intent)


def read_parent_beat(view: View, intent: Intent) -> int | None:
    """The number of the last beat of the parent that wrote this intent, None without any."""
    parent = intent.parent
    path = view.layout.parent_heartbeat(intent.epoch, parent.host, parent.pid)
    beat = read_record(path, ParentBeat)
    if beat is None:
        return None
    return beat.beat
