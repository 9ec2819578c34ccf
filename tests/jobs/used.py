"""Jobs that wait until usage/ tells something of their own attempt, for tests/test_usage.py."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE_S = 60


def told(ctx):
    """The whole lines that this attempt has told so far."""
    path = Path(ctx.args["spool"], "usage", f"{ctx.attempt}.jsonl")
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]


def wait_for(ctx, is_told):
    """The first line that is as wanted."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for line in told(ctx):
            if is_told(line):
                return line
        if time.monotonic() > deadline:
            raise TimeoutError(f"never told: {told(ctx)}")
        time.sleep(0.05)


def is_in_call(line):
    return line.get("busy_s", 0) > 0


def once(task, ctx):
    """Complete once a line was told in this call; returns whether NVML's bindings are here."""
    wait_for(ctx, is_in_call)
    return "pynvml" in sys.modules


def fill(task, ctx):
    """Complete once a line tells of all the memory that a process of ours holds."""
    source = f"block = bytearray({int(task.payload)}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        return wait_for(ctx, lambda line: line.get("rss", 0) > int(task.payload))


def die(task, ctx):
    """The first process of rank 0 kills itself once a line was told in this call."""
    if ctx.attempt == "rank-0000.a00":
        wait_for(ctx, is_in_call)
        os.kill(os.getpid(), signal.SIGKILL)


def gpu(task, ctx):
    """Complete once a line tells of a GPU's memory; returns it."""
    return wait_for(ctx, lambda line: "gpu_mem" in line)


def twice(task, ctx):
    """Complete once two lines were told in this call; returns the second."""
    first = wait_for(ctx, is_in_call)
    return wait_for(ctx, lambda line: line["at"] > first["at"])


def spoil(task, ctx):
    """Put a file in the place of usage/, and go on for some beats after that was said."""
    wait_for(ctx, is_in_call)
    spool = Path(ctx.args["spool"])
    shutil.rmtree(spool / "usage")
    (spool / "usage").write_text("no folder\n")
    log = spool / "logs" / f"{ctx.attempt}.log"
    deadline = time.monotonic() + PATIENCE_S
    while "cannot write down what this process uses" not in log.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError("it was never said")
        time.sleep(0.05)
    beat = json.loads((spool / "heartbeat" / f"{ctx.attempt}.json").read_bytes())["beat"]
    while json.loads((spool / "heartbeat" / f"{ctx.attempt}.json").read_bytes())["beat"] < beat + 2:
        time.sleep(0.05)
