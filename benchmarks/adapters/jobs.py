"""The same tasks as gpuspool jobs."""

import os
import signal

import work


def noop(_task, _ctx):
    return None


def sleeping(task, _ctx):
    work.sleeping(task.payload)


def spinning(task, _ctx):
    work.spinning(task.payload)


def leaving(_task, _ctx):
    """Drain this worker: it closes itself after the task, and its parent has to start the rank's next attempt."""
    os.kill(os.getpid(), signal.SIGTERM)
