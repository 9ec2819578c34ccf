"""The parent's own beat, by which hosts that cannot see its process know that it lives.

It vouches for the parent's workers too: one that is in a long C call cannot beat, and is not taken
for dead as long as its parent beats. The loop calls `beat_if_due` at each look.
"""

from __future__ import annotations

import math

from gpuspool.spool.beats import Beat
from gpuspool.spool.layout import Layout, epoch_name
from gpuspool.spool.liveness import PARENT_BEATS


class ParentBeat:
    """Beats for this process in one epoch. `every_s` is how often a beat is due."""

    def __init__(self, layout: Layout, epoch: int, lease_s: float) -> None:
        self.every_s = lease_s / PARENT_BEATS
        self._beat = Beat(layout, epoch_name(epoch))
        self._last = -math.inf

    def beat_if_due(self, now: float) -> None:
        """Beat by rename(2), if the last beat is old enough.

        `now` is on the monotonic clock. Raises OSError.
        """
        if now - self._last < self.every_s:
            return
        self._beat.move()
        self._last = now

    def end(self) -> None:
        """Beat no more: this parent has said how it ended."""
        self._beat.end()
