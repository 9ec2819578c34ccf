"""What keeps the processes that a job forks from being second workers.

They inherit this process whole: its way back to the loop that claims and journals, and handlers that answer SIGTERM
with a drain, so that a pool of processes could not be ended.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from worker.say import say

is_fork = False  # whether this process was forked by a worker


def keep_apart(signals: Sequence[int], drain: Callable[..., Any]) -> None:
    """From now on, in processes that this one forks: `drain` handles no signal, and `is_fork` is true.

    The signals wait while a process is being forked, since one that came in between would be lost on the child.
    """

    def enter() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def leave() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    def begin() -> None:
        global is_fork
        is_fork = True
        for number in signals:
            if signal.getsignal(number) == drain:
                signal.signal(number, signal.SIG_DFL)
        leave()

    os.register_at_fork(before=enter, after_in_parent=leave, after_in_child=begin)


def end(raised: BaseException | None) -> NoReturn:
    """End a forked process that came back from the job, much as its interpreter would."""
    code = 0
    if isinstance(raised, SystemExit) and isinstance(raised.code, int | None):
        code = raised.code or 0
    elif raised is not None:
        say("".join(traceback.format_exception(raised)).rstrip())
        code = 1
    os._exit(code & 0xFF)
