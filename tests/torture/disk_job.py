"""Jobs that write as people do, each of which fails in its own way on a full disk.

`open().write` raises an OSError with its errno, `numpy.save` one without, `torch.save` a
RuntimeError. A tidy library removes what it began before it raises an error of its own, so that
there is some room again. A task waits until its gate is there, a file named by its index in `--arg
gates=FOLDER`. So the disk certainly breaks half way.
"""

import time
from pathlib import Path

PATIENCE_S = 60
# How many bytes a task prints: enough that it notices a full disk under the logs.
PRINTED = 4096
# How many bytes an output of numpy, torch and cp has.
CHUNK = 64 * 1024


def chunk(index):
    """The bytes of a large output."""
    return index.to_bytes(8, "little") * (CHUNK // 8)


def large_chunk(index):
    """The bytes of a larger output. A disk without room for it may have room for a small one."""
    return chunk(index) * 4


def pass_gate(task, ctx):
    gate, deadline = Path(ctx.args["gates"], str(task.index)), time.monotonic() + PATIENCE_S
    while not gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody opened {gate}")
        time.sleep(0.004)


def write(task, ctx):
    """Write what `job.work` writes, so that the checker knows each byte."""
    # It lies beside this file.
    from job import work

    pass_gate(task, ctx)
    print(f"{task.key} is going to be written {'.' * PRINTED}", flush=True)
    return work(task, ctx)


def save_numpy(task, ctx):
    import numpy as np

    pass_gate(task, ctx)
    np.save(ctx.output(task, ".npy"), np.frombuffer(chunk(task.index), dtype=np.int64))
    return task.index


def save_torch(task, ctx):
    import torch

    pass_gate(task, ctx)
    torch.save(
        torch.frombuffer(bytearray(chunk(task.index)), dtype=torch.int64), ctx.output(task, ".pt")
    )
    return task.index


class SaveError(Exception):
    """An error of a library's own."""


def save_tidily(task, ctx):
    pass_gate(task, ctx)
    path = ctx.output(task, ".bin")
    try:
        path.write_bytes(large_chunk(task.index))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SaveError(f"{task.key} was not saved") from error
    return task.index


def read_back(path):
    """The large output that a file holds, whichever job wrote it."""
    if path.suffix == ".npy":
        import numpy as np

        return np.load(path).tobytes()
    if path.suffix == ".pt":
        import torch

        return torch.load(path).numpy().tobytes()
    return path.read_bytes()
