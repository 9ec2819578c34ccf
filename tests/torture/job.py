"""The job that is tortured.

Each execution leaves a trace, and each output tells which execution wrote it and whether it is
whole.

A payload is `{"n": index, "ms": milliseconds of work}`; with `"fail": true` the task raises, with
`"exit": true` its process ends. With `"gate": NAME, "free": COUNT` it first waits for a file of
that name beside the executions, unless it is among the first COUNT tasks that begin. With `"hold":
milliseconds` it holds the interpreter's lock for so long, as a call into C may. `--arg
executions=FOLDER` names an existing folder where every execution notes its beginning: one line and
one write(2) each, one file a process.
"""

import ctypes
import hashlib
import json
import os
import secrets
import time
from pathlib import Path

BODY_LINES = 40


def value(n):
    """What a task of this number returns."""
    return (n * n * 7919 + 104729 * n + 17) % 1_000_003


def body(key):
    """The bytes of a task's output, but for the last line, which tells whose execution wrote it."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return "".join(f"{key} {place} {digest}\n" for place in range(BODY_LINES)).encode()


def payloads(count, ms=2, fail=()):
    """The payloads of a run of so many tasks, as `--tasks` takes them; those in `fail` raise."""
    return [{"n": n, "ms": ms} | ({"fail": True} if n in fail else {}) for n in range(count)]


def note_execution(folder, attempt, task, nonce):
    """Say that an execution begins, before it does anything."""
    line = json.dumps({"task": task, "nonce": nonce, "at": time.time()}) + "\n"
    fd = os.open(
        Path(folder) / f"{attempt}.{os.getpid()}",
        os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
        0o644,
    )
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def pass_gate(executions, gate, free):
    """Wait for the gate, unless no more than `free` executions have begun, with this one."""
    if sum(path.read_bytes().count(b"\n") for path in executions.iterdir()) <= free:
        return
    while not executions.with_name(gate).exists():
        time.sleep(0.002)


def work(task, ctx):
    """One task: note, work, write the output, return the value."""
    nonce = f"{ctx.attempt}-{os.getpid()}-{secrets.token_hex(6)}"
    if "executions" in ctx.args:
        note_execution(ctx.args["executions"], ctx.attempt, task.index, nonce)
    if "gate" in task.payload:
        pass_gate(Path(ctx.args["executions"]), task.payload["gate"], task.payload["free"])
    time.sleep(task.payload["ms"] / 1000)
    # Calls by PyDLL keep the lock, so no thread of this process runs meanwhile.
    ctypes.PyDLL(None).usleep(task.payload.get("hold", 0) * 1000)
    if task.payload.get("exit"):
        os._exit(41)
    if task.payload.get("fail"):
        raise ValueError(f"{task.key} cannot be done")
    ctx.output(task, ".txt").write_bytes(body(task.key) + f"nonce {nonce}\n".encode())
    return {"value": value(task.payload["n"]), "nonce": nonce}


class Batched:
    """Do what `work` does, for four tasks at a time."""

    batch_size = 4

    def __call__(self, tasks, ctx):
        return [work(task, ctx) for task in tasks]
