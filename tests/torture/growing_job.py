"""The job of row "growing": what torture/job.py does, in tasks and processes that do not last.

Beside what torture/job.py knows, a payload may have `"steps": COUNT`, how many calls the task
needs, all but the last of which raise NotDone; and `"fresh": true`: its first call raises Restart.
Both are kept in the task's scratch folder. `--arg recycle=N` is the class's own `recycle`; `--arg
close=HOW` says what a worker does at its end: nothing, "raises", "hangs" or "dies".
"""

import os
import signal
import sys
import time
from pathlib import Path

# A worker executes a copy of this file under its own name, so its neighbours are found beside it.
sys.path.insert(0, str(Path(__file__).parent.parent))

import gpuspool
from torture.job import work


def step(task, ctx):
    """One call of a task, which may be its last. Raises NotDone and Restart."""
    scratch = ctx.scratch(task)
    if task.payload.get("fresh") and not (scratch / "fresh").exists():
        (scratch / "fresh").touch()
        raise gpuspool.Restart(f"{task.key} wants a fresh process")
    calls = len(list(scratch.glob("call*")))
    if calls + 1 < task.payload.get("steps", 1):
        time.sleep(task.payload["ms"] / 1000)
        (scratch / f"call{calls}").touch()
        raise gpuspool.NotDone
    return work(task, ctx)


class Growing:
    def __init__(self, ctx):
        self.recycle = int(ctx.args["recycle"]) or None

    def __call__(self, task, ctx):
        return step(task, ctx)

    def close(self, ctx):
        match ctx.args["close"]:
            case "raises":
                raise ValueError("no end")
            case "hangs":
                time.sleep(1000)
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)


class Batched(Growing):
    """Four tasks at a time; the ones that are not done say so in the place of their results."""

    batch_size = 4

    def __call__(self, tasks, ctx):
        results = []
        for task in tasks:
            try:
                results.append(step(task, ctx))
            except (gpuspool.NotDone, gpuspool.Restart) as wish:
                results.append(wish)
        return results
