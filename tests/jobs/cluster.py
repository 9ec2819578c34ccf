"""A job for runs on several hosts: it notes which tasks it ran where, and waits for a gate."""

import os
import time

from gates import pass_gate
from plain import note


def works(task, ctx):
    """Takes `seconds`; a payload of "wait" waits for the gate. Notes the host of each call."""
    note(f"{ctx.args['notes']}.calls", f"{task.index} {os.uname().nodename} {ctx.attempt}")
    if task.payload == "wait":
        pass_gate(f"{ctx.args['notes']}.gate")
    time.sleep(float(ctx.args.get("seconds", 0.05)))
    ctx.output(task, ".txt").write_text(f"{task.key}\n")
    return [os.uname().nodename, ctx.rank, os.environ.get("CUDA_VISIBLE_DEVICES")]
