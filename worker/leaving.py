"""The end of this process, once its attempt is over: in order if it can be, by `_exit` if not.

The interpreter waits for the threads of the job, then calls the exit handlers of its modules, then
takes everything apart. All of that is code of others, and any of it may hang or take very long. The
orchestrator waits for this process, so:

1. `watch` starts a thread that gives them LEAVING_S. Then it says in the log what is still at work,
   with all stacks, and ends the process with the exit code that it was to have.
2. Code in C that keeps the interpreter's lock stops that thread too. Then faulthandler's timer ends
   the process, which is fine for an attempt that is closed: nobody needs its exit code.
3. An attempt that could not be closed has nobody who knows that it is at its end: its parent takes
   it for one that works. So `end` skips the taking apart, in which no thread of ours runs any more.

A job of kind "call" is not watched. `attempt` calls `watch`, `__main__` calls `end`.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from typing import NoReturn

from gpuspool.spool.errors import EXIT_CANNOT_CLOSE
from gpuspool.spool.timeouts import LEAVING_S
from gpuspool.worker.say import say

# So much later faulthandler's timer goes off, should the thread that watches be unable to run.
LOCKED_S = 2.0
# The log, which is this process's stderr.
LOG = 2


def watch(code: int) -> None:
    """From now on this process has LEAVING_S to end; then it is ended with this exit code."""
    if code != EXIT_CANNOT_CLOSE:
        faulthandler.dump_traceback_later(LEAVING_S + LOCKED_S, exit=True, file=LOG)
    thread = threading.Thread(target=_wait, args=(code,), name="gpuspool-leaving", daemon=True)
    # Where there is no thread to be had, the parent ends this process a little later.
    with contextlib.suppress(RuntimeError):
        thread.start()


def end(code: int) -> NoReturn:
    """Wait for the job's threads and call the exit handlers, as the interpreter does, and end."""
    if code == EXIT_CANNOT_CLOSE:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        exit_now(code)
    sys.exit(code)


def _wait(code: int) -> None:
    time.sleep(LEAVING_S)
    say(
        f"gpuspool: {LEAVING_S:.0f} s after its attempt ended {_who()} still at work; this process "
        "ends now, and what that had not done is not done. All threads stand here:"
    )
    with contextlib.suppress(OSError, RuntimeError):
        faulthandler.dump_traceback(file=LOG)
    exit_now(code)


def _who() -> str:
    """What keeps this process from ending."""
    names = []
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            names.append(thread.name)
    if names:
        return f"threads of the job ({', '.join(names)}) are"
    return "an exit handler of the job is"


def exit_now(code: int) -> NoReturn:
    """End this process at once.

    An exit code below 0 stands for a signal: the worker's own word, which no job can say by
    accident (see EXIT_CANNOT_CLOSE).
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if code < 0:
        # The job may have set its own handler, or blocked all signals. Only the main thread may
        # change the first of these.
        with contextlib.suppress(ValueError):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(abs(code))
