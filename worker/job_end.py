"""The job's own end: `close(ctx)`, called once, after the last task, before the attempt is closed.

It is the job's code, so it may raise, hang, or be killed. None of that concerns a task:

1. The journal is told that the job is called for no task any more. From then on the death of this
   process speaks against none of those that it has claimed and not begun.
2. `close` is called in the main thread, as every call of the job is.
3. What it raises is told: in the log, in the record of the attempt, and by the orchestrator.
4. A thread watches it. A `close` that takes longer than the grace is given up: the log gets all
   stacks, this thread closes the attempt, and the process ends. Code in C that keeps the
   interpreter's lock stops this thread too; then faulthandler's timer ends the process, and the
   parent closes the attempt.

Called by `attempt`, wherever a worker with a loaded job ends by itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from gpuspool.spool.records import Error
from gpuspool.spool.states import ErrorKind
from gpuspool.worker.causes import forget_frames
from gpuspool.worker.context import Context
from gpuspool.worker.drain import Drain
from gpuspool.worker.leaving import LOCKED_S, LOG
from gpuspool.worker.results import call_user_code, to_error
from gpuspool.worker.say import for_people, say

# A drain that comes, or has come, shortens what is left. Somebody looks for it so often.
LOOK_S = 0.1
# Before the grace of a drain is over this process must have closed its attempt; else its parent
# kills it, and nobody tells why. So this part of the grace is kept for that, and no more than so
# many seconds.
KEPT_FRACTION = 0.1
KEPT_S = 2.0


class JobEnd:
    """One call of the job's `close`."""

    def __init__(self, drain: Drain, grace_s: float) -> None:
        self._drain = drain
        self._grace_s = grace_s
        self._began = time.monotonic()
        self._is_over = threading.Event()
        # Whoever gets it says how the call ended; the other one says nothing.
        self._word = threading.Lock()

    def call(
        self,
        close: Callable[[Context], Any],
        context: Context,
        give_up: Callable[[Error], NoReturn],
    ) -> Error | None:
        """Call it; returns the error that it came to, which is told in the log.

        give_up: is called, in another thread, with the error of a call that takes too long.
        """
        faulthandler.dump_traceback_later(self._left_s() + LOCKED_S, exit=True, file=LOG)
        watch = threading.Thread(
            target=self._watch, args=(give_up,), name="gpuspool-close", daemon=True
        )
        # Where there is no thread to be had, faulthandler's timer must do.
        with contextlib.suppress(RuntimeError):
            watch.start()
        _, raised = call_user_code(close, context)
        if not self._word.acquire(blocking=False):
            # It was given up, and this process is about to end.
            threading.Event().wait()
        self._is_over.set()
        faulthandler.cancel_dump_traceback_later()
        if raised is None:
            return None
        error = to_error(raised)
        forget_frames(raised)
        if error.kind in (ErrorKind.NOT_DONE, ErrorKind.RESTART):
            # There is no task to go back, and this process ends anyway.
            error = msgspec.structs.replace(error, kind=ErrorKind.EXCEPTION)
        words = error.traceback or f"{error.type}: {error.message}"
        say(f"gpuspool: the job's `close` failed; no task is concerned\n{words.rstrip()}")
        return error

    def _left_s(self) -> float:
        """For how long it may go on."""
        until = self._began + self._grace_s
        asked_at = self._drain.asked_at
        if asked_at is not None:
            kept_s = min(KEPT_S, KEPT_FRACTION * self._grace_s)
            until = min(until, asked_at + self._grace_s - kept_s)
        return max(0.0, until - time.monotonic())

    def _watch(self, give_up: Callable[[Error], NoReturn]) -> None:
        while True:
            left_s = self._left_s()
            if left_s <= 0:
                break
            if self._is_over.wait(min(left_s, LOOK_S)):
                return
        if not self._word.acquire(blocking=False):
            return
        took_s = time.monotonic() - self._began
        message = f"the job's `close` did not come to an end within the grace ({took_s:.1f} s)"
        say(f"gpuspool: {for_people(message)}; this process ends now. All threads stand here:")
        with contextlib.suppress(OSError, RuntimeError):
            faulthandler.dump_traceback(file=LOG)
        give_up(Error(kind=ErrorKind.TIMEOUT, type="CloseTimeout", message=message))
