"""Seeds of tasks: what libraries take, and the same whoever runs the task and whenever."""

import numpy
from helpers import Box, assert_sound

from gpuspool.worker.context import Task

# Notes each call's seed, and fails until the file "again" is there.
JOB = """
import os


def draw(task, ctx):
    with open(f"{ctx.args['seen']}-{task.index}", "a") as seen:
        seen.write(f"{task.seed}\\n")
    if not os.path.exists("again"):
        raise ValueError("not yet")
    return task.seed
"""


def test_numpy_takes_the_seed_of_every_task() -> None:
    for index in range(3000):
        numpy.random.seed(Task(index, "k", None, 1.0, 7).seed)


def test_seeds_differ_by_task_and_by_run() -> None:
    seeds = {Task(index, "k", None, 1.0, run).seed for index in range(3000) for run in range(3)}
    # Of 9000 numbers of 32 bits a pair may be equal by chance.
    assert len(seeds) >= 8998


def test_a_task_has_the_same_seed_in_each_attempt_and_start(box: Box) -> None:
    box.write("job.py", JOB)
    seen = f"seen={box / 'seen'}"
    run = ["run", "job.py:draw", "--lines", box.lines(2), "--seed", "5", "--arg", seen]
    box.run(*run, "--keep-going", "--spool", "S", code=3)
    box.write("again", "")
    box.run("retry", "S", "--ranks", "2")
    results = assert_sound(box, "S", 2)
    for index, result in enumerate(results):
        told = (box / f"seen-{index}").read_text().split()
        assert len(told) == 2
        assert {int(seed) for seed in told} == {result["result"]}
