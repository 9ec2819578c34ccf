"""The timer that ends this process when a call takes too long.

A limit is on the time for which this process *ran*. A laptop that sleeps, `docker pause`, SIGSTOP:
none of these is the task's doing. So a thread counts ticks, and however late a tick comes, it
counts as no more than two. At the limit the thread writes the stack of every thread to
`logs/<attempt>.stacks` and ends the process. That file is empty otherwise, so whoever closes the
attempt reads in it that this was a time-out, and where; an exit code alone could mean anything. See
`spool/timeouts.py`.

**A call that keeps the interpreter's lock** (a hang in C, a regular expression that never ends)
keeps this thread from counting too. Then the parent finds that the call takes too long. It asks for
the stacks by a signal that is answered in C, without the lock, and kills. Where the parent is gone,
each tick sets faulthandler's timer a little beyond what is left; it goes off only if no further
tick sets it anew. That one knows of no standstill, which is why it is not used while there is a
parent.

**What is limited**: the loading of the job, and calls. Publishing the outputs of a call is not part
of it, since how long that takes depends on the file system. With a stall time-out each file must be
published within it; beyond that this process ends as one that cannot write, and nobody is blamed.

**A call costs one assignment here.** The thread sees at its next tick that there is another call,
and begins to count. So a limit is kept to within two ticks, which are a tenth of it (SLACK).

Decision 9 says more. tests/test_timer.py checks what is counted, tests/test_timeouts.py that calls
are ended wherever they hang, and tests/test_standstill.py that whoever stood still loses no task.

Without a limit no file is opened and no thread is started.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable

import msgspec

from gpuspool.spool.errors import EXIT_CANNOT_CLOSE
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import open_to_append, out_of_the_way
from gpuspool.spool.records import Options
from gpuspool.spool.timeouts import SLACK, STACKS_SIGNAL, is_limited, limit_s, parent_limit_s
from gpuspool.worker.leaving import exit_now
from gpuspool.worker.say import say

# The longest and the shortest tick. Ten ticks a second of a thread that does nothing else cost
# nothing; what is limited to less than a second needs them shorter.
LONGEST_TICK_S = 1.0
SHORTEST_TICK_S = 0.01
# However late a tick comes, it counts as no more than so many: the process stood still meanwhile.
TICKS_COUNTED = 2


class _Hand(msgspec.Struct, frozen=True, eq=False):
    """What is in hand, and how long this process may run until there is something else.

    limit_s: None for as long as it likes.
    """

    limit_s: float | None
    is_publishing: bool = False


NOTHING = _Hand(None)


class Count:
    """For how long what is in hand was worked on, in run time."""

    def __init__(self, tick_s: float, now: float) -> None:
        self.run_s = 0.0
        self._hand = NOTHING
        self._most_s = TICKS_COUNTED * tick_s
        self._at = now

    def tick(self, hand: _Hand, now: float) -> None:
        """A tick came at `now`, on any clock that does not go back."""
        gap_s = now - self._at
        self._at = now
        if hand is not self._hand:
            self._hand = hand
            self.run_s = 0.0
            return
        self.run_s += min(gap_s, self._most_s)


class Timer:
    """The limit on time of one attempt's calls, one after the other."""

    def __init__(
        self, layout: Layout, attempt: str, options: Options, has_parent: Callable[[], bool]
    ) -> None:
        """Opens the file of stacks if there is a limit. Raises OSError where that is impossible."""
        self._options = options
        self._has_parent = has_parent
        self._hand = NOTHING
        self._fd: int | None = None
        # Whether faulthandler's timer was set here.
        self._is_set = False
        # Called when a publication takes long enough for the parent to ask what is going on.
        self._tell: Callable[[], None] | None = None
        if not is_limited(options):
            return
        self._fd = out_of_the_way(open_to_append(layout.stacks(attempt)))
        self._tick_s = tick_s(options)

    def start(self, tell: Callable[[], None]) -> None:
        """Count from now on. tell: replaces the heartbeat; called from the timer's own thread."""
        if self._fd is None:
            return
        self._tell = tell
        # With `chain` the signal's usual action follows, which ends the process: a call that the
        # signal woke must not come back.
        faulthandler.register(STACKS_SIGNAL, file=self._fd, chain=True)
        threading.Thread(target=self._run, name="gpuspool-timer", daemon=True).start()

    def begin(self, tasks: int) -> None:
        """A call of so many tasks begins, or with 0 the loading of the job."""
        if self._fd is not None:
            self._hand = _Hand(limit_s(self._options, tasks))

    def publish(self) -> None:
        """The call is over, and the next file of its outputs is published now."""
        if self._fd is not None:
            self._hand = _Hand(self._options.stall_timeout_s, is_publishing=True)

    def end(self) -> None:
        """Nothing is in hand: from now on this process may take as long as it likes."""
        self._hand = NOTHING

    def _run(self) -> None:
        count = Count(self._tick_s, time.monotonic())
        was_publishing = False
        while True:
            time.sleep(self._tick_s)
            hand = self._hand
            count.tick(hand, time.monotonic())
            if hand.limit_s is not None and count.run_s >= hand.limit_s:
                self._fire(hand)
            self._watch_without_parent(hand, count.run_s)
            # Told at its first tick, and when it is over: the parent looks only at what is late.
            if hand.is_publishing is not was_publishing and self._tell is not None:
                was_publishing = hand.is_publishing
                self._tell()

    def _fire(self, hand: _Hand) -> None:
        """End this process, unless the call ended just now."""
        assert self._fd is not None
        if hand is not self._hand:
            return
        if hand.is_publishing:
            say("gpuspool: an output is not published within --stall-timeout; this process ends")
            with contextlib.suppress(OSError, RuntimeError):
                faulthandler.dump_traceback(file=2)
            exit_now(EXIT_CANNOT_CLOSE)
        # Where the stacks cannot be written the process must end all the same.
        with contextlib.suppress(OSError, RuntimeError):
            faulthandler.dump_traceback(file=self._fd)
        os._exit(1)

    def _watch_without_parent(self, hand: _Hand, run_s: float) -> None:
        """Without a parent, be ended in C should the lock be kept for longer than what is left."""
        assert self._fd is not None
        if self._has_parent():
            return
        if hand.limit_s is None or hand.is_publishing:
            # Only what was set here: the end of this process sets faulthandler's timer too.
            if self._is_set:
                self._is_set = False
                faulthandler.cancel_dump_traceback_later()
            return
        self._is_set = True
        left_s = max(0.0, parent_limit_s(hand.limit_s) - run_s)
        seconds = left_s + TICKS_COUNTED * self._tick_s
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._fd)


def tick_s(options: Options) -> float:
    """How long a tick is: two are the SLACK of the shortest limit."""
    limits = [options.task_timeout_s, options.stall_timeout_s]
    shortest = min(limit for limit in limits if limit is not None)
    return min(max(shortest * SLACK / 2, SHORTEST_TICK_S), LONGEST_TICK_S)
