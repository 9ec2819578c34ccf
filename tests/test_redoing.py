"""`redo`: finished tasks are done again, and their outputs replace those that were there."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, names, wait_until
from spooling import hidden_files

import gpuspool
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import OUT_MARK, Layout
from gpuspool.spool.ledger import Ledger
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.states import LineState, Verdict
from gpuspool.spool.view import open_view

# Writes the number of the run that it is in, which a file says; fails where another file is.
JOB = (
    "import pathlib\n"
    "def Job(task, ctx):\n"
    "    number = pathlib.Path('number').read_text()\n"
    "    if number == 'bad': raise ValueError('bad')\n"
    "    ctx.output(task, '.txt').write_text(f'{task.key} {number}')\n"
    "    return number\n"
)


@pytest.fixture
def done(box: Box) -> Path:
    """A finished run of six tasks; returns its folder of outputs."""
    box.write("job.py", JOB)
    box.write("number", "1")
    box.run("run", "job.py:Job", "--lines", box.lines(6), "--spool", "S", "--ranks", "1")
    box.write("number", "2")
    return box / "S" / "outputs"


def told(box: Box) -> list[Any]:
    return [result["result"] for result in box.results("S")]


def test_tasks_are_redone_by_key_and_by_pattern_and_no_other(box: Box, done: Path) -> None:
    box.run("redo", "S", "t1", "t[45]")
    assert told(box) == ["1", "2", "1", "1", "2", "2"]
    assert [(done / f"t{index}.txt").read_text()[-1] for index in range(6)] == list("121122")
    assert gpuspool.verify(box / "S").problems == []
    box.write("number", "3")
    box.run("redo", "S", "t1")
    assert told(box)[1] == "3"
    assert names(box / "S" / "manifests")[-2:] == ["retry-01.jsonl", "retry-02.jsonl"]


def test_a_retry_of_a_redone_task_still_replaces_its_output(box: Box, done: Path) -> None:
    """Whatever else gave the task out before, and is listed behind the redo."""
    layout = Layout(box / "S")
    [line] = [one for one in open_view(layout.root).planned_tasks() if one.key == "t1"]
    assert publish_manifest(layout, "sweep-01", [line])
    box.write("number", "bad")
    box.run("redo", "S", "t1", "--keep-going", code=3)
    box.write("number", "3")
    box.run("retry", "S", code=0)
    assert told(box)[1] == "3"
    assert (done / "t1.txt").read_text() == "t1 3"


def test_from_python(box: Box, done: Path) -> None:
    script = "import gpuspool; gpuspool.redo('S', ['t0'], quiet=True)\n"
    box.python(script)
    assert told(box)[0] == "2"
    with pytest.raises(UsageError, match="one text"):
        gpuspool.redo(box / "S", "t0")


def test_a_key_that_no_task_has_is_told_with_those_that_are_near(box: Box, done: Path) -> None:
    err = box.run("redo", "S", "t11", code=2).err
    assert "has no task 't11'. Did you mean t1" in err
    assert "Nothing was redone" in err
    assert "by patterns" in box.run("redo", "S", code=2).err
    assert told(box) == ["1"] * 6


def test_a_task_is_named_by_its_number_and_by_its_input_too(box: Box, done: Path) -> None:
    box.run("redo", "S", "#3")
    assert told(box) == ["1", "1", "1", "2", "1", "1"]
    # A key that is mistyped may be a number, and the wrong task would be done again for hours.
    err = box.run("redo", "S", "3", code=2).err
    assert "no task has the key '3'. The one with this number is '#3'" in err
    assert "Its tasks are #0 to #5" in box.run("redo", "S", "#6", code=2).err
    assert told(box) == ["1", "1", "1", "2", "1", "1"]


def test_outputs_that_are_gone_or_changed_are_made_again(box: Box, done: Path) -> None:
    (done / "t0.txt").unlink()
    (done / "t3.txt").write_text("")
    box.run("redo", "S", "--missing-outputs")
    assert told(box) == ["2", "1", "1", "2", "1", "1"]
    assert gpuspool.verify(box / "S").problems == []


def test_a_folder_of_outputs_that_was_deleted_is_made_again(box: Box, done: Path) -> None:
    shutil.rmtree(done)
    said = box.run("resume", "S", code=2).err
    assert "--missing-outputs` computes them again" in said
    box.run("redo", "S", "--missing-outputs")
    assert told(box) == ["2"] * 6
    assert len(names(done)) == 6


def test_a_folder_of_outputs_is_not_made_again_where_nothing_is_redone(
    box: Box, done: Path
) -> None:
    """An empty one that bears the mark would pass for that in which all outputs are."""
    shutil.rmtree(done)
    box.run("redo", "S", "t11", "--missing-outputs", code=2)
    assert not done.exists()
    assert "--missing-outputs` computes them again" in box.run("resume", "S", code=2).err


def test_a_task_that_fails_when_it_is_redone_has_failed_and_keeps_its_output(
    box: Box, done: Path
) -> None:
    box.write("number", "bad")
    box.run("redo", "S", "t2", "--keep-going", code=3)
    assert [result["state"] for result in box.results("S")].count("failed") == 1
    assert (done / "t2.txt").read_text() == "t2 1"
    box.write("number", "3")
    box.run("retry", "S")
    assert told(box)[2] == "3"
    assert (done / "t2.txt").read_text() == "t2 3"


def test_folders_of_outputs_are_replaced_whole(box: Box) -> None:
    box.write(
        "job.py",
        "import pathlib\n"
        "def Job(task, ctx):\n"
        "    number = pathlib.Path('number').read_text()\n"
        "    folder = ctx.output(task)\n"
        "    folder.mkdir()\n"
        "    (folder / number).write_text(number)\n",
    )
    for number in ("1", "2"):
        box.write("number", number)
        verb = ["run", "job.py:Job", "--lines", box.lines(3), "--spool", "S", "--ranks", "1"]
        box.run(*(verb if number == "1" else ["redo", "S", "t1"]))
    outputs = box / "S" / "outputs"
    assert [names(outputs / f"t{index}") for index in range(3)] == [["1"], ["2"], ["1"]]
    assert hidden_files(outputs) == [OUT_MARK]


def test_what_is_redone_goes_on_wherever_it_was_killed(box: Box, done: Path) -> None:
    box.write(
        "job.py",
        JOB.replace("import pathlib\n", "import pathlib, time\n").replace(
            "    ctx.output",
            "    while not pathlib.Path('go').exists(): time.sleep(0.01)\n    ctx.output",
        ),
    )
    started = box.start("redo", "S", "t*", "--keep-done", "--ranks", "2")
    wait_until(lambda: len(names(box / "S" / "journal")) == 3)
    started.process.kill()
    box.write("go", "")
    box.run("resume", "S")
    assert told(box) == ["2"] * 6
    assert gpuspool.verify(box / "S").problems == []


def test_lines_of_rounds_before_a_redo_do_not_count_in_whatever_order_they_come() -> None:
    lines = [(0, LineState.COMPLETE), (1, LineState.FAILED), (2, LineState.COMPLETE)]
    for before in range(len(lines) + 1):
        ledger = Ledger(1)
        for round_, state in lines[:before]:
            ledger.feed(0, round_, state)
        ledger.redo(0, 2)
        for round_, state in lines[before:2]:
            ledger.feed(0, round_, state)
        if before < 3:
            assert ledger.verdict(0) is None
            assert ledger.n_complete == 0
            assert ledger.is_finished_in(0, 1), "nobody needs to run the line of an earlier round"
            assert not ledger.is_finished_in(0, 2)
            ledger.feed(0, 2, LineState.COMPLETE)
        assert ledger.verdict(0) is Verdict.COMPLETE
        assert ledger.n_complete == 1
        ledger.redo(0, 3)
        ledger.feed(0, 3, LineState.FAILED)
        assert ledger.verdict(0) is Verdict.FAILED
