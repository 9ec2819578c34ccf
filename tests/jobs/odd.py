"""Jobs that return, write or raise what is out of the ordinary; the payload says what."""

import os
import signal
import sys


class Array:
    """A value that can become plain values, as those of numpy and torch can."""

    def __init__(self, values):
        self.values = values

    def tolist(self):
        return self.values


VALUES = {
    "list": [1, "two", None, {"three": 3.5}],
    "nothing": None,
    "nan": {"a": [float("nan"), 1.5]},
    "array": {"a": Array([1.0, 2.0]), "b": [Array(3)]},
    "tuple": (1, 2),
    "text": "a\nb\u2028 \u00e4 \x00",
    "inf": [1.0, float("inf")],
    "set": {1, 2},
    "object": object(),
    "huge": "x" * (1024 * 1024 + 1),
    "big": "x" * (1024 * 1024 - 2),
}


def returns(task, ctx):
    return VALUES[task.payload]


def writes(task, ctx):
    """Writes outputs of every kind."""
    what = task.payload
    if what == "several":
        ctx.output(task, ".a").write_bytes(b"a")
        ctx.output(task, ".b.npy").write_bytes(b"bb")
    elif what == "bare":
        ctx.output(task).write_bytes(b"bare")
    elif what == "folder":
        folder = ctx.output(task, ".d")
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "x").write_bytes(b"x")
        (folder / "y").write_bytes(b"yy")
    elif what == "twice":
        assert ctx.output(task, ".t") == ctx.output(task, ".t")
        ctx.output(task, ".t").write_bytes(b"t")
    elif what == "forgets":
        ctx.output(task, ".never")
        ctx.output(task, ".written").write_bytes(b"w")
    elif what == "raises":
        ctx.output(task, ".half").write_bytes(b"h")
        raise ValueError("after writing")
    elif what == "slash":
        ctx.output(task, "/../../x")
    elif what == "suffix":
        return ctx.output(task, ".npy").name.endswith(".npy") and ctx.output(
            task, ".npy"
        ).write_bytes(b"n")


class Own(Exception):
    pass


class Mute(OSError):
    """Raises something else whatever it is asked."""

    __class__ = property(lambda self: 1 / 0)
    __notes__ = property(lambda self: 1 / 0)
    __cause__ = property(lambda self: 1 / 0)
    args = property(lambda self: 1 / 0)
    errno = property(lambda self: 1 / 0)
    filename = property(lambda self: 1 / 0)


# A class of code that was run in a namespace without a name is of no module.
Nowhere = type("Nowhere", (Exception,), {"__module__": None})


def raises(task, ctx):
    """Raises anything that user code may raise without taking its worker along."""
    kind = task.payload
    if kind == "exit":
        sys.exit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "own":
        raise Own("of my own")
    if kind == "mute":
        raise Mute("of nothing")
    if kind == "nowhere":
        raise Nowhere("of no module")
    if kind == "chained":
        try:
            return {}["missing"]
        except KeyError as error:
            raise ValueError("because of another") from error
    if kind == "bytes":
        raise ValueError("name \udcff of a file")
    if kind == "closed":
        os.close(1)
    return "fine"


class Picky:
    """A batch raises if one of its tasks is bad. An exception among its results fails one task."""

    batch_size = 16

    def __call__(self, tasks, ctx):
        if any(task.payload == "raise" for task in tasks):
            raise ValueError(f"one of {len(tasks)}")
        for task in tasks:
            ctx.output(task, ".txt").write_text(task.payload)
        return [OSError("returned") if task.payload == "return" else len(tasks) for task in tasks]


class Short:
    """Returns too few results for a batch."""

    batch_size = 4

    def __call__(self, tasks, ctx):
        return [task.index for task in tasks][: None if len(tasks) == 1 else -1]


class Budget:
    """Takes batches that cost at most 10 in all, which it decides when it is made."""

    def __init__(self, ctx):
        self.batch_size = 100
        self.batch_cost = 10

    def __call__(self, tasks, ctx):
        total = sum(task.cost for task in tasks)
        return [[len(tasks), total] for _ in tasks]


class NoMemory:
    """Has room for five tasks at once on a made-up device, and never for the payload "huge"."""

    batch_size = 16

    def __init__(self, ctx):
        import torch

        self.error = torch.OutOfMemoryError

    def __call__(self, tasks, ctx):
        if len(tasks) > 5 or any(task.payload == "huge" for task in tasks):
            raise self.error("CUDA out of memory")
        return [len(tasks) for _ in tasks]


class BadBatchSize:
    batch_size = 0

    def __call__(self, tasks, ctx):
        return tasks


def stops_politely(task, ctx):
    """Asks its own worker to drain, as a scheduler would."""
    if task.payload == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    return ctx.is_draining()
