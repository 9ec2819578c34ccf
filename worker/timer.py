"""The timer that ends this process when a call takes too long, wherever the call is stuck.

A call may hang in Python, in C with the interpreter's lock held, or in the kernel. A Python thread
or a signal handler would end only the first. So the timer is faulthandler's: a thread of C that
needs no lock. When it goes off it writes the stack of every Python thread to
`logs/<attempt>.stacks` and calls `_exit`. That file is empty otherwise, so whoever closes the
attempt reads in it that this was a time-out, and where; an exit code alone could mean anything. See
`spool/timeouts.py`.

**One timer serves many calls.** Setting the timer stops its thread and starts another, which costs
tens of microseconds, twenty times what a tiny task takes. So a timer that runs is left alone as
long as it fits the call that begins: it must not go off before the call's limit, nor later than a
tenth (SLACK) after it. For example, with a limit of 10 s:

- At 0 s a call begins. Nothing runs, so the timer is set to 10 s + 1 s: it goes off at 11 s.
- A call begins at 0.4 s. Its limit ends at 10.4 s, and 11 s lies between 10.4 s and 11.4 s: nothing
  is done. So it is for all calls that begin up to 1 s: thousands of them, if they are tiny.
- A call begins at 1.2 s. Its limit ends at 11.2 s, but the timer would go off at 11 s. So it is set
  anew, to 12.2 s.

So at most one thread is started per tenth of a limit, and a limit is kept to within a tenth of
itself. Decision 9 says more. tests/test_timer.py checks how often a timer is set, and
tests/test_timeouts.py that calls are ended wherever they hang.

Without a limit no file is opened and no timer is set.
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
    """The limit on time of one attempt's calls, one after the other."""

    def __init__(self, layout: Layout, attempt: str, options: Options) -> None:
        """Opens the file of stacks if there is a limit. Raises OSError where that is impossible."""
        self._options = options
        # When the timer that runs goes off, on the monotonic clock; in the past where none runs.
        self._fires_at = 0.0
        self._fd: int | None = None
        if is_limited(options):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(layout.stacks(attempt), flags, FILE_MODE)

    def begin(self, tasks: int) -> None:
        """A call of so many tasks begins, or with 0 the loading of the job."""
        if self._fd is None:
            return
        limit = limit_s(self._options, tasks)
        if limit is None:
            self.end()
            return
        now = time.monotonic()
        latest = limit * (1 + SLACK)
        if limit <= self._fires_at - now <= latest:
            return
        self._fires_at = now + latest
        faulthandler.dump_traceback_later(latest, exit=True, file=self._fd)

    def end(self) -> None:
        """Nothing is in hand: from now on this process may wait as long as it likes."""
        if self._fires_at:
            self._fires_at = 0.0
            faulthandler.cancel_dump_traceback_later()
