"""The timer that ends this process when a call takes too long, even where it is stuck in C with the
interpreter's lock.

faulthandler's own thread needs no lock: it writes every thread's stack to a file and calls _exit.
What the file holds is the proof that the parent reads; see spool/timeouts.py. Without a limit
nothing is opened and nothing is armed.
"""

from __future__ import annotations

import faulthandler
import os
import time

from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import FILE_MODE
from gpuspool.spool.records import Options
from gpuspool.spool.timeouts import SLACK, is_limited, limit_s


class Timer:
    """Armed for one call at a time; raises OSError where its file cannot be opened."""

    def __init__(self, layout: Layout, attempt: str, options: Options) -> None:
        self._options = options
        self._fires_at = 0.0
        self._fd: int | None = None
        if is_limited(options):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(layout.stacks(attempt), flags, FILE_MODE)

    def begin(self, tasks: int) -> None:
        """A call of so many tasks begins (0: the job is loaded). A timer that fits is not set anew."""
        if self._fd is None:
            return None
        limit = limit_s(self._options, tasks)
        if limit is None:
            return self.end()
        now, slack = time.monotonic(), limit * SLACK
        if not limit <= self._fires_at - now <= limit + slack:
            self._fires_at = now + limit + slack
            faulthandler.dump_traceback_later(limit + slack, exit=True, file=self._fd)
        return None

    def end(self) -> None:
        """Nothing is in hand: this process may wait as long as it likes."""
        if self._fires_at:
            self._fires_at = 0.0
            faulthandler.cancel_dump_traceback_later()
