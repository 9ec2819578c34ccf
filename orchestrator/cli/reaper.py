"""A process of its own that reaps, where gpuspool is the first process of a container.

Whoever's parent dies becomes a child of process 1, and stays a zombie until that one waits for it.
gpuspool waits only for the workers that it started, so as process 1 it would collect what jobs
leave behind, until the container's limit of processes is reached and every fork fails.

So it forks before it does anything: the child is gpuspool, and process 1 does nothing but wait for
everybody, pass signals on, and end with the child's exit code. Where gpuspool is called from
Python nothing of the like is done, since that program may have children of its own: `docker run
--init` gives a container a process 1 that reaps.
"""

from __future__ import annotations

import contextlib
import os
import signal

# What is passed on: all that people, terminals and schedulers send to a run.
PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)


# Process 1 has no handlers: it takes its signals one by one. A handler of Python's runs only once
# the call in hand is over, so a signal that came right before wait(2) began would be heard only
# when the next child ends.
def run_below_reaper() -> None:
    """As process 1, fork; return in the child, as in every process that is not process 1."""
    if os.getpid() != 1:
        return
    passed_on = set(PASSED_ON)
    # nohup has SIGHUP ignored, which must stay so. gpuspool hears the others whoever ignored them.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        passed_on.remove(signal.SIGHUP)
    # Where this one is ignored, the kernel keeps no child's exit code.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A blocked signal stays pending. Without that the kernel would drop it, as it drops whatever
    # process 1 has no handler for.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {*passed_on, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        return
    while True:
        number = signal.sigwait({*passed_on, signal.SIGCHLD})
        if number == signal.SIGCHLD:
            _reap(child)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)


def _take_terminal() -> None:
    """Be a process group of one's own, and the one that the terminal sends its signals to.

    Else a Ctrl-C would come twice, from the terminal and from process 1; a second one means that
    somebody does not want to wait.
    """
    os.setpgid(0, 0)
    # The kernel stops a process in the background that takes the terminal, unless it ignores this.
    old = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, old)


def _reap(child: int) -> None:
    """Take the exit codes of all who ended. Where the child did, end as it did."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            # A shell's way to tell of a signal: process 1 cannot die of one itself.
            os._exit(code if code >= 0 else 128 - code)
        if pid == 0:
            return
