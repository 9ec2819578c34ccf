"""Whether what workers import is in this host's caches, so that all may start together.

Where the interpreter lies on a network file system, ranks that start together ask its server for
the same thousands of small files at the same time, and all take as long as the slowest answer. So
one rank starts first. Once it has imported its job, most of what the others need is in the caches
of this host: the host is *warm*, and before that it is *cold*.

The first rank must not keep the others from starting for good. So the host also counts as warm

- once the first rank has ended, however it ended: it may have been unable to load the job;
- after WARM_S: the rank may hang;
- from the start, if a worker is at work on this host already, such as one that outlived its parent.

`Situation` asks for each snapshot; `decide` holds the others back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from gpuspool.orchestrator.supervise.decide import OpenAttempt, RankPast
from gpuspool.spool.states import Phase
from gpuspool.spool.view import View

# The others wait for the first one no longer than this. Slow file servers are known to take a
# minute for torch; with each second more the devices of the others stand idle.
WARM_S = 60.0
# How often the first one is looked at meanwhile. Nothing rings when it has imported its job.
LOOK_S = 1.0


class Warmth:
    """Whether this host is still cold, for one start. Once it is warm, it stays so."""

    def __init__(self, view: View, is_cold: bool) -> None:
        """is_cold: there are several slots, and one of them shall start alone."""
        self._view = view
        self._is_cold = is_cold
        # Since when an attempt of this host is seen to be open, on the monotonic clock.
        self._open_since: float | None = None

    def look(self, attempts: Iterable[OpenAttempt], past: Iterable[RankPast]) -> bool:
        """Whether the host is cold, so that only one rank may start.

        attempts: all that are open. past: of this parent's slots. Raises OSError.
        """
        if not self._is_cold:
            return False
        here = [one for one in attempts if one.is_own]
        now = time.monotonic()
        if here and self._open_since is None:
            self._open_since = now
        is_late = self._open_since is not None and now - self._open_since >= WARM_S
        has_any_ended = any(rank.reasons for rank in past)
        self._is_cold = not (is_late or has_any_ended or any(map(self._has_imported, here)))
        return self._is_cold

    def due_at(self) -> float | None:
        """When to look again, on the monotonic clock; None where nobody is waited for."""
        if not self._is_cold or self._open_since is None:
            return None
        return time.monotonic() + LOOK_S

    def _has_imported(self, attempt: OpenAttempt) -> bool:
        if not attempt.is_starting:
            return True
        beat = self._view.heartbeat(attempt.name)
        return beat is not None and beat.state is not Phase.LOADING
