"""A task that takes unexpectedly long holds nobody up but itself."""

import pytest
from helpers import Box, assert_sound, journal_lines, wait_until

JOB = """
import os
import time


def job(task, ctx):
    time.sleep(0.01)
    while task.payload == "long" and not os.path.exists("gate"):
        time.sleep(0.01)
"""


@pytest.mark.parametrize("place", [0, 3, 4, 57])
def test_all_others_complete_meanwhile(box: Box, place: int) -> None:
    """Whatever was claimed along with it would wait until it is over: here for ever."""
    box.write("job.py", JOB)
    tasks = box.tasks(["long" if index == place else index for index in range(60)])
    command = ["run", "job.py:job", "--tasks", tasks, "--ranks", "2", "--spool", "S"]
    run = box.start(*command)
    wait_until((box / "S" / "journal").is_dir)
    wait_until(lambda: len(journal_lines(box / "S")) == 59)
    assert not run.is_over()
    box.write("gate", "")
    run.wait(0)
    assert_sound(box, "S", 60)
