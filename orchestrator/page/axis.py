"""The one axis of time that all pictures of a page share, in seconds from 0.

A run may be killed on Monday and go on on Thursday. On an axis of the clock its work would be two
thin lines at the ends. So where no attempt lived for long the axis is cut, and says for how long.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

# A pause is cut if it is longer than this part of the time in which anything lived, and than so
# many seconds: people shall see the moments in which a run was started again.
CUT_FRACTION = 0.02
CUT_S = 5.0


class Axis:
    """Where a moment lies. length: in seconds. cuts: (where, how many seconds are left out)."""

    def __init__(self, spans: Iterable[tuple[float, float]]) -> None:
        """spans: (began, ended) of all that lived, in Unix seconds."""
        pieces: list[list[float]] = []
        for began, ended in sorted(spans):
            if pieces and began <= pieces[-1][1]:
                pieces[-1][1] = max(pieces[-1][1], ended)
            else:
                pieces.append([began, ended])
        lived = sum(ended - began for began, ended in pieces)
        longest = max(CUT_S, CUT_FRACTION * lived)
        self.origin = pieces[0][0] if pieces else 0.0
        self.lived_s = lived
        self.cuts: list[tuple[float, float]] = []
        # The beginnings of the pieces, and what is taken off a moment in each.
        self._starts: list[float] = []
        self._offsets: list[float] = []
        offset = self.origin
        for number, (began, _) in enumerate(pieces):
            pause = began - pieces[number - 1][1] if number else 0.0
            if pause > longest:
                self.cuts.append((pieces[number - 1][1] - offset, pause))
                offset += pause
            self._starts.append(began)
            self._offsets.append(offset)
        self.length = pieces[-1][1] - offset if pieces else 0.0

    def offset(self, at: float) -> float:
        """What is taken off a moment to know where it lies."""
        if not self._starts:
            return self.origin
        return self._offsets[max(0, bisect.bisect_right(self._starts, at) - 1)]

    def place(self, at: float) -> float:
        """Where a moment lies; at an end where it lies beyond it."""
        return min(max(0.0, at - self.offset(at)), self.length)
