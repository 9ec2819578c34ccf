"""The jobs of row "stops": what torture/job.py does, by way of other processes and with handlers of
their own.

A payload is that of torture/job.py. With `"term": true` the task's helper ends itself by SIGTERM:
that task is bad, whoever is stopped. Run as a program, this is the job as a COMMAND: its words are
the key, the output and the payload as JSON.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# A worker executes a copy of this file under its own name, so its neighbours are found beside it.
sys.path.insert(0, str(Path(__file__).parent.parent))

from torture.job import body, work


def _seconds(payload):
    return payload["ms"] / 1000


def _help(payload):
    """A command that is most of the work; its failure is raised."""
    command = ["sleep", str(_seconds(payload))]
    if payload.get("term"):
        command = ["sh", "-c", "kill -TERM $$"]
    subprocess.run(command, check=True)


def _work(task, ctx):
    _help(task.payload)
    return work(task, ctx)


def _sleep(payload):
    if payload.get("term"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_seconds(payload))


def forked(task, ctx):
    """What a DataLoader does: a forked process, and an error that tells of no signal."""
    process = multiprocessing.get_context("fork").Process(target=_sleep, args=(task.payload,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("a helper process has ended unexpectedly")
    return work(task, ctx)


class Batched:
    """Four tasks in a call, each with a helper."""

    batch_size = 4

    def __call__(self, tasks, ctx):
        return [_work(task, ctx) for task in tasks]


class Loading:
    """Inputs are loaded ahead, by threads, with a helper each."""

    def load(self, task):
        _help(task.payload)

    def __call__(self, task, ctx):
        return work(task, ctx)


TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Raising:
    """Takes the signals for itself, and raises."""

    def __init__(self, ctx):
        def stop(number, frame):
            raise SystemExit(128 + number)

        for number in TAKEN:
            signal.signal(number, stop)

    def __call__(self, task, ctx):
        return _work(task, ctx)


class Dying(Raising):
    """Lets the signals end the worker."""

    def __init__(self, ctx):
        for number in TAKEN:
            signal.signal(number, signal.SIG_DFL)


class Deaf(Raising):
    """Takes the signals for itself, and goes on."""

    def __init__(self, ctx):
        for number in TAKEN:
            signal.signal(number, lambda number, frame: None)


def main():
    key, output, text = sys.argv[1:]
    payload = json.loads(text)
    _help(payload)
    if payload.get("fail"):
        sys.exit(1)
    Path(output).write_bytes(body(key) + f"nonce {os.getpid()}\n".encode())


if __name__ == "__main__":
    main()
