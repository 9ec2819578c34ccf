"""What a run says on stderr while it goes on, and in its last line."""

import resource
from pathlib import Path

import pytest
from helpers import JOBS, Box
from spooling import A0, B0, begin, intend, make_spool, view_of

from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.orchestrator.text.progress import Silent
from gpuspool.spool.records import Error, JournalLine
from gpuspool.spool.states import ErrorKind, LineState

SPLIT = """
class Batches:
    batch_size = 8

    def __call__(self, tasks, ctx):
        for task in tasks:
            if int(task.payload) == 3:
                raise ValueError("three is bad")
        return [int(task.payload) for task in tasks]
"""
TWO_WAYS = """
def job(task, ctx):
    number = int(task.payload)
    if number % 10 == 3:
        raise ValueError(f"bad input {number}")
    if number == 7:
        raise KeyError("seven")
"""


def test_the_first_line_says_what_there_is_to_do_and_where(box: Box) -> None:
    command = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(1200), "--ranks", "2"]
    assert (
        'gpuspool: 1,200 tasks on 2 ranks (cpu: CUDA_VISIBLE_DEVICES="" hides all devices), '
        "spool-double\n"
    ) in box.run(*command).err
    box.run("redo", "spool-double", "t1", "t2")
    # In between nothing is left.
    assert "gpuspool: 0 of 1,200 tasks left, on 2 ranks (cpu" in box.run(*command).err


def test_a_redo_says_how_many_tasks_are_left(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(20), "--ranks", "1")
    done = box.run("redo", "spool-double", "t1", "t2")
    assert "gpuspool: 2 of 20 tasks left, on 1 rank (cpu" in done.err


def test_quiet_says_the_last_line_alone(box: Box) -> None:
    box.write("two.py", TWO_WAYS)
    command = ["run", "two.py:job", "--lines", box.lines(40), "--ranks", "2", "--quiet"]
    lines = box.run(*command, code=3).err.splitlines()
    assert [
        line for line in lines if "tasks on" in line or "more failures like this one" in line
    ] == []
    assert "35 of 40 tasks complete, 5 failed" in lines[0]


def test_the_first_failure_of_each_group_is_told_with_its_line(box: Box) -> None:
    box.write("two.py", TWO_WAYS)
    done = box.run("run", "two.py:job", "--lines", box.lines(40), "--ranks", "2", code=3)
    told = [line for line in done.err.splitlines() if "more failures like this one" in line]
    assert len(told) == 2, done.err
    [value_error] = [line for line in told if "ValueError at two.py:5: bad input" in line]
    [key_error] = [line for line in told if "task t7 failed on rank" in line]
    assert "KeyError at two.py:7: 'seven'" in key_error
    assert "it is tried again elsewhere" in value_error


def test_the_last_line_names_the_largest_group_and_what_to_type(box: Box) -> None:
    box.write("two.py", TWO_WAYS)
    done = box.run("run", "two.py:job", "--lines", box.lines(40), "--ranks", "2", code=3)
    last = done.err.splitlines()[-1]
    # Each of the four says something else.
    most = "4 of the 5 failed tasks: ValueError at two.py:5, such as: bad input"
    assert last.startswith(most), last
    assert "; also 1 KeyError. " in last
    assert "`gpuspool failed spool-job` tells why" in last
    assert "`gpuspool retry spool-job` runs them again" in last


def test_an_error_without_a_message_is_told_by_its_type_and_line(box: Box) -> None:
    box.write("bare.py", "def job(task, ctx):\n    assert task.payload != '3'\n")
    done = box.run("run", "bare.py:job", "--lines", box.lines(20), "--ranks", "2", code=3)
    assert "failed on rank" in done.err
    assert "AssertionError at bare.py:2; it is tried again" in done.err
    last = done.err.splitlines()[-1]
    assert last == (
        "The failed task: AssertionError at bare.py:2. `gpuspool failed spool-job` tells why, "
        "`gpuspool retry spool-job` runs it again; after a fix of the job add --keep-done."
    )
    told = box.run("failed").out
    assert told.startswith("1 task: exception, AssertionError at bare.py:2\n")
    assert "message" not in told


def test_a_verdict_without_a_second_opinion_is_told_too(box: Box) -> None:
    box.write("two.py", TWO_WAYS)
    command = ["run", "two.py:job", "--lines", box.lines(40), "--ranks", "2", "--keep-going"]
    done = box.run(*command, code=3)
    [line] = [line for line in done.err.splitlines() if "task t7 failed on rank" in line]
    assert "KeyError" in line
    assert "elsewhere" not in line


def test_however_many_kinds_of_failures_few_are_told(box: Box) -> None:
    kinds = "".join(f"class E{number}(Exception): pass\n" for number in range(40))
    source = f"{kinds}\ndef job(task, ctx):\n    raise globals()[f'E{{task.payload}}']('bad')\n"
    box.write("many.py", source)
    command = ["run", "many.py:job", "--lines", box.lines(40), "--ranks", "2", "--keep-going"]
    done = box.run(*command, code=3)
    assert done.err.count("(more failures like this one are not told here)") == 10
    assert "other kinds of failures are not told here any more" in done.err


def test_a_first_failure_that_cannot_be_read_is_told_later(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    journals = []
    for attempt in (A0, B0):
        intend(layout, attempt)
        journals.append(begin(layout, attempt))
    view = view_of(layout)
    telling = Telling(layout, 0, Silent(), lambda: None)
    telling.follow(view)
    for task, journal in enumerate(journals):
        error = Error(kind=ErrorKind.EXCEPTION, type=f"E{task}", message="bad")
        journal.append(JournalLine(task=task, round=0, state=LineState.FAILED, error=error))
    view.refresh()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No file can be opened.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            telling.show(view)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    telling.show(view)
    telling.show(view)
    told = layout.events(0).read_text()
    assert [told.count("E0: bad"), told.count("E1: bad")] == [1, 1], told


def test_the_first_split_of_a_batch_is_told(box: Box) -> None:
    box.write("split.py", SPLIT)
    done = box.run("run", "split.py:Batches", "--lines", box.lines(64), "--ranks", "2", code=3)
    [line] = [line for line in done.err.splitlines() if "tasks raised on rank" in line]
    assert "a batch of 8 tasks raised on rank" in line
    assert "ValueError at split.py:8: three is bad" in line
    assert "down to one alone" in line
