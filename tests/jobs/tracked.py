"""Jobs that leave enough behind to find out afterwards what was run, how often, and by whom."""

import hashlib
import secrets
import time

from plain import note


def body(key, nonce):
    """What one execution writes: its last line tells whether the rest is whole."""
    text = f"{key} {nonce}\n" * 200
    return f"{text}{hashlib.sha256(text.encode()).hexdigest()}\n"


def output(task, ctx):
    """Works for some milliseconds, writes an output of this execution alone, and names it."""
    nonce = secrets.token_hex(8)
    until = time.perf_counter() + 0.003
    note(ctx.args["notes"], f"{task.index} {nonce}")
    ctx.output(task, ".txt").write_text(body(task.key, nonce))
    while time.perf_counter() < until:
        pass
    return nonce


class Batches:
    """Does what `output` does, for eight tasks at a time."""

    batch_size = 8

    def __call__(self, tasks, ctx):
        return [output(task, ctx) for task in tasks]
