"""Ranks that have done nothing for long: what they wait for is told once, with where to look."""

import pytest
from helpers import Box, wait_until

from gpuspool.orchestrator.supervise.waits import UNUSUAL_S, Waits
from gpuspool.spool.layout import Layout, orphans_name
from gpuspool.spool.view import open_view

PASS = """
import time
from pathlib import Path

def pass_gate():
    Path("reached").touch()
    while not Path("gate").exists():
        time.sleep(0.004)
"""
IMPORT = f"{PASS}\npass_gate()\ndef Job(task, ctx): pass\n"
MAKE = f"""{PASS}
class Job:
    def __init__(self, ctx): pass_gate()
    def __call__(self, task, ctx): pass
"""
INPUT = f"""{PASS}
class Job:
    def load(self, task): pass_gate()
    def __call__(self, task, ctx): pass
"""
WORK = f"{PASS}\ndef Job(task, ctx): pass_gate()\n"


@pytest.mark.parametrize(
    ("source", "phase", "says"),
    [
        (IMPORT, "loading", "importing and making the job"),
        (MAKE, "making", "importing and making the job"),
        (INPUT, "running", "waiting for the input of its first task"),
    ],
)
def test_what_a_rank_waits_for_is_told_once_with_its_log(
    box: Box, source: str, phase: str, says: str
) -> None:
    box.write("job.py", source)
    run = box.start("run", "job.py:Job", "--lines", box.lines(1), "--spool", "S", "--ranks", "1")
    wait_until((box / "reached").exists)
    view = open_view(box / "S")

    def is_told() -> bool:
        beat = view.refresh().heartbeat("rank-0000.a00")
        return beat is not None and beat.state == phase

    wait_until(is_told)
    waits = Waits()
    assert waits.news(view, 0, 0.0) == []
    assert waits.news(view, 0, UNUSUAL_S - 1) == []
    [text] = waits.news(view, 0, UNUSUAL_S)
    assert text.startswith(f"1 rank has done nothing for 60 s, {says}"), text
    assert text.endswith("S/logs/rank-0000.a00.log")
    assert waits.news(view, 0, 10 * UNUSUAL_S) == []
    (box / "gate").touch()
    run.wait(0)


def test_a_first_task_that_takes_long_is_no_wait(box: Box) -> None:
    box.write("job.py", WORK)
    run = box.start("run", "job.py:Job", "--lines", box.lines(1), "--spool", "S", "--ranks", "1")
    view_of = None

    def is_at_work() -> bool:
        nonlocal view_of
        if not (box / "reached").exists():
            return False
        view_of = open_view(box / "S")
        beat = view_of.heartbeat("rank-0000.a00")
        return beat is not None and beat.task is not None

    wait_until(is_at_work)
    assert view_of is not None
    waits = Waits()
    assert waits.news(view_of, 0, 0.0) == []
    assert waits.news(view_of, 0, UNUSUAL_S) == []
    (box / "gate").touch()
    run.wait(0)


def test_several_ranks_that_wait_for_the_same_are_told_together(box: Box) -> None:
    box.write("job.py", IMPORT)
    run = box.start("run", "job.py:Job", "--lines", box.lines(2), "--spool", "S", "--ranks", "2")
    layout = Layout(box / "S")
    wait_until(layout.journal("rank-0001.a00").exists)
    wait_until(layout.journal("rank-0000.a00").exists)
    view = open_view(box / "S")
    waits = Waits()
    waits.news(view, 0, 0.0)
    [text] = waits.news(view, 0, UNUSUAL_S)
    assert text.startswith("2 ranks have done nothing for 60 s")
    (box / "gate").touch()
    run.wait(0)


def test_a_process_that_never_comes_to_its_first_line_is_told(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): pass\n")
    box.run("run", "job.py:Job", "--lines", box.lines(1), "--spool", "S", "--ranks", "1")
    # As it stands before the worker has linked its journal.
    layout = Layout(box / "S")
    for path in (
        layout.journal("rank-0000.a00"),
        layout.heartbeat("rank-0000.a00"),
        layout.manifest(orphans_name("rank-0000.a00")),
    ):
        path.unlink()
    view = open_view(box / "S")
    waits = Waits()
    waits.news(view, 0, 0.0)
    [text] = waits.news(view, 0, UNUSUAL_S)
    assert "starting: its process has not come to its first line" in text
