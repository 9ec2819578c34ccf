"""The job of row "sick_worlds": what torture/job.py does, where more may fail than tasks.

`--arg world=FOLDER` names a folder with world.json, which says what ails whom:

    load_s      how long a process loads
    sick        device -> {"after": tasks that a process does there before the device is sick,
                "how": "raises", "exits" or "does not load"}
    spoils      after so many tasks (a range) a process fails all others; 0, 0 for never
    exits       whether a spoiled process ends itself at its next task

A file mount in that folder stands for a file system that every task needs whose payload names no
input: while it is away, all of these fail.
"""

import json
import os
import random
import secrets
import sys
import time
from pathlib import Path

# A worker executes a copy of this file under its own name, so its neighbours are found beside it.
sys.path.insert(0, str(Path(__file__).parent.parent))

from torture.job import note_execution, work


class Sick:
    def __init__(self, ctx):
        self._folder = Path(ctx.args["world"])
        world = json.loads((self._folder / "world.json").read_text())
        self._device = os.environ["CUDA_VISIBLE_DEVICES"]
        self._sick = world["sick"].get(self._device)
        self._spoiled_after = random.randint(*world["spoils"]) if world["spoils"][1] else None
        self._exits = world["exits"]
        self._done = 0
        time.sleep(world["load_s"])
        if self._is_sick() and self._sick["how"] == "does not load":
            raise RuntimeError("no CUDA-capable device is detected")

    def __call__(self, task, ctx):
        self._fail_of_the_world(task, ctx)
        self._done += 1
        return work(task, ctx)

    def _is_sick(self):
        """Whether the device of this process is sick; once it is, it stays so for all others."""
        if self._sick is None:
            return False
        mark = self._folder / f"{self._device}.sick"
        if self._done >= self._sick["after"]:
            mark.touch()
        return mark.exists()

    def _fail_of_the_world(self, task, ctx):
        if self._is_sick():
            self._note(task, ctx)
            if self._sick["how"] != "raises":
                os._exit(7)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self._spoiled_after is not None and self._done >= self._spoiled_after:
            self._note(task, ctx)
            if self._exits:
                os._exit(9)
            raise RuntimeError("the engine of this process is dead")
        try:
            Path(task.payload.get("path", self._folder / "mount")).read_bytes()
        except OSError:
            self._note(task, ctx)
            raise

    def _note(self, task, ctx):
        """Say that an execution begins, which will fail; otherwise `work` says so."""
        note_execution(ctx.args["executions"], ctx.attempt, task.index, secrets.token_hex(6))
