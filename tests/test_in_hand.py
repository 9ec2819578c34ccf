"""What a heartbeat says of the call in hand, and what journals say of calls without a verdict."""

import json
from typing import Any

from helpers import JOBS, Box, check_line, record, wait_until
from spooling import A0

PATH = {"PYTHONPATH": str(JOBS)}
BATCHES = (
    "from gates import pass_gate\n"
    "def f(tasks, ctx):\n"
    "    pass_gate(ctx.args['gate'])\n"
    "    return [task.index for task in tasks]\n"
    "f.batch_size = 3\n"
)
# The first call of each task fails, or is not done, or both tasks of a batch raise together.
TROUBLE = (
    "import gpuspool, pathlib, time\n"
    "def f(task, ctx):\n"
    "    time.sleep(0.05)\n"
    "    mark = pathlib.Path(f'mark-{task.index}')\n"
    "    if not mark.exists():\n"
    "        mark.touch()\n"
    "        raise gpuspool.NotDone if task.index else ValueError('once')\n"
    "def g(tasks, ctx):\n"
    "    time.sleep(0.05)\n"
    "    if len(tasks) > 1: raise ValueError('together')\n"
    "    return [0 for task in tasks]\n"
    "g.batch_size = 2\n"
)


def beat(box: Box) -> Any:
    path = box / "S" / "heartbeat" / f"{A0}.json"
    return record(path) if path.exists() else {}


def test_a_heartbeat_tells_the_key_and_how_many_tasks_its_call_has(box: Box) -> None:
    box.write("job.py", BATCHES)
    words = ["run", "job.py:f", "--tasks", box.tasks([1, 2, 3]), "--spool", "S", "--lease", "12s"]
    run = box.start(*words, "--ranks", "1", "--arg", f"gate={box / 'gate'}", env=PATH)
    told = wait_until(lambda: (now := beat(box)).get("key") and now)
    assert told["key"] == f"t{told.get('task', 0)}"
    assert told["in_hand"] == 3
    assert told["task_since"] <= told["at"]
    (box / "gate").touch()
    run.wait(0)
    last = beat(box)
    assert not {"task", "key", "task_since", "in_hand"} & set(last)
    assert last["done"] == 3


def deferred(box: Box) -> list[Any]:
    lines = (box / "S" / "journal" / f"{A0}.jsonl").read_bytes().split(b"\n")[:-1]
    found = [check_line(line) for line in lines]
    return [line for line in found if line.get("state") == "deferred"]


def test_a_failed_try_and_a_step_tell_when_they_were_and_how_long_they_took(box: Box) -> None:
    box.write("job.py", TROUBLE)
    words = ["run", "job.py:f", "--lines", box.lines(2), "--spool", "S", "--ranks", "1"]
    box.run(*words, "--retries", "1")
    created = json.loads((box / "S" / "run.json").read_bytes())["created_at"]
    lines = deferred(box)
    assert sorted(line["task"] for line in lines) == [0, 1]
    assert all(line["start"] > created for line in lines)
    assert all(line["seconds"] >= 0.05 for line in lines)


def test_a_batch_that_is_split_tells_when_it_was_and_each_tasks_share(box: Box) -> None:
    box.write("job.py", TROUBLE)
    words = ["run", "job.py:g", "--lines", box.lines(2), "--spool", "S", "--ranks", "1"]
    box.run(*words)
    created = json.loads((box / "S" / "run.json").read_bytes())["created_at"]
    lines = deferred(box)
    assert [1 + len(line["batch"]) for line in lines] == [2]
    for line in lines:
        assert line["start"] > created
        assert 2 * line["seconds"] >= 0.05


def test_a_ruling_tells_when_the_call_began_in_which_a_task_failed_last(box: Box) -> None:
    box.write("job.py", "def f(task, ctx):\n    assert task.index != 1\n")
    box.run("run", "job.py:f", "--lines", box.lines(6), "--spool", "S", "--ranks", "2", code=3)
    [ruling] = [
        check_line(path.read_bytes().split(b"\n")[0])
        for path in (box / "S" / "manifests").glob("ruling-*.jsonl")
        if b'"failures"' in path.read_bytes()
    ]
    [failure] = ruling["failures"]
    starts = [
        check_line(line)["start"]
        for path in (box / "S" / "journal").iterdir()
        for line in path.read_bytes().split(b"\n")[:-1]
        if b'"held"' in line
    ]
    assert failure["start"] in starts
