"""The request to drain: finish the tasks in hand, claim nothing more, and end.

An attempt has one `Drain`. It is asked for by signal handlers, by a file in the spool's control/
(which the beat's thread looks for) and by whoever notices that the parent is gone. It is heeded by
the work loop, by the executor between two calls, by everything that waits, and by the job through
`ctx.is_draining()`.

It also answers whether a failure may be the work of a stop that everybody got (see
`spool/signals.py`): then nobody is to blame for it.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from enum import Enum, auto

from gpuspool.spool.signals import STOP_SIGNALS

# While somebody waits for a stop to be told, the process looks around so often.
LOOK_S = 0.02


class Cause(Enum):
    """What is known of the cause of a failure."""

    # A drain was asked for before it, or within its moment.
    STOP = auto()
    # Its moment has passed, and nobody had asked for anything.
    OTHER = auto()
    # Its moment has not passed yet.
    UNKNOWN = auto()


def _is_never_published() -> bool:
    return False


class Drain:
    """Whether this attempt was asked to drain. A request cannot be taken back."""

    def __init__(
        self, is_possible: bool = True, is_published: Callable[[], bool] = _is_never_published
    ) -> None:
        """is_possible: False for a job that drains at nothing, as one call of the seed API.
        is_published: looks whether the spool asks for a drain; may raise OSError.
        """
        self.is_possible = is_possible
        # Written by `_ask` alone. A plain attribute, since the executor reads it between any two
        # calls, and a call may be over in a microsecond.
        self.is_requested = False
        # It was asked for no sooner than this, on the monotonic clock.
        self._asked_after = 0.0
        self._is_published = is_published
        self._looked_at = time.monotonic()

    def request(self, *_: object) -> None:
        """Ask for it. Only assignments: safe in a signal handler and from any thread."""
        self._ask(time.monotonic())

    def _ask(self, not_before: float) -> None:
        if self.is_possible and not self.is_requested:
            self._asked_after = not_before
            self.is_requested = True

    @property
    def asked_at(self) -> float | None:
        """When it was asked for at the earliest, on the monotonic clock; None where it was not."""
        return self._asked_after if self.is_requested else None

    def look(self) -> None:
        """Look whether the spool asks for a drain. Safe from any thread; what fails is no drain."""
        # Whoever cannot look will look again soon. When the file was published is not known, only
        # that it was not there at the last look.
        now = time.monotonic()
        with contextlib.suppress(OSError):
            if not self.is_requested and self._is_published():
                self._ask(self._looked_at)
            self._looked_at = now

    def is_deaf(self) -> bool:
        """Whether the job, or a library of it, has taken a stop signal for itself, so that this
        attempt is told to drain by the spool alone. To be called in the main thread.
        """
        if not self.is_possible:
            return False
        # SIGHUP may be ignored, by nohup(1).
        return any(
            signal.getsignal(number) not in (self.request, signal.SIG_IGN)
            for number in STOP_SIGNALS
        )

    def cause_of(self, failed_at: float, moment_s: float) -> Cause:
        """Whether a stop explains a failure at this moment of the monotonic clock.

        moment_s: for how long a stop may be told after the failure. Look before: a drain counts
        only once it was seen.
        """
        believed_at = failed_at + moment_s
        if self.is_requested:
            return Cause.STOP if self._asked_after <= believed_at else Cause.OTHER
        return Cause.OTHER if time.monotonic() >= believed_at else Cause.UNKNOWN

    def is_told_within(self, moment_s: float) -> bool:
        """Wait until a drain is asked for, at most so long; whether it was."""
        if not self.is_possible:
            return False
        until = time.monotonic() + moment_s
        while not self.is_requested and time.monotonic() < until:
            time.sleep(LOOK_S)
        self.look()
        return self.is_requested
