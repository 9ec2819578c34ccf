"""A task that takes longer than a run may last: it keeps what it has, and goes on from there.

It draws points in a square, in blocks, and counts those in the circle. A block takes a second, most
of it asleep in the place of a model's work; `--arg block_s=0.05` makes it short. After each block
the count, the number of blocks and the state of the random numbers are saved, so the result is the
same however often the task was interrupted, and a process that is killed loses one block at most.
"""

import json
import random
import time

import gpuspool

POINTS = 20_000


class Pi:
    def __init__(self, ctx):
        self.block_s = float(ctx.args.get("block_s", 1.0))
        self.blocks = 0

    def __call__(self, task, ctx):
        saved = ctx.scratch(task) / "state.json"
        numbers = random.Random(task.seed)
        blocks, hits = 0, 0
        if saved.exists():
            blocks, hits, (version, state, gauss) = json.loads(saved.read_text())
            numbers.setstate((version, tuple(state), gauss))
        while blocks < task.payload["blocks"]:
            if ctx.is_draining():
                raise gpuspool.NotDone
            hits += self.block(numbers)
            blocks += 1
            # Written beside, then renamed: whoever is killed leaves a whole state.
            new = saved.with_suffix(".new")
            new.write_text(json.dumps([blocks, hits, numbers.getstate()]))
            new.rename(saved)
        return {"pi": 4 * hits / (blocks * POINTS), "points": blocks * POINTS}

    def block(self, numbers):
        self.blocks += 1
        until = time.monotonic() + self.block_s
        hits = sum(numbers.random() ** 2 + numbers.random() ** 2 < 1 for _ in range(POINTS))
        time.sleep(max(0.0, until - time.monotonic()))
        return hits

    def close(self, ctx):
        print(f"{ctx.attempt} did {self.blocks} blocks", flush=True)
