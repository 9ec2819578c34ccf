"""The request to drain: finish the tasks in hand, claim nothing more, and end.

An attempt has one `Drain`. It is asked for by signal handlers, by the beat's thread (which looks
for `gpuspool drain`) and by whoever notices that the parent is gone. It is heeded by the work loop,
by the executor between two calls, by everything that waits, and by the job through
`ctx.is_draining()`.
"""

from __future__ import annotations


class Drain:
    """Whether this attempt was asked to drain. A request cannot be taken back."""

    def __init__(self, is_possible: bool = True) -> None:
        """is_possible: False for a job that drains at nothing, as one call of the seed API."""
        self._is_possible = is_possible
        # Written by `request` alone. A plain attribute, since the executor reads it between any two
        # calls, and a call may be over in a microsecond.
        self.is_requested = False

    def request(self, *_: object) -> None:
        """Ask for it. One assignment: safe in a signal handler and from any thread."""
        if self._is_possible:
            self.is_requested = True
