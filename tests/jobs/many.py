"""Jobs of runs with several parents, whose tests decide what happens when."""

import os
import signal
import time
from pathlib import Path

from gates import PATIENCE_S, SLOW_S
from plain import note

# What the workers of a parent are told that shall have none which works, or none that hears.
match os.environ.get("BROKEN"):
    case "loading":
        raise ImportError("this host lacks what the job needs")
    case "dying":
        os.kill(os.getpid(), signal.SIGKILL)
    case "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def work(task, ctx):
    """Waits until the gate of all is open, or that of this call of this attempt.

    A "fail" raises unless there is a file "fixed", and so does a call of which a file says so. A
    "slow" takes a moment. Who waits, and who has run, is noted.
    """
    folder = Path(ctx.args["folder"])
    work.calls += 1
    call = f"{ctx.attempt}.{work.calls}"
    note(folder / "waiting", f"{task.index} {ctx.attempt}")
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / call).exists() and not (folder / "open").exists():
        assert time.monotonic() < deadline, f"nobody opened {folder / call}"
        time.sleep(0.01)
    is_bad = task.payload == "fail" and not (folder / "fixed").exists()
    if is_bad or (folder / f"{call}.fails").exists():
        raise ValueError(f"{task.key} fails")
    if task.payload == "slow":
        time.sleep(SLOW_S)
    note(folder / "ran", task.index)
    return task.payload


work.calls = 0
