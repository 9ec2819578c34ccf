"""Jobs that wait for a file, so that a test decides what happens before what."""

import os
import signal
import subprocess
import time
from pathlib import Path

from plain import note

# Longer than a test waits: no test passes because a gate gave up.
PATIENCE_S = 300
# Longer than half of the moment that a failure waits before it is a verdict. See `MOMENT_S` of
# `gpuspool.spool.signals`.
SLOW_S = 0.4


def pass_gate(path):
    deadline = time.monotonic() + PATIENCE_S
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody opened {path}")
        time.sleep(0.01)


def gated(task, ctx):
    """Tasks with the payload "wait" say that they wait, then wait for the gate; "bad" ones fail.

    "slow" ones take SLOW_S.
    """
    if task.payload == "bad":
        raise ValueError(f"{task.key} is bad")
    if task.payload == "slow":
        time.sleep(SLOW_S)
    if task.payload == "wait":
        note(f"{ctx.args['gate']}.waiting", f"{task.index} {os.getpid()}")
        pass_gate(ctx.args["gate"])
    note(f"{ctx.args['gate']}.ran", task.index)
    return task.payload


def slow_without_gate(task, ctx):
    """ "bad" ones fail; the others take a moment each as long as there is no gate."""
    if task.payload == "bad":
        raise ValueError(f"{task.key} is bad")
    if not Path(ctx.args["gate"]).exists():
        time.sleep(0.05)
    return task.payload


def gated_polite(task, ctx):
    """Waits for the gate or for the drain, whichever comes first."""
    note(f"{ctx.args['gate']}.waiting", f"{task.index} {os.getpid()}")
    while not ctx.is_draining() and not Path(ctx.args["gate"]).exists():
        time.sleep(0.01)
    return ctx.is_draining()


def with_children(task, ctx):
    """Leaves a child behind, as a data loader would."""
    child = subprocess.Popen(["sleep", "1000"])
    note(ctx.args["children"], child.pid)
    return child.pid


def dies(task, ctx):
    """The payload "once" kills its worker as long as there is no gate; "always" always does."""
    gate = Path(ctx.args["gate"])
    if task.payload == "always" or (task.payload == "once" and not gate.exists()):
        gate.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task.payload


class Segfault:
    """Dies of a segmentation fault whenever the batch holds the payload "segv"."""

    batch_size = 32

    def __init__(self, ctx):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def __call__(self, tasks, ctx):
        if any(task.payload == "segv" for task in tasks):
            os.kill(os.getpid(), signal.SIGSEGV)
        return [task.payload for task in tasks]


def publishes(task, ctx):
    """Writes an output. With "hold" it waits for the gate before, with "raise" it raises behind it.

    With "wait" it waits too, unless it is the first task of its process: so something is published
    before anybody waits, whatever the order of the tasks.
    """
    publishes.calls += 1
    waits = task.payload == "wait" and publishes.calls > 1
    if waits or task.payload in ("hold", "raise"):
        note(f"{ctx.args['gate']}.waiting", f"{task.index} {os.getpid()}")
        pass_gate(ctx.args["gate"])
    if task.payload == "raise":
        raise FileNotFoundError("the job's own folder is not there")
    ctx.output(task, ".txt").write_text(f"{task.key} by {ctx.args.get('code', 'the first')}\n")
    return task.key


publishes.calls = 0
