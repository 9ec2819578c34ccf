"""Exit codes of processes in words."""

from __future__ import annotations

import contextlib
import signal

from gpuspool.spool.errors import EXIT_CANNOT_CLOSE, EXIT_UNSEEN, EXIT_UNUSABLE

# How a worker that cannot go on begins the line of its log that says why. Its exit code says only
# that it could not.
BROKEN = "gpuspool: this process can run nothing more: "

# Signals by which the kernel tells a process that it has reached a limit.
LIMITS = {
    "SIGXCPU": "it reached its limit on CPU time, ulimit -t",
    "SIGXFSZ": "it reached its limit on the size of a file, ulimit -f",
}


def signal_of(code: int) -> str:
    """The name of the signal behind an exit code, -N or a shell's 128+N; "" for none."""
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    if code < 0:
        return f"signal {number}"
    return ""


def describe_exit(code: int, log: str = "") -> str:
    """ "killed by SIGSEGV", "exit code 3", "exit code 139 (SIGSEGV)".

    log: the end of the process's log, which may tell more.
    """
    if code == EXIT_CANNOT_CLOSE:
        return "it could not write how it ended"
    # A command, or a job, may end with this code for reasons of its own.
    reason = _reason_in(log)
    if code == EXIT_UNUSABLE and reason:
        return f"it could run nothing more: {reason}"
    if code == EXIT_UNSEEN:
        return f"exit code {code} (or it was lost: something else has waited for the process)"
    name = signal_of(code)
    if name in LIMITS:
        name = f"{name}: {LIMITS[name]}"
    if code < 0:
        return f"killed by {name}"
    if name:
        return f"exit code {code} ({name})"
    return f"exit code {code}"


def _reason_in(log: str) -> str:
    """Why a worker could not go on, as it said itself; "" where it said nothing."""
    for line in reversed(log.splitlines()):
        if line.startswith(BROKEN):
            return line.removeprefix(BROKEN)
    return ""
