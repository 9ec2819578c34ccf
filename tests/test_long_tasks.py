"""Tasks that take longer than a run may last: they save what they have, and go on from there."""

import json
from pathlib import Path

import pytest
from helpers import Box, names, wait_until

import gpuspool

# Counts to what its payload says, one step a call or, while nobody drains, as many as it gets; it
# saves the count, and says so in a file outside of the spool.
COUNTS = (
    "import pathlib, time, gpuspool\n"
    "def Job(task, ctx):\n"
    "    saved = ctx.scratch(task) / 'count'\n"
    "    count = int(saved.read_text()) if saved.exists() else 0\n"
    "    while count < task.payload:\n"
    "        time.sleep(0.02)\n"
    "        count += 1\n"
    "        saved.with_suffix('.new').write_text(str(count))\n"
    "        saved.with_suffix('.new').rename(saved)\n"
    "        with open('steps', 'a') as steps: steps.write(f'{task.key} {count}\\n')\n"
    "        if ctx.is_draining(): raise gpuspool.NotDone\n"
    "    return count\n"
)


def run(box: Box, *values: object, code: int | None, options: tuple[str, ...] = ()) -> str:
    """Returns what it said on stderr."""
    command = ["run", "job.py:Job", "--tasks", box.tasks(list(values)), "--spool", "S"]
    return box.run(*command, "--ranks", "2", *options, code=code).err


def steps(box: Box) -> list[str]:
    return (box / "steps").read_text().split("\n")[:-1]


def scratch(box: Box) -> list[str]:
    folder = box / "S" / "scratch"
    return names(folder) if folder.exists() else []


def test_a_task_that_is_longer_than_the_time_limit_ends_after_some_starts(box: Box) -> None:
    """Drained by the limit, and killed in between: no step is taken twice but the one in hand."""
    box.write("job.py", COUNTS)
    command = ["run", "job.py:Job", "--tasks", box.tasks([150, 20, 1]), "--spool", "S"]
    for starts in range(1, 30):
        if starts == 2:
            started = box.start(*command, "--ranks", "2", "--on-parent-exit", "stop")
            before = len(steps(box))
            wait_until(lambda before=before: len(steps(box)) > before)
            started.process.kill()
            started.process.wait()
            continue
        done = box.run(*command, "--ranks", "2", "--time-limit", "1s", code=None)
        if done.code == 0:
            break
        assert done.code == 75, done.err
    assert starts > 2
    assert [result["result"] for result in box.results("S")] == [150, 20, 1]
    taken = steps(box)
    assert len(taken) - len(set(taken)) <= starts, "no work was lost"
    assert names(box / "S" / "failed-tasks") == []
    assert scratch(box) == [], "a task that is complete needs none"
    assert gpuspool.verify(box / "S").problems == []


@pytest.mark.parametrize("batch", ["", "Job.batch_size = 3\n"])
def test_what_is_not_done_goes_back_to_the_queue_and_blames_nobody(box: Box, batch: str) -> None:
    one = "count = len(list(ctx.scratch(task).iterdir()))\n"
    body = (
        "    def one(task):\n"
        f"        {one}"
        "        if count == task.payload: return count\n"
        "        (ctx.scratch(task) / str(count)).touch()\n"
        "        return gpuspool.NotDone()\n"
    )
    ending = "    return [one(each) for each in task]\n" if batch else "    return one(task)\n"
    box.write("job.py", f"import gpuspool\ndef Job(task, ctx):\n{body}{ending}{batch}")
    run(box, 3, 0, 1, 2, code=0)
    assert [result["result"] for result in box.results("S")] == [3, 0, 1, 2]
    journals = "".join(path.read_text() for path in (box / "S" / "journal").iterdir())
    assert journals.count('"deferred"') == 6
    assert '"held"' not in journals
    assert scratch(box) == []


def test_a_batch_that_raises_not_done_speaks_for_all_its_tasks(box: Box) -> None:
    box.write(
        "job.py",
        "import gpuspool\n"
        "def Job(tasks, ctx):\n"
        "    for task in tasks: (ctx.scratch(task) / str(len(tasks))).touch()\n"
        "    if any(len(list(ctx.scratch(task).iterdir())) < 2 for task in tasks):\n"
        "        raise gpuspool.NotDone\n"
        "    return [task.payload for task in tasks]\n"
        "Job.batch_size = 4\n",
    )
    command = ["run", "job.py:Job", "--tasks", box.tasks([1, 2, 3, 4]), "--spool", "S"]
    done = box.run(*command, "--ranks", "1", code=0)
    assert [result["result"] for result in box.results("S")] == [1, 2, 3, 4]
    assert "split" not in done.err
    [journal] = [path.read_text() for path in (box / "S" / "journal").iterdir()]
    assert journal.count('"deferred"') == 4
    assert "not_done" not in journal


NOT_DONE = {
    "group": "async def go():\n"
    "    async with asyncio.TaskGroup() as group: group.create_task(step())\n"
    "async def step(): raise gpuspool.NotDone\n"
    "def end(tasks, ctx): asyncio.run(go())\n",
    "batch": "def end(tasks, ctx): raise gpuspool.NotDone\nJob.batch_size = 2\n",
    "class": "def end(tasks, ctx): return [gpuspool.NotDone] * len(tasks)\nJob.batch_size = 2\n",
    "no scratch": "def end(tasks, ctx):\n"
    "    shutil.rmtree(ctx.scratch(tasks[0]))\n"
    "    raise gpuspool.NotDone\n",
}


@pytest.mark.parametrize("ending", NOT_DONE.values(), ids=NOT_DONE)
def test_what_is_not_done_is_no_failure_however_it_is_said(box: Box, ending: str) -> None:
    box.write(
        "job.py",
        "import asyncio, pathlib, shutil, gpuspool\n"
        "def Job(task, ctx):\n"
        "    tasks = task if isinstance(task, list) else [task]\n"
        "    asked = [pathlib.Path(f'{each.key}-{ctx.scratch(each).name}') for each in tasks]\n"
        "    for each in tasks: (ctx.scratch(each) / 'saved').touch()\n"
        "    if all(each.exists() for each in asked):\n"
        "        return [1] * len(tasks) if isinstance(task, list) else 1\n"
        "    for each in asked: each.touch()\n"
        "    return end(tasks, ctx)\n" + ending,
    )
    said = run(box, 1, 2, 3, code=0)
    assert [result["result"] for result in box.results("S")] == [1, 1, 1]
    assert "failed" not in said
    assert "raised" not in said
    assert scratch(box) == []


def test_a_command_says_by_exit_status_75_that_it_is_not_done(box: Box) -> None:
    script = box.write(
        "step.sh",
        'n=$(cat "$1/n" 2>/dev/null || echo 0); n=$((n+1)); echo $n > "$1/n"\n'
        'test $n -ge 3 && { cp "$1/n" "$2"; exit 0; }\nexit 75\n',
    )
    command = ["run", "--lines", box.lines(3), "--spool", "S", "--ranks", "2", "--"]
    box.run(*command, "sh", script, "{scratch}", "{output}.txt")
    outputs = box / "S" / "outputs"
    assert [(outputs / name).read_text() for name in names(outputs)] == ["3\n"] * 3
    assert scratch(box) == []


def test_a_task_that_fails_keeps_its_scratch_for_its_next_round(box: Box) -> None:
    box.write(
        "job.py",
        "import pathlib\n"
        "def Job(task, ctx):\n"
        "    saved = ctx.scratch(task) / 'saved'\n"
        "    if pathlib.Path('mended').exists(): return saved.read_text()\n"
        "    saved.write_text(task.key)\n"
        "    if task.payload: raise ValueError('bad')\n",
    )
    run(box, 1, 0, code=3, options=("--keep-going",))
    assert scratch(box) == ["000000000"]
    box.write("mended", "")
    box.run("retry", "S")
    assert box.results("S")[0]["result"] == "t0"
    assert scratch(box) == []


def test_a_task_may_remove_its_scratch_and_ask_again(box: Box) -> None:
    box.write(
        "job.py",
        "import gpuspool, pathlib, shutil\n"
        "def Job(task, ctx):\n"
        "    (ctx.scratch(task) / 'half').touch()\n"
        "    shutil.rmtree(ctx.scratch(task))\n"
        "    if pathlib.Path('again').exists(): return 1\n"
        "    pathlib.Path('again').touch()\n"
        "    raise gpuspool.NotDone\n",
    )
    run(box, 1, code=0, options=("--keep-going",))
    assert scratch(box) == []


def test_a_redo_does_not_go_on_from_what_a_dead_worker_left(box: Box) -> None:
    box.write("job.py", COUNTS)
    run(box, 3, 2, code=0)
    kept = box / "S" / "scratch" / "000000001"
    kept.mkdir(parents=True)
    (kept / "count").write_text("2")
    before = len(steps(box))
    box.run("redo", "S", "t1")
    assert steps(box)[before:] == ["t1 1", "t1 2"]


def test_the_scratch_of_a_complete_task_whose_worker_died_goes_at_the_end(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): return 1\n")
    run(box, 1, 2, code=0)
    for name in ("000000000", "000000001", "000000009", "mine"):
        (box / "S" / "scratch" / name).mkdir(parents=True)
    run(box, 1, 2, code=0)
    assert scratch(box) == ["000000009", "mine"], "what is nobody's stays"


def test_only_a_task_has_scratch(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): ctx.scratch(task.key)\n")
    run(box, 1, code=3, options=("--keep-going",))
    error = json.loads(Path(box / "S" / "failed-tasks" / "t0.json").read_text())["error"]
    assert error["type"] == "TypeError"
