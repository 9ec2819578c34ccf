"""Names as they are out there: each row of docs/names.md, through the real command line."""

import os
from pathlib import Path

import pytest
from helpers import Box

WORKING = [
    "a b.txt", 'it\'s "q".txt', "a;b&c|d.txt", "$(x).txt", "back\\slash.txt", "star*.txt",
    "[1].txt", "ünï-😀.txt", "-dash.txt", ".hidden", "%41.txt", "~home", "x" * 251 + ".txt",
]  # fmt: skip
JOB = """
def copy(task, ctx):
    ctx.output(task).write_bytes(task.path.read_bytes())
def nothing(task, ctx):
    pass
def longer(task, ctx):
    ctx.output(task, ".copy").write_bytes(task.path.read_bytes())
"""


@pytest.fixture
def named(box: Box) -> Box:
    box.write("job.py", JOB)
    (box / "in").mkdir()
    for name in WORKING:
        (box / "in" / name).write_text(name)
    return box


def test_every_name_of_the_table_runs_and_gives_an_output_of_that_name(named: Box) -> None:
    named.write("list", "".join(f"in/{name}\n" for name in WORKING))
    named.run("run", "job.py:copy", "--files-from", "list", "--spool", "s", code=0)
    assert [result["key"] for result in named.run("results", "s", code=0).records()] == WORKING
    assert all((named / "s" / "outputs" / name).read_text() == name for name in WORKING)


def test_what_exists_is_that_file_and_not_a_glob(named: Box) -> None:
    (named / "in" / "starred.txt").write_text("another")
    named.run("run", "job.py:copy", "in/star*.txt", "--spool", "s", code=0)
    assert [result["key"] for result in named.run("results", "s", code=0).records()] == [
        "star*.txt"
    ]


def test_an_output_name_that_is_too_long_fails_that_task_alone(named: Box) -> None:
    named.run("run", "job.py:longer", "in/x*", "in/a*", "--spool", "s", code=3)
    results = named.run("results", "s", code=0).records()
    assert {result["key"][0]: result["state"] for result in results} == {
        "x": "failed",
        "a": "complete",
    }
    assert "more than 255 bytes" in next(
        r["error"]["message"] for r in results if r["state"] == "failed"
    )


@pytest.mark.parametrize(
    ("name", "reason"), [(b"new\nline", "control characters"), (b"\xff.txt", "not UTF-8")]
)
def test_a_name_that_cannot_be_a_key_is_refused_and_nothing_is_run(
    named: Box, name: bytes, reason: str
) -> None:
    Path(os.fsdecode(os.fsencode(named / "in") + b"/" + name)).write_text("")
    done = named.run("run", "job.py:copy", "in/*", "--spool", "s", code=2)
    assert reason in done.err
    assert not (named / "s").exists()


def test_a_job_named_like_the_package_is_refused(box: Box) -> None:
    box.lines(1)
    box.write("gpuspool.py", "def f(task, ctx): pass\n")
    assert "Rename it" in box.run("run", "gpuspool.py:f", "--lines", "lines", code=2).err


def test_colliding_base_names_in_folders_per_class_keep_apart(box: Box) -> None:
    names = [f"class {c}/{i}.jpg" for c in range(20) for i in range(10)]
    for name in names:
        box.write(f"imgs/{name}", name)
    command = [
        "--",
        "sh",
        "-c",
        'wc -c < "$1" > "$2"; cat "$1" >> "$2"',
        "_",
        "{input}",
        "{output}.txt",
    ]
    box.run("run", "--ranks", "2", "--spool", "s", "imgs/**/*", *command, code=0)
    for name in names:
        assert (box / "s" / "outputs" / f"{name}.txt").read_text() == f"{len(name)}\n{name}"


def test_empty_files_cost_nothing_and_are_claimed_many_at_a_time(box: Box) -> None:
    for i in range(1000):
        box.write(f"in/{i}", "")
    box.write("job.py", JOB)
    box.run("run", "job.py:nothing", "in/*", "--spool", "s", code=0)
    assert len(list((box / "s" / "claims" / "rank-0000").iterdir())) < 200


def test_verify_names_tasks_whose_outputs_have_one_name_or_lie_in_another(box: Box) -> None:
    source = """
def f(task, ctx):
    path = ctx.output(task, task.payload)
    if task.key == "x":
        path.mkdir()
        path = path / "inside"
    path.write_text(task.key)
"""
    box.write("job.py", source)
    keys = {"a": ".b", "a.b": "", "x/y": "", "x": ""}
    box.run(
        "run",
        "job.py:f",
        "--tasks",
        box.tasks([{"key": k, "payload": p} for k, p in keys.items()]),
        code=0,
    )
    said = box.run("verify", code=5).out
    assert "tasks 0 and 1 (a.b) have one output a.b" in said
    assert "task 2: its output x/y lies in x, an output of task 3" in said
