"""What people see of how far a run is."""

import re
import sys

import pytest
from helpers import GPUSPOOL, JOBS, Box
from terminal import Terminal

from gpuspool.orchestrator.text import progress
from gpuspool.orchestrator.text.progress import BAR_CELLS, Lines, SoFar, headline, took


def so_far(**changed: object) -> SoFar:
    told = {
        "total": 100,
        "complete": 25,
        "failed": 70,
        "tasks_per_s": 2.0,
        "left_s": 2.5,
        "note": "2 ranks",
    }
    return SoFar(**{**told, **changed})  # type: ignore[arg-type]


def test_a_line_counts_failed_tasks_too(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().update(so_far())
    line = "gpuspool: 25 complete, 70 failed of 100 tasks (95 %, 2.0 tasks/s, 0:02 left) 2 ranks\n"
    assert capsys.readouterr().err == line


def test_what_is_not_known_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().update(so_far(complete=0, failed=0, tasks_per_s=None, left_s=None))
    assert "of 100 tasks (0 %) 2 ranks" in capsys.readouterr().err


def test_where_no_task_is_left_no_time_is(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().update(so_far(complete=30, tasks_per_s=None, left_s=0.0))
    assert "of 100 tasks (100 %) 2 ranks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rate", "text"), [(1500.0, "1,500 tasks/s"), (0.5, "30.0 tasks/min"), (0.001, "3.6 tasks/h")]
)
def test_slow_tasks_have_a_rate_that_can_be_read(rate: float, text: str) -> None:
    assert so_far(tasks_per_s=rate).rate == text


def test_100_percent_means_that_nothing_is_left() -> None:
    assert so_far(total=100_000, complete=99_999, failed=0).percent == "99 %"
    assert so_far(complete=30).percent == "100 %"
    # Nothing is to be done.
    assert so_far(total=0, complete=0, failed=0).percent == "100 %"


def test_the_bar_is_full_only_where_no_task_is_left() -> None:
    assert headline(so_far(), 80) == "█" * 19 + "░" + "  95 of 100  70 failed"
    assert headline(so_far(complete=29), 80).count("░") == 1
    whole = headline(so_far(complete=30, took_s=12.34), 80)
    assert whole == "█" * BAR_CELLS + "  100 of 100  100 %  in 12.3 s  70 failed"


@pytest.mark.parametrize("columns", range(1, 60))
def test_the_bar_leaves_out_what_does_not_fit(columns: int) -> None:
    line = headline(so_far(took_s=7384.0), columns)
    assert len(line) <= columns
    assert line.rpartition("░  ")[2].startswith("95 of 100"[:columns])


def test_a_percentage_is_the_part_of_the_tasks_whatever_they_cost(box: Box) -> None:
    """One of four tasks is done, and that one is nearly all of the work: a quarter is finished."""
    payloads = [("a", 1000.0), ("wait", 1.0), ("wait", 1.0), ("wait", 1.0)]
    tasks = box.tasks([{"payload": payload, "cost": cost} for payload, cost in payloads])
    command = [GPUSPOOL, "run", f"{JOBS}/gates.py:gated", "--tasks", tasks, "--spool", "spool-S"]
    terminal = Terminal(box, *command, "--arg", f"gate={box / 'gate'}", "--ranks", "1")
    lines = terminal.wait_for("1 complete", "1 of 4")
    assert any(line.startswith("█" * 5 + "░" * 15 + "  1 of 4") for line in lines), lines
    assert any("  25 % after" in line for line in lines), lines
    assert "25 %" in box.run("list").out
    (box / "gate").touch()
    terminal.wait(0)


# Runs a command with a terminal for its stdin, stdout and stderr, and prints what it shows there.
ON_A_TERMINAL = """
import os, pty, sys
os.environ.update(COLUMNS="200", TERM="xterm")
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""


def test_a_table_ends_with_all_tasks_and_the_time_that_the_last_line_says(box: Box) -> None:
    script = box.write("terminal.py", ON_A_TERMINAL)
    command = [GPUSPOOL, "run", f"{JOBS}/plain.py:double", "--lines", box.lines(10)]
    shown = box.run(script, *command, "--ranks", "2", program=(sys.executable,)).out
    last = re.search(r"10 of 10 tasks complete, in ([\d.]+ s)\.", shown)
    assert last is not None, shown
    assert f"10 of 10  100 %  in {last[1]}" in shown


def test_a_table_shows_how_many_tasks_a_second_and_the_time_left(box: Box) -> None:
    script = box.write("terminal.py", ON_A_TERMINAL)
    box.write("job.py", "import time\ndef Job(task, ctx): time.sleep(0.25)\n")
    command = [GPUSPOOL, "run", "job.py:Job", "--lines", box.lines(16), "--ranks", "1"]
    shown = box.run(script, *command, program=(sys.executable,)).out
    assert re.search(r"[\d.]+ tasks/(s|min)", shown), shown
    assert re.search(r"0:0\d left", shown), shown
    assert "0 of 0" not in shown


def test_the_rate_of_processes_that_do_not_last_tells_that_each_loads_the_job(box: Box) -> None:
    script = box.write("terminal.py", ON_A_TERMINAL)
    box.write(
        "job.py",
        "import time\nclass Job:\n    recycle = 1\n    def __init__(self, ctx): time.sleep(0.5)\n"
        "    def __call__(self, task, ctx): time.sleep(0.01)\n",
    )
    command = [GPUSPOOL, "run", "job.py:Job", "--lines", box.lines(6), "--ranks", "1"]
    shown = box.run(script, *command, program=(sys.executable,)).out
    per_s = {"s": 1, "min": 60, "h": 3600}
    found = re.findall(r"([\d.,]+) tasks/(s|min|h)", shown)
    rates = [float(number.replace(",", "")) / per_s[unit] for number, unit in found]
    # Five tasks are done with four loads between them; of the tasks alone it would be nearly 100.
    assert rates[-1] <= 2.5, rates


def test_long_times_are_told_as_hours() -> None:
    assert [took(12.34), took(99.96), took(7384.0)] == ["12.3 s", "1:40", "2:03:04"]
    assert progress.duration(59.6) == "1:00"
