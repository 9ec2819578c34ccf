"""A job whose calls take some time, in batches: what timelines are drawn of."""

import os
import signal
import time
from pathlib import Path


class Nap:
    """Takes 20 ms for each task of a batch. A payload says what else happens."""

    batch_size = 3

    def __init__(self, ctx):
        time.sleep(0.2)

    def __call__(self, tasks, ctx):
        for task in tasks:
            time.sleep(0.02)
            match task.payload:
                case "fail":
                    raise ValueError("it was told to: <img src=x onerror=alert(1)>")
                case "crash":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case "wait":
                    while not Path(ctx.args["gate"]).exists():
                        time.sleep(0.01)
        return [task.index for task in tasks]
