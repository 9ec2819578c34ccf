"""--dry-run says what the same command would do without it, or be refused for; it writes none."""

from pathlib import Path

import pytest
from helpers import JOBS, Box, start_gated, tree, wait_until, waiting

DOUBLE = f"{JOBS}/plain.py:double"


def refused_alike(box: Box, *command: str | Path, code: int = 2) -> str:
    """What both the dry run and the real one say; nothing is written by either."""
    before = tree(box.home)
    dry = box.run(*command, "--dry-run", code=code).err
    assert tree(box.home) == before
    real = box.run(*command, code=code).err
    assert dry == real
    return real


def test_of_a_new_run_it_shows_keys_outputs_and_the_first_command(box: Box) -> None:
    for name in ("b", "a", "c", "d"):
        box.write(f"in/{name} 1.txt", name * 10)
    command = ["run", "in/*", "--out", "made", "--ranks", "2"]
    words = ["--", "cp", "{input}", "{output}.copy"]
    said = box.run(*command, "--dry-run", *words).err
    assert f"would make {box / 'spool-cp'} for 4 tasks on 2 ranks" in said
    assert f"keys: a 1.txt, b 1.txt, c 1.txt, … (paths below {box / 'in'})" in said
    first = f"first command: cp '{box.home}/in/a 1.txt' '{box.home}/made/a 1.txt.copy'"
    assert first in said
    assert sorted(path.name for path in box.home.iterdir()) == ["in"]
    box.run(*command, *words)
    assert (box / "made" / "a 1.txt.copy").read_text() == "a" * 10


def test_costs_are_told_in_words(box: Box) -> None:
    box.write("in/a", "12345")
    box.write("in/b", "1")
    assert (
        "1 task, 5 bytes of input"
        in box.run("run", DOUBLE, "in/*", "--ranks", "2", "--dry-run").err
    )
    said = box.run("run", DOUBLE, "in/a", "--dry-run").err
    assert "rank 0 on cpu: 1 task, 5 bytes of input" in said
    tasks = box.tasks([{"payload": 1, "cost": 2}, {"payload": 1, "cost": 5}])
    said = box.run("run", DOUBLE, "--tasks", tasks, "--dry-run").err
    assert "2 tasks, whose costs add up to 7" in said
    said = box.run("run", DOUBLE, "--lines", box.lines(3), "--dry-run").err
    assert "rank 0 on cpu: 3 tasks\n" in said


def test_what_is_refused_before_a_spool_is_made(box: Box) -> None:
    inputs = ["--lines", box.lines(3)]
    box.write("full/file", "x")
    assert "is not empty" in refused_alike(box, "run", DOUBLE, *inputs, "--out", "full")
    assert "is no spool" in refused_alike(box, "run", DOUBLE, *inputs, "--spool", "full")
    assert "is not a spool" in refused_alike(
        box, "run", DOUBLE, *inputs, "--spool", "full", "--fresh"
    )
    assert "cannot be made" in refused_alike(box, "run", DOUBLE, *inputs, "--spool", "full/file/S")
    assert "ranks" in refused_alike(box, "run", DOUBLE, *inputs, "--ranks", "0")


@pytest.mark.parametrize("change", ["job", "arg", "inputs", "size", "seed"])
def test_what_a_run_that_differs_is_refused_for(box: Box, change: str) -> None:
    job = box.job("plain.py")
    box.write("in/a", "1")
    command = ["run", "plain.py:describe", "in/*", "--spool", "S"]
    box.run(*command)
    if change == "job":
        job.write_text(job.read_text() + "# changed\n")
    elif change == "arg":
        command += ["--arg", "x=1"]
    elif change == "inputs":
        box.write("in/b", "2")
    elif change == "size":
        box.write("in/a", "12")
    else:
        command += ["--seed", "4"]
    assert "S" in refused_alike(box, *command)


def test_what_would_be_added(box: Box) -> None:
    for name in ("a", "b"):
        box.write(f"in/{name}", "1")
    command = ["run", f"{JOBS}/plain.py:describe", "in/*", "--spool", "S"]
    box.run(*command)
    box.write("in/c", "1")
    said = box.run(*command, "--add", "--dry-run").err
    assert "2 complete, 0 failed, 0 to be done" in said
    assert "1 new task would be added: c" in said
    assert len(box.results("S")) == 2


def test_of_a_run_that_goes_on_it_shows_the_numbers_that_tasks_have_there(box: Box) -> None:
    words = ("--spool", "S", "--", "echo", "{input}", "{key}", "{index}")
    box.run("run", "--lines", box.write("first", "a\nb\n"), *words)
    said = box.run("run", "--lines", box.write("other", "b\na\n"), "--dry-run", *words).err
    assert "first command: echo a t0 0" in said


def test_outputs_that_are_gone_and_a_live_orchestrator_are_found(box: Box) -> None:
    command: list[str | Path] = ["run", f"{JOBS}/plain.py:write", "--lines", box.lines(2)]
    command += ["--spool", "T", "--out", "made"]
    box.run(*command)
    (box / "made").rename(box / "moved")
    assert "which does not exist" in refused_alike(box, *command)
    refused_alike(box, *command, "--out-moved-to", "nowhere")
    said = box.run(*command, "--out-moved-to", "moved", "--dry-run").err
    assert f"outputs: {box / 'moved'}/" in said
    # A folder with the mark of the run is as good under --out.
    again = [*command[:-1], "moved"]
    assert f"outputs: {box / 'moved'}/" in box.run(*again, "--dry-run").err
    box.run(*again)
    run, gated = start_gated(box, ["wait"])
    wait_until(lambda: waiting(box))
    assert "beside 1 other start" in box.run(*gated, "--dry-run").err
    assert "may still be running" in box.run(*gated, "--fresh", "--dry-run", code=6).err
    box.write("gate", "")
    run.wait(0)
