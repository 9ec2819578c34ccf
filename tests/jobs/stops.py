"""Jobs that meet a stop, in all the ways in which a job can have processes and handlers.

A task says in the file "{gate}.ready" that it is at work, by its process's pid and those of its
children, and then waits until it is stopped, or for the file "{gate}".
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

WAIT = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)"


def say_ready(ctx, *pids):
    with open(f"{ctx.args['gate']}.ready", "a") as file:
        file.write(" ".join(map(str, (os.getpid(), *pids))) + "\n")


def wait_for_gate(ctx):
    while not Path(ctx.args["gate"]).exists():
        time.sleep(0.01)


def checked(task, ctx):
    """Waits for a command, whose failure it raises."""
    process = subprocess.Popen([sys.executable, "-c", WAIT, ctx.args["gate"]])
    say_ready(ctx, process.pid)
    status = process.wait()
    if status:
        raise subprocess.CalledProcessError(status, "wait")
    return status


def _wait_forked(gate):
    while not Path(gate).exists():
        time.sleep(0.01)


def forked(task, ctx):
    """Waits for a forked process, and raises something that does not tell of signals."""
    process = multiprocessing.get_context("fork").Process(
        target=_wait_forked, args=(ctx.args["gate"],)
    )
    process.start()
    say_ready(ctx, process.pid)
    process.join()
    if process.exitcode:
        raise RuntimeError("a helper process has ended unexpectedly")


class Raises:
    """Has a handler of its own for every signal that stops, which raises."""

    def __init__(self, ctx):
        def stop(number, frame):
            raise SystemExit(128 + number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, stop)

    def __call__(self, task, ctx):
        say_ready(ctx)
        wait_for_gate(ctx)


class Interrupts(Raises):
    """Python's own way: SIGINT raises KeyboardInterrupt."""

    def __init__(self, ctx):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)


class Dies(Raises):
    """Has set the signals to their default: they end the worker."""

    def __init__(self, ctx):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)


class Deaf:
    """Takes the signals for itself, as libraries do that save something first, and goes on."""

    def __init__(self, ctx):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: None)

    def __call__(self, task, ctx):
        if task.index == 0:
            say_ready(ctx)
        while not ctx.is_draining() and not Path(ctx.args["gate"]).exists():
            time.sleep(0.01)


class TermsAtLoad:
    """Its constructor waits for a command."""

    def __init__(self, ctx):
        checked(None, ctx)

    def __call__(self, task, ctx):
        return task.index


def shows_signals(task, ctx):
    """What a command that this job starts inherits."""
    script = (
        "import signal, json, os; print(json.dumps({"
        "'blocked': sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())),"
        "'ignored': [int(l.split()[1], 16) for l in open('/proc/self/status')"
        " if l.startswith('SigIgn')][0],"
        "'fds': sorted(os.listdir('/proc/self/fd'))}))"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$@"', "sh", sys.executable, "-c", script],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout


def fails_in_child(task, ctx):
    subprocess.run(["false"], check=True)


def crashes(task, ctx):
    os._exit(task.payload)
