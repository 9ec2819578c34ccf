"""Jobs that do something simple and tell about it."""

import os
import sys
import time
from pathlib import Path


def double(task, ctx):
    return 2 * int(task.payload)


def describe(task, ctx):
    """Returns everything that a job can know."""
    return {
        "task": [task.index, task.key, task.payload, task.cost],
        "path": str(task.path) if isinstance(task.payload, dict) else None,
        "seed": task.seed,
        "ctx": [
            ctx.rank,
            ctx.world_size,
            ctx.attempt,
            ctx.device,
            dict(ctx.args),
            ctx.is_draining(),
        ],
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "order": os.environ.get("CUDA_DEVICE_ORDER"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "cwd": os.getcwd(),
        "file": __file__,
    }


class Add:
    """Notes each time it is made."""

    def __init__(self, ctx):
        self.term = ctx.args["term"]
        note(ctx.args["made"], ctx.attempt)

    def __call__(self, task, ctx):
        return int(task.payload) + self.term


class Batches:
    """Returns (the whole batch, own payload) for each task."""

    batch_size = 8

    def __call__(self, tasks, ctx):
        return [[[other.index for other in tasks], task.payload] for task in tasks]


class Outer:
    class Inner:
        def __call__(self, task, ctx):
            return "inner"


def write(task, ctx):
    ctx.output(task, ".txt").write_text(f"{task.key}\n")
    return task.payload


def noisy(task, ctx):
    """Says something on both streams, and takes long enough (10 ms) to have its log kept.

    "bad" ones fail.
    """
    until = time.perf_counter() + 0.02
    print(f"out of {task.key}")
    print(f"err of {task.key}", file=sys.stderr)
    while time.perf_counter() < until:
        pass
    if task.payload == "bad":
        raise ValueError("bad")


def note(path, text):
    """Append one line to a file that many processes share."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def noted(task, ctx):
    """Leaves its index in a file each time it runs."""
    note(ctx.args["notes"], task.index)
    return task.index


def fails_until_fixed(task, ctx):
    """Tasks whose payload is "bad" fail as long as there is no file "fixed"."""
    if task.payload == "bad" and not Path(ctx.args["fixed"]).exists():
        raise ValueError(f"{task.key} is bad")
    return task.payload


def fails_at_first(task, ctx):
    """Fails so many times as the payload says, then succeeds."""
    note(ctx.args["notes"], task.index)
    tries = Path(ctx.args["notes"]).read_text().split().count(str(task.index))
    if tries <= task.payload:
        raise RuntimeError(f"try {tries} of {task.key}")
    return tries
