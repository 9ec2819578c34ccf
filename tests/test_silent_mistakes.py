"""Mistakes that people make in their first hour, and that used to say nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, names, record

import gpuspool
from gpuspool.spool.errors import ResultError
from gpuspool.worker.results import to_json


def run(box: Box, source: str, *more: str, code: int) -> str:
    box.write("job.py", source)
    command = ("run", "job.py:Job", "--lines", box.lines(32), "--spool", "S", "--ranks", "1")
    return box.run(*command, *more, code=code).err


WHOLE = "class Job:\n    def __call__(self, task, ctx): return 1\n"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("async def Job(task, ctx): return 1\n", "is async"),
        ("async def Job(task, ctx): yield 1\n", "is async"),
        ("def Job(task, ctx): yield 1\n", "yields"),
        ("class Job: pass\n", "a class without __call__"),
        ("class Job:\n    async def __call__(self, task, ctx): return 1\n", "is async"),
        ("class Job:\n    def __call__(self, task, ctx): yield 1\n", "yields"),
        ("class Job:\n    @staticmethod\n    def __call__(task, ctx): yield 1\n", "yields"),
        (f"{WHOLE}    async def load(self, task): return 1\n", "load of job.py:Job is async"),
        (f"{WHOLE}    def load(self, task): yield 1\n", "load of job.py:Job yields"),
        (f"{WHOLE}    async def close(self, ctx): pass\n", "close of job.py:Job is async"),
        (f"{WHOLE}    @classmethod\n    def warmup(cls, ctx): yield\n", "warmup of Job yields"),
    ],
)
def test_a_job_that_would_do_no_task_is_refused_when_it_is_loaded(
    box: Box, source: str, what: str
) -> None:
    err = run(box, source, code=4)
    assert what in err
    assert names(box / "S" / "failed-tasks") == []


def test_a_batch_of_another_length_fails_as_a_result_and_is_not_tried_one_by_one(box: Box) -> None:
    source = (
        "class Job:\n"
        "    batch_size = 8\n"
        "    def __call__(self, tasks, ctx):\n"
        "        with open('calls', 'a') as calls: calls.write('x')\n"
        "        return [1]\n"
    )
    err = run(box, source, "--keep-going", code=3)
    assert (
        "the job returned 1 results for 8 tasks"
        in (box / "S" / "failed-tasks" / "t0.json").read_text()
    )
    assert (box / "calls").read_text() == "xxxx"
    assert "0 of 32 tasks complete, 32 failed" in err


def test_batches_of_another_length_are_told_at_the_end_though_their_tasks_complete_alone(
    box: Box,
) -> None:
    source = (
        "class Job:\n"
        "    batch_size = 8\n"
        "    def __call__(self, tasks, ctx):\n"
        "        seven = [task for task in tasks if task.payload == '7']\n"
        "        return [1] if seven else [1] * len(tasks)\n"
    )
    last = run(box, source, code=0).splitlines()[-2:]
    assert "32 of 32 tasks complete" in last[0]
    assert last[1].startswith("For 1 batch the job returned another number of results than it got")


def test_a_batch_that_raises_says_so_once_and_counts_how_often_it_was_split(box: Box) -> None:
    source = (
        "class Job:\n"
        "    batch_size = 8\n"
        "    def __call__(self, tasks, ctx):\n"
        "        if len(tasks) > 1: raise ValueError('shapes differ')\n"
        "        return [1]\n"
    )
    run(box, source, code=0)
    log = (box / "S" / "logs" / "rank-0000.a00.log").read_text()
    assert log.count("is split until the task that raises is alone: ValueError: shapes differ") == 1
    assert record(box / "S" / "complete" / "rank-0000.a00.json")["stats"]["splits"] >= 28


@pytest.mark.parametrize(
    "result",
    [
        {1: "a", "1": "b"},
        [{"x": {None: 1, "null": 2}}],
        {"a": ({True: 1, "true": 2},)},
        {1.5: 0, "1.5": 1},
    ],
)
def test_keys_that_are_one_text_in_json_are_refused(result: object) -> None:
    with pytest.raises(ResultError, match="one text in JSON"):
        to_json(result)


def test_keys_that_are_other_texts_are_kept() -> None:
    result = {1: "a", "2": [{True: 1, "True": 2}], 3.0: {}}
    assert json.loads(bytes(to_json(result))) == {
        "1": "a",
        "2": [{"true": 1, "True": 2}],
        "3.0": {},
    }


def test_a_result_that_holds_itself_is_refused_as_before() -> None:
    result: list[object] = []
    result.append(result)
    with pytest.raises(ResultError, match="not JSON"):
        to_json(result)


def test_one_path_alone_is_one_path_from_python(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): return task.key\n")
    for name in ("a.txt", "b.txt"):
        box.write(f"in/{name}", "x")
    script = (
        "import gpuspool, pathlib\n"
        "report = gpuspool.run('job.py:Job', INPUTS, spool=SPOOL, max_failed=5, quiet=True)\n"
        "print([result.value() for result in report.results()])\n"
    )
    for number, inputs in enumerate(("'in/*.txt'", "pathlib.Path('in/a.txt')")):
        source = script.replace("INPUTS", inputs).replace("SPOOL", f"'S{number}'")
        found = ["a.txt", "b.txt"] if number == 0 else ["a.txt"]
        assert box.python(source).out == f"{found}\n"


@pytest.mark.parametrize("items", ["a.txt", b"ab", {"a": 1}, 7])
def test_one_value_alone_is_no_list_of_items(box: Box, items: object) -> None:
    """Its letters, numbers or keys would become tasks."""
    with pytest.raises(gpuspool.UsageError, match="is one value"):
        gpuspool.run(command=["true", "{input}"], items=items, spool=box / "S")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"inputs": 5},
        {"inputs": b"a.txt"},
        {"inputs": [None]},
        {"items": [1], "command": ["echo", 3, "{input}"]},
        {"items": [1], "args": ["a=1"]},
        {"items": [1], "args": {1: 2}},
    ],
)
def test_values_of_another_type_are_refused_from_python(box: Box, given: dict[str, Any]) -> None:
    with pytest.raises(gpuspool.UsageError, match=r"Give|Name"):
        gpuspool.run(**{"command": ["true", "{input}"], "spool": box / "S", **given})
    assert not (box / "S").exists()


def test_keys_to_redo_are_texts(box: Box) -> None:
    with pytest.raises(gpuspool.UsageError, match="A key is a task's name: '0'"):
        gpuspool.redo(box / "S", [0])  # type: ignore[list-item]


def test_a_job_beside_a_command_is_refused(box: Box) -> None:
    """It would be left out."""
    with pytest.raises(gpuspool.UsageError, match=r"'in/\*' and a command are both given"):
        gpuspool.run("in/*", items=[1], command=["true", "{input}"], spool=box / "S")


def test_a_list_may_be_named_by_a_path_from_python(box: Box) -> None:
    table = box.write("table.csv", "name\nx\n")
    tasks = box.write("tasks", '["x"]')
    for number, given in enumerate(({"csv": table}, {"tasks": tasks})):
        command = ["true", "{input}"]
        report = gpuspool.run(command=command, spool=box / f"S{number}", quiet=True, **given)  # type: ignore[arg-type]
        assert report.counts["complete"] == 1


def test_a_second_way_to_name_inputs_is_refused(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): return 1\n")
    with pytest.raises(gpuspool.UsageError, match="in one way"):
        gpuspool.run(
            f"{box / 'job.py'}:Job", items=[1], lines=str(Path(box / "l")), spool=box / "S"
        )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("    def __init__(self): pass\n    def __call__(self, task, ctx): pass\n",
         "__init__ of job.py:Job is called with (ctx), and cannot take that. Write "
         "`def __init__(self, ctx)`."),
        ("    def __call__(self, task): pass\n", "`def __call__(self, task, ctx)`"),
        ("    batch_size = 2\n    def __call__(self, tasks): pass\n",
         "`def __call__(self, tasks, ctx)`"),
        ("    def __call__(self, task, ctx, extra): pass\n", "`def __call__(self, task, ctx)`"),
        ("    def __call__(self, task, ctx): pass\n    def load(self): pass\n",
         "`def load(self, task)`"),
        ("    def __call__(self, task, ctx): pass\n    def close(self): pass\n",
         "`def close(self, ctx)`"),
        ("    def __call__(self, task, ctx): pass\n    @staticmethod\n    def warmup(): pass\n",
         "`def warmup(ctx)`"),
    ],
)  # fmt: skip
def test_a_method_that_cannot_take_what_it_gets_is_told_how_to_be_written(
    box: Box, source: str, says: str
) -> None:
    err = run(box, f"class Job:\n{source}", code=4)
    assert "no rank could load the job" in err
    assert says in err


def test_a_function_that_cannot_take_what_it_gets_is_told_how_to_be_written(box: Box) -> None:
    assert "Write `def Job(task, ctx)`." in run(box, "def Job(task): pass\n", code=4)


@pytest.mark.parametrize(
    "source",
    [
        "def Job(*args): pass\n",
        "def Job(task, ctx=None, more=1, *, key=2): pass\n",
        "import functools\nJob = functools.partial(lambda x, task, ctx: None, 1)\n",
        "class Job:\n    def __init__(self, ctx, more=1): pass\n"
        "    @staticmethod\n    def __call__(task, ctx): pass\n"
        "    @classmethod\n    def load(cls, task): pass\n    def close(self, *args): pass\n",
        "class Made:\n    def __init__(self): pass\n"
        "class Job(Made):\n    def __new__(cls, ctx): return lambda task, ctx: None\n",
        "import dataclasses\n@dataclasses.dataclass\nclass Job:\n    ctx: object\n"
        "    def __call__(self, task, ctx): pass\n",
    ],
)
def test_what_can_take_what_it_gets_is_called(box: Box, source: str) -> None:
    run(box, source, code=0)
    assert box.status("S")["state"] == "complete"
