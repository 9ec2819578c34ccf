"""When a parent may leave since it has had nothing to do for a while (`--leave-when-idle`).

Workers with nothing to claim wait with the job loaded, in case that others fail or die. Where the
allotment of GPUs is paid for by time that may be a waste: others can finish what they have in hand.
The loop asks at each look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gpuspool.spool.states import Phase
from gpuspool.spool.view import View


class Rest:
    """For how long no worker of this parent has had anything to do, as their heartbeats tell."""

    def __init__(
        self, view: View, attempts: Callable[[], Sequence[str]], limit_s: float | None
    ) -> None:
        """attempts: those that this parent has started and not forgotten, or has adopted. limit_s:
        after so long it leaves; None: never.
        """
        self._view = view
        self._attempts = attempts
        self.limit_s = limit_s
        self._since: float | None = None

    def is_over(self, now: float) -> bool:
        """Whether it is time to leave; `now` is on the monotonic clock. Raises OSError.

        A parent that has no worker at all rests too: there was nothing to start one for.
        """
        if self.limit_s is None:
            return False
        if not are_all_idle(self._view, self._attempts()):
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= self.limit_s

    def due_in_s(self, now: float) -> float | None:
        """After how many seconds to ask again; None for a parent that never leaves."""
        if self.limit_s is None:
            return None
        if self._since is None:
            return self.limit_s
        return max(0.0, self._since + self.limit_s - now)


def are_all_idle(view: View, attempts: Iterable[str]) -> bool:
    """Whether all of these attempts have nothing to do, as their heartbeats tell."""
    beats = [view.heartbeat(attempt) for attempt in attempts]
    return all(beat is not None and beat.state is Phase.IDLE for beat in beats)
