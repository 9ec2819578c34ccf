"""The parent's own heartbeat, by which hosts that cannot see its process know that it lives.

It vouches for the parent's workers too: one that is in a long C call cannot beat, and is not taken
for dead as long as its parent beats. The loop calls `beat_if_due` at each look.
"""

from __future__ import annotations

import math
import time

from gpuspool.spool.codec import encode
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import BEAT_S
from gpuspool.spool.publish import replace
from gpuspool.spool.records import ParentBeat


class ParentHeartbeat:
    """Beats for this process in one epoch. `every_s` is how often a beat is due."""

    def __init__(self, layout: Layout, epoch: int, lease_s: float) -> None:
        me = myself()
        # Twelve beats fit into a lease, so that several in a row may be late or lost.
        self.every_s = min(BEAT_S, lease_s / 12)
        self._path = layout.parent_heartbeat(epoch, me.host, me.pid)
        self._beat = 0
        self._last = -math.inf

    def beat_if_due(self, now: float) -> None:
        """Replace the heartbeat file by rename(2), if the last beat is old enough.

        `now` is on the monotonic clock. Raises OSError.
        """
        if now - self._last < self.every_s:
            return
        self._beat += 1
        self._last = now
        replace(self._path, encode(ParentBeat(beat=self._beat, at=time.time())))
