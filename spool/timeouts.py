"""Limits of time: how long a call may take, and how a worker that took too long ended.

Worker and parent share these limits. They count the time for which processes ran, not the time for
which they stood still. The worker comes first: past the limit its timer writes the stack of every
thread to `logs/<attempt>.stacks` and ends the process. The file is empty unless a limit was passed,
so what it holds is proof of a time-out, whoever closes the attempt.

Where the worker's timer cannot count, since a call in C keeps the interpreter's lock or the process
hangs in the kernel, the parent kills it some time later. First it asks for the stacks, by
STACKS_SIGNAL.

docs/decisions/0009 says why there are two.
"""

from __future__ import annotations

import re
import signal

from gpuspool.spool.layout import TRACEBACK_BYTES, Layout
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Options

# A limit may be kept this fraction of it late: a timer counts ticks, and calls begin between two.
SLACK = 0.1

# A worker with limits answers this signal by writing all stacks to its file and dying, even while
# a call in C keeps the interpreter's lock. A signal that nobody else is likely to use.
STACKS_SIGNAL = signal.SIGRTMAX - 5

# Past a worker's limit its parent waits for half of the limit again, but no less than the first of
# these and no more than the second: long enough for the timer to write all stacks, which say where
# the task hung, and never long for whoever waits for the run.
PARENT_WAITS_S = (1.0, 5.0)

# Once its attempt is over, a worker's process has this long for the threads and exit handlers of
# its job. Those that upload a log or close a driver take seconds; what takes longer hangs. It is
# less than the parent grants, so that the worker itself can say what hung.
LEAVING_S = 12.0

# A frame of a stack that faulthandler wrote.
_FRAME = re.compile(r'File "(.*)", line (\d+)')
# What stands above the frames of each thread; the main thread comes last.
_INNERMOST = "(most recent call first):"


def is_limited(options: Options) -> bool:
    """Whether any call is limited."""
    return options.task_timeout_s is not None or options.stall_timeout_s is not None


def limit_s(options: Options, tasks: int) -> float | None:
    """How long a call of so many tasks may take, in seconds; None: for ever.

    tasks: 0 for the loading of the job, which only the stall time-out limits.
    """
    limits = []
    if options.stall_timeout_s is not None:
        limits.append(options.stall_timeout_s)
    if options.task_timeout_s is not None and tasks > 0:
        limits.append(options.task_timeout_s * tasks)
    return min(limits, default=None)


def parent_limit_s(limit: float) -> float:
    """How long the parent waits before it kills a worker whose call may take `limit` seconds."""
    return limit * (1 + SLACK) + parent_patience_s(limit)


def parent_patience_s(limit: float) -> float:
    """How much longer than the worker's own timer the parent waits."""
    least, most = PARENT_WAITS_S
    return min(max(limit / 2, least), most)


def describe_limit(options: Options, tasks: int) -> tuple[str, str]:
    """(type of the error, what was exceeded) for a call of so many tasks that took too long."""
    task = options.task_timeout_s
    stall = options.stall_timeout_s
    if task is not None and tasks > 0 and (stall is None or task * tasks <= stall):
        return "TaskTimeout", f"took longer than --task-timeout {task:g}s"
    return "StallTimeout", f"no progress for longer than --stall-timeout {stall or 0:g}s"


def where_of(stacks: str) -> str:
    """The line in which the main thread stood, as `file:line`; "" where the stacks do not say."""
    main_thread = stacks.rpartition(_INNERMOST)[2]
    match = _FRAME.search(main_thread)
    if match is None:
        return ""
    filename = match[1].rpartition("/")[2]
    return f"{filename}:{match[2]}"


def read_stacks(layout: Layout, attempt: str) -> str:
    """Where every thread stood when the worker's own timer ended it; "" if it did not.

    At most TRACEBACK_BYTES of it. Raises OSError.
    """
    data = read_bytes(layout.stacks(attempt)) or b""
    return data[:TRACEBACK_BYTES].decode(errors="replace")
