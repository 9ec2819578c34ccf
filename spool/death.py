"""Whether an attempt, and the parent that started it, are proved dead.

The proof on the same host is the process table; from elsewhere it is a lease: the attempt's beat
and its parent's beat both unmoved for the whole of it on our own clock. A parent's beat vouches for
its children, since a worker may be inside a long C call that holds the interpreter.
"""

from __future__ import annotations

import time

from gpuspool.spool.identity import ALIVE, DEAD, ELSEWHERE, LeaseWatch, liveness
from gpuspool.spool.publish import read_record
from gpuspool.spool.records import Intent, ParentBeat
from gpuspool.spool.view import View

BEAT_S = 10.0  # twelve beats fit into the default lease of 120 s,
BEATS = 3  # and the shortest lease that anybody may judge them by is three


class Coroner:
    """Judges the attempts of one spool; keep one for as long as you watch, since leases take time
    to run out.
    """

    def __init__(self, view: View, lease_s: float | None = None) -> None:
        self.view = view
        self._watch = LeaseWatch(view.run.options.lease_s if lease_s is None else lease_s)

    def verdict(self, attempt: str) -> str:
        """ALIVE, DEAD, or ELSEWHERE while there is no proof."""
        who = self.view.identity(attempt)
        if who is None:
            return self.parent_verdict(attempt)
        near = liveness(who)
        if near in (ALIVE, DEAD):
            return near
        beat = self.view.heartbeat(attempt)
        beats = (None if beat is None else beat.beat, self._parent_beat(attempt))
        return self._by_lease(attempt, attempt, beats)

    def parent_verdict(self, attempt: str) -> str:
        """Of the parent that started the attempt. Without a readable intent nobody vouches: a lease
        decides.
        """
        intent = self.view.intents.get(attempt)
        if intent is not None:
            near = liveness(intent.parent)
            if near in (ALIVE, DEAD):
                return near
        return self._by_lease(attempt, f"parent of {attempt}", self._parent_beat(attempt))

    def is_orphan(self, attempt: str) -> bool:
        """Proved dead, and so is the parent, who else would be the one to close it."""
        both = (
            self.verdict(attempt),
            self.parent_verdict(attempt),
        )  # both, so that their leases run side by side
        return both == (DEAD, DEAD)

    def lease_s(self, attempt: str) -> float:
        """How long its beat may stand still: never less than BEATS of its own beats, whatever is
        asked for now.
        """
        return max(
            self._watch.lease_s, BEATS * min(BEAT_S, self.view.options_of(attempt).lease_s / 12)
        )

    def _by_lease(self, attempt: str, name: str, beats: object) -> str:
        is_expired = self._watch.is_expired(name, beats, time.monotonic(), self.lease_s(attempt))
        return DEAD if is_expired else ELSEWHERE

    def _parent_beat(self, attempt: str) -> int | None:
        intent = self.view.intents.get(attempt)
        return None if intent is None else read_parent_beat(self.view, intent)


def read_parent_beat(view: View, intent: Intent) -> int | None:
    path = view.layout.parent_heartbeat(intent.epoch, intent.parent.host, intent.parent.pid)
    beat = read_record(path, ParentBeat)
    return None if beat is None else beat.beat
