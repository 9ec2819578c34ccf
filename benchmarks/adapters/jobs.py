"""The tasks of the benches, as gpuspool jobs."""

import os
import signal
import time

import work


def noop(_task, _ctx):
    return None


def sleeping(task, _ctx):
    work.sleeping(task.payload)


def spinning(task, _ctx):
    work.spinning(task.payload)


def leaving(_task, _ctx):
    """Drain this worker: it closes itself after the task, and its parent has to start the rank's
    next attempt.
    """
    os.kill(os.getpid(), signal.SIGTERM)


class Ahead:
    """Loading waits, as for a disk; the call keeps a core busy, and leaves the trace of both."""

    def load(self, task):
        start = time.time()
        time.sleep(float(task.payload.split()[1]))
        return start

    def __call__(self, task, _ctx):
        index, seconds = task.payload.split()
        until = time.time() + float(seconds)
        while time.time() < until:
            pass
        work.note(index, task.loaded)


class NotAhead(Ahead):
    prefetch = 0
