"""What the main thread is at, for the thread beside it, which tells it to people."""

from __future__ import annotations

import msgspec

from gpuspool.spool.records import TaskLine
from gpuspool.spool.states import Phase
from gpuspool.worker.clocks import Clocks
from gpuspool.worker.devices import Device


class Doing(msgspec.Struct):
    """What the main thread is at. It alone writes this; the beat reads."""

    phase: Phase = Phase.LOADING
    # The first task of the call, since when in Unix seconds, and how many tasks the call has. The
    # first two are None between calls, and the third means nothing then.
    line: TaskLine | None = None
    since: float | None = None
    n_tasks: int = 1
    # How many tasks got their verdict in this attempt, by verdict.
    complete: int = 0
    failed: int = 0
    device: Device = msgspec.field(default_factory=Device)
    clocks: Clocks = msgspec.field(default_factory=Clocks)

    def let_go(self) -> None:
        """No call is in hand."""
        self.line = None
        self.since = None
