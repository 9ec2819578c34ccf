"""What this process itself did to attempts: told them to end, killed them, found them overdue.

It decides whom a death blames. A worker that was told to end, and then ends however it likes, is
nobody's failure; one that was killed for taking too long has timed out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

# From SIGKILL until a process that is not gone counts as dead. It hangs in the kernel, mostly in a
# driver or a file system, and runs no user code any more, so nobody waits for it.
UNREAPED_S = 3.0


class Interventions:
    """The acts of one epoch, by attempt."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._overdue: set[str] = set()
        self._killed_at: dict[str, float] = {}

    def note_told(self, attempts: Iterable[str]) -> None:
        """They were told to end; what becomes of them from now on blames nobody."""
        self._told.update(attempts)

    def note_overdue(self, attempt: str) -> None:
        """It took too long."""
        self._overdue.add(attempt)

    def note_killed(self, attempt: str, now: float) -> None:
        """SIGKILL was sent to its process group, perhaps not for the first time."""
        self._killed_at.setdefault(attempt, now)

    def was_told(self, attempt: str) -> bool:
        return attempt in self._told

    def is_overdue(self, attempt: str) -> bool:
        return attempt in self._overdue

    def is_explained(self, attempt: str) -> bool:
        """Whether this process has itself brought about its end."""
        return self.was_told(attempt) or self.is_overdue(attempt)

    def was_killed(self, attempt: str) -> bool:
        return attempt in self._killed_at

    def is_beyond_help(self, attempt: str, now: float) -> bool:
        """Whether it was killed so long ago that it must hang in the kernel, if it is not gone."""
        return now > self._killed_at.get(attempt, math.inf) + UNREAPED_S
