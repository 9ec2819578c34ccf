"""Patience with a file system in trouble.

A server that restarts, a quota that is reached and a disk that is full all look alike to the loop:
an OSError out of a look or an act. Most pass. So the loop tries again for a while, and stops the
run only when it has tried in vain for that long. It stops well before a worker's grace or a lease
is over, so that everything it started is accounted for.

The loop wraps its steps in `Patience`; `DiskWatch` keeps it from starting workers that would fail
at their first write.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.spool.errors import SyncError
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.publish import probe_folder
from gpuspool.spool.records import Closing
from gpuspool.spool.states import Reason
from gpuspool.spool.view import View

# Between two tries. Short beside the patience, and long enough not to hammer a server that starts.
RETRY_S = 0.2

# A step may fail for this long before the run stops. The restart of a file server's process takes
# a few seconds; what takes longer needs a person.
PATIENCE_S = 8.0

# Once the run stops for a file system in trouble, workers have this long to end themselves. With
# the patience it is less than half a minute, which batch schedulers give to a job that ends.
ABANDON_S = 15.0

T = TypeVar("T")


class Patience:
    """Waits out errors of the file system, as long as they do not last."""

    def __init__(self, telling: Telling) -> None:
        self._telling = telling
        # For how long the steps have failed in a row, and when the last did; None: none has.
        self._troubled_s = 0.0
        self._last_trouble: float | None = None

    def attempt(self, step: Callable[[], T]) -> T | None:
        """What `step` returns, None where it met trouble and is to be tried again.

        Raises SyncError at once, since what a failed fsync dropped cannot be had back; any other
        OSError once every try has failed for PATIENCE_S. Sleeps before it returns None, and not at
        the bell: what was tried in vain may itself ring that.
        """
        try:
            result = step()
        except SyncError:
            raise
        except OSError as trouble:
            self._bear(trouble)
            time.sleep(RETRY_S)
            return None
        self._troubled_s = 0.0
        self._last_trouble = None
        return result

    def _bear(self, trouble: OSError) -> None:
        # The patience is measured over the whole row of failures, not for each step, so that a file
        # system which fails now here and now there cannot keep a run in limbo for ever. It is told
        # once for each row: a line for every try would fill the terminal.
        # A standstill of this process counts for half of its patience at most: a file system that
        # failed before a laptop slept deserves another try after it woke.
        now = time.monotonic()
        if self._last_trouble is None:
            text = f"{trouble}; trying again for {PATIENCE_S:.0f} s"
            self._telling.tell("trouble", text)
        else:
            self._troubled_s += min(now - self._last_trouble, PATIENCE_S / 2)
        self._last_trouble = now
        if self._troubled_s > PATIENCE_S:
            raise trouble


class DiskWatch:
    """Knows whether some attempt ended because a file system was in trouble.

    A worker that cannot write ends itself, and the next would too. So after such an end nobody is
    started until all folders that a worker writes to were seen to take data.
    """

    def __init__(self, view: View, out: Path | None = None) -> None:
        """out: a path that leads to OUT also if it was moved; the one that the run says if None."""
        self._view = view
        self._out = out or out_of(view.layout, view.run)
        self._is_suspect = False

    def note(self, closing: Closing) -> None:
        """Take notice of how an attempt ended."""
        if closing.reason is Reason.IO:
            self._is_suspect = True

    def check(self) -> None:
        """Return if a worker may be started; raises OSError while some folder takes no data."""
        if not self._is_suspect:
            return
        # They are tried by writing, since nothing else tells: a full disk may keep space for root,
        # and a quota may be counted for a user, a group or a folder. Each folder is tried, because
        # what holds for one of them need not hold for another.
        layout = self._view.layout
        for folder in (self._out, layout.root, layout.subdir("logs")):
            probe_folder(folder)
        self._is_suspect = False
