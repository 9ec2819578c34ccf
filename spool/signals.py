"""Signals: those that ask a run to stop, how a stop is told from a failure, and what a process
inherits of its parent's.

**A stop that everybody gets.** Batch schedulers, systemd, container runtimes and people signal a
whole tree of processes at once. In what order the parent, a worker, a command and the processes of
a job die or hear of it is chance. So a task may fail since its command was ended, some moments
before its worker, or the parent, learns that all of them are being stopped. A failure that looks
like a stop, or that is a verdict by itself, therefore counts only once a moment has passed in which
nobody heard of a stop (`moment_after`).

**What exec(2) inherits.** A signal that is ignored or blocked stays so in every program that is
started. With SIGCHLD ignored nobody can wait for a child: its exit status is lost, and Python's
subprocess module reads a lost status as success. So every worker begins with `restore_defaults`,
and all that it starts inherits the defaults.

Called by parents and workers alike.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

# What asks a run, or a worker, to end: Ctrl-C, `kill`, a terminal that closes, the two signals that
# batch schedulers are told to send some time before the end of a job, and the one by which some of
# them, and the kernel, tell that the CPU time is nearly used up.
STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)

# What a process dies of if everything around it is being ended: SIGKILL comes last, SIGQUIT from a
# terminal.
_ENDING = frozenset((*STOP_SIGNALS, signal.SIGQUIT, signal.SIGKILL))

ENDING_NAMES = frozenset(signal.Signals(number).name for number in _ENDING)

# How long a failure that is a verdict waits until it is believed. Whoever signals all processes of
# a job does so within milliseconds; a process on a busy machine may notice a few hundred later.
MOMENT_S = 0.5

# The same for a failure that looks like a stop: a process died of such a signal, or the job handles
# these signals itself, so that this process hears of a stop from its parent alone. Some schedulers
# signal one step of a job after the other.
STOP_MOMENT_S = 3.0

# Python itself ignores these two in every process, and its subprocess module restores them in what
# it starts. A SIGHUP that is ignored was ignored by nohup(1), so that all that it starts outlives
# the terminal; so it must stay.
_LEFT_ALONE = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP)


def is_ending(status: int) -> bool:
    """Whether an exit status, -N or a shell's 128+N, tells of a signal N that ends whole jobs."""
    number = -status if status < 0 else status - 128
    return number in _ENDING


def moment_after(looks_like_stop: bool) -> float:
    """For how many seconds after a failure a stop may still be the cause of it."""
    if looks_like_stop:
        return STOP_MOMENT_S
    return MOMENT_S


def restore_defaults() -> None:
    """Set to the default what this process inherited: signals that are ignored or blocked.

    To be called first thing by the main thread of a process that runs a job, before anything has
    chosen a handler. A SIGHUP that nohup(1) had ignored stays ignored.
    """
    for number in signal.valid_signals():
        if number not in _LEFT_ALONE and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        # As Python does where SIGINT is not ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    unblock_all()


def unblock_all() -> None:
    """From now on this thread, and what it starts, blocks no signal."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def keep_exit_statuses() -> None:
    """From now on the kernel keeps the exit statuses of children, if SIGCHLD was ignored.

    Off the main thread, where Python allows no change, nothing is changed.
    """
    if _is_main_thread() and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextlib.contextmanager
def children_can_be_awaited() -> Iterator[None]:
    """As long as the block lasts, nobody but whoever waits for a child learns its exit status.

    That is so unless SIGCHLD is ignored (then the kernel drops the status), or the calling program
    handles it (its handler may wait for any child). Off the main thread, where Python allows no
    change, nothing is changed. What was there before is restored; a handler is then called once,
    since children of the program itself may have ended meanwhile.
    """
    old = signal.getsignal(signal.SIGCHLD)
    # None: it was not set by Python, which could not restore it.
    if old in (signal.SIG_DFL, None) or not _is_main_thread():
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, old)
        if callable(old):
            signal.raise_signal(signal.SIGCHLD)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
