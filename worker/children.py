"""The processes that a job starts: none is a second worker, and none outlives this one.

A forked process inherits this one whole: its way back to the loop that claims and journals, and
handlers that answer SIGTERM with a drain, so that nobody could end a pool of such processes.
`keep_apart` undoes the handlers, `call_user_code` (in `results`) asks `is_fork` and ends with
`leave` whatever comes back, and `end_all` kills what is left at the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from gpuspool.spool.processes import kill_descendants, kill_marked
from gpuspool.worker.say import say

# The exit handlers of modules that the job imported have so long to end its processes, before we
# kill them: some of those handlers wait for ever.
END_S = 2.0

# Whether this process was forked by a worker.
is_fork = False


def keep_apart(signals: Sequence[int], drain: Callable[..., Any]) -> None:
    """From now on, in every process that this one forks: no signal drains, and `is_fork` is true.

    signals: those that may be handled by `drain`. They are blocked while a process is being forked.
    Without that, a signal that reached the child before its handlers are undone would be answered
    with a drain of nothing, and the child would live on.
    """

    masks = threading.local()

    def before_fork() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def restore_mask() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def begin_child() -> None:
        global is_fork
        is_fork = True
        for number in signals:
            if signal.getsignal(number) == drain:
                signal.signal(number, signal.SIG_DFL)
        restore_mask()

    os.register_at_fork(
        before=before_fork, after_in_parent=restore_mask, after_in_child=begin_child
    )


def leave(raised: BaseException | None) -> NoReturn:
    """End a forked process that came back from the job, much as its interpreter would."""
    code = 0
    if isinstance(raised, SystemExit) and isinstance(raised.code, int | None):
        code = raised.code or 0
    elif raised is not None:
        say("".join(traceback.format_exception(raised)).rstrip())
        code = 1
    os._exit(code & 0xFF)


def end_all(marked_run: str, attempt: str, parent: int) -> None:
    """Kill what the job left running, also in sessions of its own and with other environments.

    marked_run and attempt make the mark in the environment of what this attempt started. parent:
    the pid of the orchestrator. While it lives it kills what bears the mark once this process is
    gone, so here only the descendants are.
    """
    if is_fork:
        return
    with contextlib.suppress(ChildProcessError):
        # Raises if there is no child at all, which spares us a walk through /proc.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        killed = kill_descendants(os.getpid())
        if killed:
            say(f"gpuspool: {killed} processes that the job left running are killed")
    if os.getppid() != parent:
        with contextlib.suppress(OSError):
            kill_marked(marked_run, (attempt,), spare=(os.getpid(),))


def call_soon(function: Callable[[], None]) -> None:
    """Call it in END_S seconds, if this process lasts so long.

    The interpreter waits for the threads of the job before it runs any exit handler, and such a
    thread may itself wait for a child. So the children are killed from a thread of our own.
    """
    timer = threading.Timer(END_S, function)
    timer.daemon = True
    # Where there is no thread to be had, the exit handler must do.
    with contextlib.suppress(RuntimeError):
        timer.start()
