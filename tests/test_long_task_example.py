"""The example of a task that takes longer than a run may last, with short blocks."""

import json
import shutil
from pathlib import Path

from helpers import Box, names, wait_until

import gpuspool

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "long_task"
BLOCKS = 60


def test_the_long_task_ends_after_some_starts_as_if_nothing_had_stopped_it(box: Box) -> None:
    """Stopped by the time limit, and killed with SIGKILL in between."""
    shutil.copy(EXAMPLE / "pi.py", box.home)
    tasks = box.tasks([{"blocks": BLOCKS}, {"blocks": 3}])
    command = ["run", "--tasks", tasks, "pi.py:Pi", "--ranks", "2", "--arg"]
    box.run(*command, "block_s=0", "--spool", "undisturbed")
    command += ["block_s=0.03", "--spool", "S"]

    def blocks_done() -> int:
        saved = box / "S" / "scratch" / "000000000" / "state.json"
        return int(json.loads(saved.read_text())[0]) if saved.exists() else 0

    starts = kills = 0
    code = 75
    while code == 75:
        assert starts < 60
        starts += 1
        if starts % 2:
            code = box.run(*command, "--time-limit", "1s", code=None).code
            continue
        started = box.start(*command)
        before = blocks_done()
        wait_until(
            lambda before=before, started=started: blocks_done() > before or started.is_over()
        )
        box.kill_all()
        kills += 1
    assert code == 0
    assert starts > 2
    assert kills
    told = [result["result"] for result in box.results("S")]
    assert told == [result["result"] for result in box.results("undisturbed")]
    assert names(box / "S" / "scratch") == []
    assert names(box / "S" / "failed-tasks") == []
    assert gpuspool.verify(box / "S").problems == []


def test_the_tasks_of_the_example_are_ten_minutes_of_work() -> None:
    blocks = [
        json.loads(line)["blocks"] for line in (EXAMPLE / "tasks.jsonl").read_text().splitlines()
    ]
    assert max(blocks) == 600
