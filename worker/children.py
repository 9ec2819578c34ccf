"""The processes that a job starts: none is a second worker, and none outlives this one.

Forked ones inherit this process whole: its way back to the loop that claims and journals, and
handlers that answer SIGTERM with a drain, so that a pool of processes could not be ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gpuspool.spool.processes import kill_descendants, kill_marked, run_mark
from gpuspool.worker.say import say

# for the exit handlers of what the job imported to end its processes, of which others may wait
END_S = 2.0

is_fork = False  # whether this process was forked by a worker


def keep_apart(signals: Sequence[int], drain: Callable[..., Any]) -> None:
    """From now on, in processes that this one forks: `drain` handles no signal, and `is_fork` is
    true.

    The signals wait while a process is being forked, since one that came in between would be lost
    on the child.
    """

    usual = threading.local()

    def enter() -> None:
        usual.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def leave() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual.mask)

    def begin() -> None:
        global is_fork
        is_fork = True
        for number in signals:
            if signal.getsignal(number) == drain:
                signal.signal(number, signal.SIG_DFL)
        leave()

    os.register_at_fork(before=enter, after_in_parent=leave, after_in_child=begin)


def leave(raised: BaseException | None) -> NoReturn:
    """End a forked process that came back from the job, much as its interpreter would."""
    code = 0
    if isinstance(raised, SystemExit) and isinstance(raised.code, int | None):
        code = raised.code or 0
    elif raised is not None:
        say("".join(traceback.format_exception(raised)).rstrip())
        code = 1
    os._exit(code & 0xFF)


def end_all(root: Path, run_id: str, attempt: str, parent: int) -> None:
    """End what the job left running, also in sessions of its own and with other environments."""
    if is_fork:
        return
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        kill_descendants(os.getpid())
    if os.getppid() != parent:  # else the parent does it
        with contextlib.suppress(OSError):
            kill_marked(run_mark(root, run_id), (attempt,), spare=(os.getpid(),))


def call_soon(function: Callable[[], None]) -> None:
    """In END_S, should this process last so long: threads that the interpreter waits for may wait
    for a child.
    """
    timer = threading.Timer(END_S, function)
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # no thread to be had
        timer.start()
