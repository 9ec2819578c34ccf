"""Limits on time that worker and parent share: how long a call may take, and how a worker that
obeyed one ends.

A worker arms a timer that needs no interpreter lock: past the limit it writes the stack of every
thread to `logs/<attempt>.stacks` and ends the process, even where it is stuck in C. That file is
empty unless the timer went off, so what it holds is proof of a time-out, whoever closes the
attempt. Where the whole process stands still the timer does too; then the parent, which gives it
some time more, kills it.
"""

from __future__ import annotations

import re

from gpuspool.spool.layout import TRACEBACK_BYTES, Layout
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Options

_FRAME = re.compile(r'File "(.*)", line (\d+)')
# a timer serves for calls that begin within this fraction of its limit: tiny tasks need no timer
# each
SLACK = 0.1


def limit_s(options: Options, tasks: int) -> float | None:
    """How long a call of so many tasks may take; 0 tasks are the loading of the job. None: for
    ever.
    """
    limits = [] if options.stall_timeout_s is None else [options.stall_timeout_s]
    if options.task_timeout_s is not None and tasks:
        limits.append(options.task_timeout_s * tasks)
    return min(limits, default=None)


def parent_limit_s(limit: float) -> float:
    """When the parent stops to believe that the worker will end itself: it wants to be told the
    stacks first.
    """
    return limit * (1 + SLACK) + min(max(limit / 2, 1.0), 5.0)


def is_limited(options: Options) -> bool:
    return options.task_timeout_s is not None or options.stall_timeout_s is not None


def describe_limit(options: Options, tasks: int) -> tuple[str, str]:
    """(type of the error, what was exceeded) for a call of so many tasks."""
    task, stall = options.task_timeout_s, options.stall_timeout_s
    if tasks and task is not None and (stall is None or task * tasks <= stall):
        return "TaskTimeout", f"took longer than --task-timeout {task:g}s"
    return "StallTimeout", f"no progress for longer than --stall-timeout {stall or 0:g}s"


def where_of(stacks: str) -> str:
    """The line in which the main thread, which the stacks end with, stood: `file:line`."""
    match = _FRAME.search(stacks.rpartition("(most recent call first):")[2])
    return f"{match[1].rpartition('/')[2]}:{match[2]}" if match else ""


def read_stacks(layout: Layout, attempt: str) -> str:
    """Where every thread stood when the worker's own timer ended it; "" if it did not."""
    data = read_bytes(layout.stacks(attempt)) or b""
    return data[:TRACEBACK_BYTES].decode(errors="replace")
