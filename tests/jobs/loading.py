"""Jobs whose inputs are loaded ahead, and which warm up."""

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

from gates import pass_gate
from plain import note


class Loads:
    """The payload decides what happens in load; the result tells what came of it."""

    def load(self, task):
        if task.payload == "bad":
            raise ValueError(f"cannot read {task.key}")
        return {"of": task.index, "in": threading.current_thread().name}

    def __call__(self, task, ctx):
        return task.loaded


class LoadsBatches(Loads):
    batch_size = 4

    def __call__(self, tasks, ctx):
        return [[task.loaded["of"], len(tasks)] for task in tasks]


class LoadsAndRaises(LoadsBatches):
    """A batch with the payload "worse" raises as a whole. Each call uses up what was loaded."""

    def __call__(self, tasks, ctx):
        found = [task.loaded.pop("of") for task in tasks]
        if any(task.payload == "worse" for task in tasks):
            raise RuntimeError("no")
        return found


class LoadsAlone(Loads):
    prefetch = 0


class Sleeps:
    """10 ms of loading and 10 ms of work."""

    def load(self, task):
        time.sleep(0.01)

    def __call__(self, task, ctx):
        time.sleep(0.01)


class SleepsAlone(Sleeps):
    prefetch = 0


class Meets:
    """Each call waits until the inputs of the task behind it are being loaded.

    So few tasks are taken in their order. The last two are claimed by whoever has nothing to do, so
    their inputs may not be loaded ahead.
    """

    def __init__(self, ctx):
        self.begun = [threading.Event() for _ in range(19)]

    def load(self, task):
        self.begun[task.index].set()

    def __call__(self, task, ctx):
        return task.index >= 16 or self.begun[task.index + 1].wait(100)


class Counted:
    """Notes each load and call. The call of the first task waits for the gate."""

    def __init__(self, ctx):
        self.notes, self.gate = ctx.args["notes"], ctx.args["gate"]

    def load(self, task):
        note(self.notes, f"load {task.index}")
        return task.index

    def __call__(self, task, ctx):
        note(self.notes, f"call {task.index}")
        if task.index == 0:
            pass_gate(self.gate)
        return task.loaded


class Hangs:
    """Loading "sleep" or "in C" never ends; "segv" and "kill" take the process along."""

    def __init__(self, ctx):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def load(self, task):
        if task.payload == "sleep":
            time.sleep(1000)
        if task.payload == "in C":
            # A PyDLL keeps the interpreter's lock in its calls.
            ctypes.PyDLL(None).sleep(1000)
        if task.payload == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        return task.payload

    def __call__(self, task, ctx):
        time.sleep(0.02)
        return task.loaded


class Warms:
    """Notes who warms up and who is made. The argument "how" says how the first warm-up ends."""

    @classmethod
    def warmup(cls, ctx):
        note(ctx.args["notes"], f"warm {ctx.attempt}")
        first = Path(ctx.args["gate"])
        if ctx.args["how"] != "works" and not first.exists():
            first.touch()
            if ctx.args["how"] == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if ctx.args["how"] == "waits":
                time.sleep(1000)
            raise RuntimeError("cold")
        if ctx.args["how"] == "always":
            raise RuntimeError("cold")
        time.sleep(0.05)
        note(ctx.args["notes"], "warmed")

    def __init__(self, ctx):
        note(ctx.args["notes"], f"made {ctx.attempt}")

    def __call__(self, task, ctx):
        hold = ctx.args.get("hold")
        while hold and not Path(hold).exists():
            time.sleep(0.01)
        time.sleep(0.01)
        return ctx.attempt


class NotOurWarmup:
    """A method of that name that takes no context belongs to the job."""

    def warmup(self):
        raise AssertionError("nobody asked for this")

    def __call__(self, task, ctx):
        return 1
