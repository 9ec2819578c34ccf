"""The live view of a run: what `run` and `status --watch` draw on a terminal, and in a notebook."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import (
    GPUSPOOL,
    JOBS,
    PATIENCE_S,
    Box,
    half_done,
    identities,
    journal_lines,
    kill,
    story,
    wait_until,
    waiting,
)
from spooling import A0, admit, begin, intend, make_spool, view_of
from stages import STAGES, stage
from terminal import Glass, Terminal, cells
from test_status import beat

from gpuspool.orchestrator.api import watching
from gpuspool.orchestrator.api.live import LiveTable
from gpuspool.orchestrator.api.report import Report
from gpuspool.orchestrator.report.picture import picture
from gpuspool.orchestrator.report.status import status
from gpuspool.orchestrator.text.notebook import as_html
from gpuspool.orchestrator.text.progress import SoFar
from gpuspool.orchestrator.text.screen import Line, _Frame, size_of
from gpuspool.spool.identity import myself
from gpuspool.spool.parents import being_parent

# What stands in every table of ranks, and once in each.
RANKS = re.compile(r"^rank  ", re.MULTILINE)

SIZES = [(80, 24), (200, 50), (30, 10), (80, 2), (12, 1)]


def gated(box: Box, payloads: list[Any], *more: str) -> list[str]:
    """The command of a run in spool S that waits for its gate."""
    tasks = box.tasks(payloads)
    command = [GPUSPOOL, "run", f"{JOBS}/gates.py:gated", "--tasks", tasks, "--spool", "S"]
    return [*command, "--arg", f"gate={box / 'gate'}", *more]


def open_gate(box: Box) -> None:
    (box / "gate").touch()


def tables_in(lines: list[str]) -> int:
    """How many tables of ranks stand in these lines."""
    return len(RANKS.findall("\n".join(line.lstrip() for line in lines)))


def frames(terminal: Terminal) -> int:
    """How many tables were drawn so far."""
    terminal.look()
    return len(re.findall(r"(?:^|[\nKJHm])(?=rank  )", terminal.text))


def wait_for_frames(terminal: Terminal, count: int) -> None:
    """Wait until so many more tables were drawn."""
    before = frames(terminal)
    wait_until(lambda: frames(terminal) >= before + count)


# The layout, of spools in all states.


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("ranks", [2, pytest.param(8, marks=pytest.mark.slow), 64])
@pytest.mark.parametrize("how", STAGES)
def test_a_table_fits_and_is_replaced_whatever_the_run_is_at(
    tmp_path: Path, how: str, ranks: int, size: tuple[int, int]
) -> None:
    """Three frames leave what one leaves: nothing scrolls off, no line is wider, none is left."""
    now = status(view_of(stage(tmp_path / "S", ranks, how)))
    glass, frame = Glass(*size), _Frame()
    for is_last in (False, False, True):
        rows = picture(now, size[0], max(1, size[1] - 1))
        glass.feed(frame.draw(rows, [], size, is_last=is_last).replace("\n", "\r\n"))
        if not is_last:
            assert not glass.history
            assert glass.shown == [row.text for row in rows]
    assert all(cells(row.text) <= size[0] for row in rows)
    assert len(rows) < max(2, size[1])
    assert [*glass.history, *glass.shown] == [row.text for row in rows]


def test_with_few_lines_the_rest_of_the_ranks_is_counted(tmp_path: Path) -> None:
    now = status(view_of(stage(tmp_path / "S", 64, "running")))
    rows = [row.text for row in picture(now, 80, 23)]
    assert len(rows) <= 23
    assert any(re.search(r"… and \d+ more", row) for row in rows), rows


def test_only_a_rank_in_trouble_has_a_colour(tmp_path: Path) -> None:
    now = status(view_of(stage(tmp_path / "S", 8, "trouble")))
    marked = [row.text for row in picture(now, 80, 40) if row.is_trouble]
    assert [row.split()[0] for row in marked] == ["1"]
    now = status(view_of(stage(tmp_path / "T", 8, "running")))
    assert not any(row.is_trouble for row in picture(now, 80, 40))


@pytest.mark.parametrize("how", STAGES)
def test_the_time_left_is_told_only_while_the_run_goes_on(tmp_path: Path, how: str) -> None:
    """A start that was drained knows how long the rest would take, and nobody waits for that."""
    table = LiveTable(view_of(stage(tmp_path / "S", 2, how)))
    so_far = SoFar(20, 8, 0, tasks_per_s=2.0, left_s=6.0, note="", took_s=4.0)
    drawn = "\n".join(line.text for line in table.look(so_far)(80, 24))
    told = ", 0:06 left, 2.0 tasks/s" in drawn
    assert told is (how in ("running", "trouble"))
    assert ("left" in drawn) is told
    assert ("tasks/s" in drawn) is told


def test_a_task_that_may_hang_is_in_trouble_in_the_table_of_the_run_too(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "S", 9)
    admit(layout, 0, myself())
    intend(layout, A0)
    begin(layout, A0)
    beat(layout, A0, task=5, task_since=time.time() - 173, in_hand=1)
    so_far = SoFar(9, 5, 0, tasks_per_s=2.0, left_s=6.0, note="", longest_s=4.0)
    with being_parent(layout, 0):
        lines = LiveTable(view_of(layout)).look(so_far)(80, 24)
    [text] = [line.text for line in lines if line.is_trouble]
    assert text.endswith("  43 times any other task")


def test_a_name_that_looks_like_trouble_has_no_colour(tmp_path: Path) -> None:
    now = status(view_of(stage(tmp_path / "S", 2, "trouble")))
    for row in now["ranks"]:
        row["key"] = "1  lost"
    assert sum(row.is_trouble for row in picture(now, 80, 40)) == 1


def test_a_narrower_window_gets_a_table_without_a_rest_of_the_old_one() -> None:
    """As the terminal wraps what has become too long, all of its lines are erased."""
    frame = _Frame()
    frame.draw([Line("a" * 70), Line("b")], [], (80, 24), is_last=False)
    glass = Glass(40, 10)
    glass.feed("before\r\n" + "a" * 40 + "\r\n" + "a" * 30 + "\r\nb\r\n")
    glass.feed(frame.draw([Line("c")], [], (40, 10), is_last=False))
    assert glass.shown == ["before", "c"]


def test_messages_scroll_above_the_table() -> None:
    size = 20, 4
    glass, frame = Glass(*size), _Frame()
    for number in range(5):
        said = [f"said {number}"] if number else []
        rows = [Line("one"), Line(f"two {number}")]
        glass.feed(frame.draw(rows, said, size, is_last=False).replace("\n", "\r\n"))
    assert glass.history == ["said 1", "said 2", "said 3"]
    assert glass.shown == ["said 4", "one", "two 4"]


def test_a_message_that_is_too_wide_goes_on_in_the_next_line() -> None:
    size = 20, 8
    glass, frame = Glass(*size), _Frame()
    said = ["gpuspool: 全角文字 and other words, to be read to the end", "\tprinted by the job"]
    for above in ([], said):
        drawn = frame.draw([Line("one"), Line("two")], above, size, is_last=False)
        glass.feed(drawn.replace("\n", "\r\n"))
    assert [*glass.history, *glass.shown] == [
        "gpuspool: 全角文字",
        "  and other words,",
        "  to be read to the",
        "  end",
        "        printed by",
        "the job",
        "one",
        "two",
    ]


def test_what_the_terminal_says_of_its_size_counts_more_than_an_old_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "not a number")
    ours, theirs = os.openpty()
    try:
        assert size_of(theirs) == (200, 24)
        monkeypatch.delenv("COLUMNS")
        assert size_of(theirs) == (80, 24)
        os.environ["COLUMNS"] = "0"
        assert size_of(theirs) == (80, 24)
    finally:
        os.close(ours)
        os.close(theirs)


# A run on a terminal.


def test_a_run_shows_its_ranks_and_leaves_one_table_and_its_last_lines(box: Box) -> None:
    terminal = Terminal(box, *gated(box, ["wait", "wait", *"abcd"], "--ranks", "2"))
    terminal.wait_for("2 running", "rank  ")
    wait_for_frames(terminal, 3)
    assert tables_in(terminal.everything) == 1
    open_gate(box)
    terminal.wait(0)
    lines = terminal.everything
    assert tables_in(lines) == 1, lines
    assert any("6 of 6" in line and "100 %" in line for line in lines)
    assert not [line for line in lines if " left" in line]
    assert "complete" in "\n".join(lines)
    assert "running" not in "\n".join(line for line in lines if RANKS.match(line) is None).replace(
        "0 running", ""
    )
    assert lines[-1].startswith("gpuspool: 6 of 6 tasks complete, in ")


def test_a_message_stands_above_the_table(box: Box) -> None:
    terminal = Terminal(box, *gated(box, ["wait", "a", "b"], "--ranks", "1"))
    terminal.wait_for("rank  ")
    wait_until(lambda: waiting(box))
    ((attempt, pid),) = identities(box / "S").items()
    kill(pid)
    shown = terminal.wait_until(lambda lines: f"{attempt} ended" in "".join(lines))
    shown = terminal.wait_for("rank  ")
    text = f"{attempt} ended: killed by SIGKILL (t0 in hand); what it had not finished is given out"
    assert f"gpuspool: {text} again" in " ".join(line.strip() for line in shown), shown
    said = next(at for at, line in enumerate(shown) if f"{attempt} ended" in line)
    table = next(at for at, line in enumerate(shown) if line.lstrip().startswith("rank  "))
    assert said < table
    open_gate(box)
    terminal.wait(0)
    assert tables_in(terminal.everything) == 1


def test_the_last_table_of_a_drained_run_shows_that_it_stopped(box: Box) -> None:
    terminal = Terminal(box, *gated(box, ["wait", "a", "b"], "--ranks", "1"))
    terminal.wait_for("1 running", "rank  ")
    terminal.press("\x03")
    wait_until(lambda: '"draining"' in story(box / "S"))
    open_gate(box)
    terminal.wait()
    lines = terminal.everything
    assert tables_in(lines) == 1
    said = " ".join(line.strip() for line in lines)
    assert "SIGINT received: workers finish the tasks in hand" in said
    assert "a second Ctrl-C kills them at once, and the same command goes on later" in said
    assert any(re.match(r"\S+:gated  stopped \(drained\)  \d+ % after ", line) for line in lines)
    assert [line.split()[:2] for line in lines if re.match(r" *0 +\w", line)] == [["0", "stopped"]]


@pytest.mark.parametrize("verb", ["resume", "join"])
def test_whatever_goes_on_with_a_run_shows_the_same(box: Box, verb: str) -> None:
    half_done(box)
    terminal = Terminal(box, GPUSPOOL, verb, "S", "--ranks", "2")
    terminal.wait(0)
    lines = terminal.everything
    assert tables_in(lines) == 1
    assert any("40 of 40" in line for line in lines)


def test_each_frame_is_one_write(box: Box) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; scripts/test_packages.sh does it")
    trace = box / "trace"
    strace = ["strace", "-f", "-qq", "-s", "40000", "-e", "trace=write", "-o", str(trace)]
    command = gated(box, ["wait", *"abcd"], "--ranks", "2")
    terminal = Terminal(box, *strace, *command, columns=120, lines=40)
    wait_for_frames(terminal, 4)
    open_gate(box)
    terminal.wait(0)
    writes = [line for line in trace.read_text().splitlines() if "write(2, " in line]
    drawn = [line for line in writes if r"\33[" in line]
    assert len(drawn) >= 4
    # Each write that draws anything draws a whole table, from its first line to its last rank.
    parts = [line for line in drawn if " of 5" not in line or "rank  " not in line]
    assert not parts, parts


def test_a_terminal_that_takes_nothing_holds_up_nobody(box: Box) -> None:
    """Ctrl-S is pressed in the middle of a run, which then runs to its end all the same."""
    terminal = Terminal(box, *gated(box, ["wait", *"abcd"], "--ranks", "2"))
    terminal.wait_for("4 of 5")
    terminal.press("\x13")
    (line,) = (box / "gate.waiting").read_text().splitlines()
    pid = int(line.split()[1])
    kill(pid)
    wait_until(lambda: "attempt_closed" in story(box / "S"))
    open_gate(box)
    wait_until(lambda: (box / "S" / "summary.json").exists())
    wait_until(lambda: list((box / "S" / "parents").glob("*.end.json")))
    assert terminal.process.poll() is None, "its last line waits for the terminal"
    terminal.press("\x11")
    terminal.wait(0)
    assert tables_in(terminal.everything) == 1
    assert len(journal_lines(box / "S")) == 5


def test_a_terminal_that_nobody_reads_holds_up_nobody(box: Box) -> None:
    """Its buffer is full of what a shell job printed."""
    noise = "head -c 300000 /dev/zero | tr '\\0' x >&2 & "
    command = " ".join(gated(box, ["wait", *"abcd"], "--ranks", "2"))
    terminal = Terminal(box, "bash", "-c", f"{noise} exec {command}")
    wait_until(lambda: waiting(box))
    open_gate(box)
    wait_until(lambda: list((box / "S" / "parents").glob("*.end.json")))
    terminal.wait(0)
    assert len(journal_lines(box / "S")) == 5


def test_a_terminal_that_goes_away_drains_the_run_as_before(box: Box) -> None:
    terminal = Terminal(box, *gated(box, ["wait", *"abcd"], "--ranks", "2"))
    terminal.wait_for("4 of 5")
    terminal.hang_up()
    wait_until(lambda: "SIGHUP received" in story(box / "S"))
    open_gate(box)
    assert terminal.process.wait(PATIENCE_S) in (0, 75)


def test_a_run_under_nohup_outlives_its_terminal(box: Box) -> None:
    """nohup leaves stderr alone where that is no terminal of its own; here it is one, by force."""
    command = " ".join(gated(box, ["wait", *"abcd"], "--ranks", "2"))
    terminal = Terminal(box, "bash", "-c", f"trap '' HUP; exec {command}")
    terminal.wait_for("4 of 5")
    terminal.hang_up()
    open_gate(box)
    assert terminal.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(("columns", "lines"), [(30, 10), (0, 0), (20, 3), (300, 80)])
def test_a_run_fits_a_terminal_of_any_size(box: Box, columns: int, lines: int) -> None:
    command = gated(box, ["wait", *"abcd"], "--ranks", "4")
    terminal = Terminal(box, *command, columns=columns, lines=lines)
    terminal.wait_for("4 of 5")
    before = len(terminal.glass.history)
    drawn = terminal.count("4 of 5")
    wait_until(lambda: terminal.count("4 of 5") > drawn + 2)
    assert len(terminal.glass.history) == before, "what is drawn again appends nothing"
    open_gate(box)
    terminal.wait(0)


def test_a_window_that_is_resized_has_one_table_that_fits(box: Box) -> None:
    terminal = Terminal(box, *gated(box, ["wait", *"abcd"], "--ranks", "8"), columns=100, lines=40)
    terminal.wait_for("4 of 5", "rank  ")
    for columns, lines in ((60, 12), (90, 30)):
        # What a window that was made anew would show from here on.
        terminal.glass = Glass(columns, lines)
        terminal.resize(columns, lines)
        terminal.wait_for("rank  ", "4 of 5")
        wait_for_frames(terminal, 2)
        shown = terminal.glass.shown
        assert tables_in(shown) == 1
        assert not terminal.glass.history
        assert len(shown) < lines
        assert all(cells(line) <= columns for line in shown)
    open_gate(box)
    terminal.wait(0)


@pytest.mark.parametrize("term", ["dumb", "", None])
def test_a_terminal_without_a_cursor_gets_lines(box: Box, term: str | None) -> None:
    terminal = Terminal(box, *gated(box, ["a", "b"], "--ranks", "1"), env={"TERM": term})
    terminal.wait(0)
    assert "\x1b" not in terminal.text
    assert terminal.glass.shown[-1].startswith("gpuspool: 2 of 2 tasks complete")


@pytest.mark.parametrize(("no_color", "has_colour"), [(None, True), ("1", False)])
def test_trouble_has_a_colour_unless_that_is_not_wanted(
    box: Box, no_color: str | None, has_colour: bool
) -> None:
    stage(box / "S", 4, "trouble")
    terminal = Terminal(box, GPUSPOOL, "status", "--watch", "S", env={"NO_COLOR": no_color})
    terminal.wait_for("rank  ", "lost")
    assert ("\x1b[31m" in terminal.text) is has_colour
    terminal.kill()


def test_a_run_that_was_stopped_draws_below_what_came_meanwhile(box: Box) -> None:
    terminal = Terminal(box, *gated(box, ["wait", *"abcd"], "--ranks", "2"))
    terminal.wait_for("4 of 5", "rank  ")
    terminal.signal(signal.SIGSTOP)
    wait_until(lambda: _state_of(terminal.process.pid) == "T")
    terminal.look()
    # A shell prints its prompt, and somebody types a command.
    terminal.glass.feed("\r\n$ echo hello\r\nhello\r\n")
    terminal.signal(signal.SIGCONT)
    wait_for_frames(terminal, 3)
    lines = terminal.everything
    assert "hello" in lines
    assert tables_in(lines[lines.index("hello") :]) == 1
    open_gate(box)
    terminal.wait(0)
    assert "hello" in terminal.everything


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_in_the_background_nothing_is_drawn(box: Box) -> None:
    """Also where `stty tostop` would stop whoever prints from there; and in front it is drawn."""
    command = " ".join(gated(box, ["wait", *"abcd"], "--ranks", "2"))
    script = f"set -m; stty tostop; {command} & while [ ! -e front ]; do :; done; fg"
    terminal = Terminal(box, "bash", "-c", script)
    wait_until(lambda: waiting(box) and "devices" in story(box / "S"))
    terminal.wait_for("gpuspool: 5 tasks on 2 ranks")
    assert "\x1b" not in terminal.text
    (box / "front").touch()
    terminal.wait_for("4 of 5", "rank  ")
    open_gate(box)
    terminal.wait(0)


def test_a_killed_run_leaves_the_terminal_as_it_was(box: Box) -> None:
    terminal = Terminal(box, *gated(box, ["wait", *"abcd"], "--ranks", "2"))
    terminal.wait_for("4 of 5")
    terminal.kill()
    # The cursor was never hidden, no other screen was used, no mode was set.
    assert set(re.findall(r"\x1b\[[?\d;]*([A-Za-z])", terminal.text)) <= set("AKJm")


def test_what_a_caller_prints_stands_above_the_table_and_a_pipe_gets_its_own(box: Box) -> None:
    box.write("job.py", "import time\ndef f(task, ctx): time.sleep(0.5)\n")
    script = box.write(
        "caller.py",
        "import sys, threading, time, gpuspool\n"
        "def speak():\n"
        "    for n in range(8):\n"
        "        time.sleep(0.3); print('aside', n, file=sys.stderr); print('to stdout', n)\n"
        "thread = threading.Thread(target=speak)\nthread.start()\n"
        "gpuspool.run('job.py:f', items=list(range(8)), ranks=2, spool='S')\n"
        "thread.join()\nprint('after', sys.stderr is sys.__stderr__, file=sys.stderr)\n",
    )
    terminal = Terminal(box, sys.executable, script, stdout=box / "out")
    terminal.wait(0)
    lines = terminal.everything
    assert [line for line in lines if line.startswith("aside")] == [f"aside {n}" for n in range(8)]
    assert lines[-1] == "after True"
    assert tables_in(lines) == 1
    assert (box / "out").read_text() == "".join(f"to stdout {n}\n" for n in range(8))


# Watching.


def watch(box: Box, *words: str, **settings: Any) -> Terminal:
    return Terminal(box, GPUSPOOL, "status", "--watch", *words, **settings)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50)])
def test_a_watch_appends_nothing_and_ctrl_c_leaves_the_last_table(
    box: Box, columns: int, lines: int
) -> None:
    stage(box / "S", 64, "running")
    terminal = watch(box, "S", columns=columns, lines=lines)
    # The last line of a frame, which may come in parts.
    terminal.wait_for("rank  ", "more", " sum ")
    before = terminal.everything
    assert len(before) < lines
    wait_for_frames(terminal, 2)
    terminal.wait_until(lambda _: len(terminal.everything) == len(before))
    terminal.press("\x03")
    terminal.wait(130)
    assert "Traceback" not in terminal.text
    assert tables_in(terminal.everything) == 1
    # The ^C that the terminal shows has moved nothing.
    assert len(terminal.everything) == len(before)


def test_ctrl_c_ends_the_watch_and_never_the_run(box: Box) -> None:
    started = box.start(*gated(box, ["wait", "a"], "--ranks", "1")[1:])
    wait_until(lambda: waiting(box))
    terminal = watch(box, "S")
    terminal.wait_for("rank  ", "running")
    # Nobody is told to type what they have typed.
    assert "--watch" not in "".join(terminal.look())
    terminal.press("\x03")
    terminal.wait(130)
    open_gate(box)
    started.wait(0)


def test_a_watch_ends_with_the_run_and_leaves_its_last_table(box: Box) -> None:
    started = box.start(*gated(box, ["wait", "a"], "--ranks", "1")[1:])
    wait_until(lambda: waiting(box))
    terminal, other = watch(box, "S"), watch(box, "S", columns=200, lines=50)
    terminal.wait_for("running")
    other.wait_for("running")
    open_gate(box)
    started.wait(0)
    for one in (terminal, other):
        one.wait(0)
        assert tables_in(one.everything) == 1
        assert any("2 complete" in line for line in one.everything)


@pytest.mark.parametrize(
    "script",
    ["timeout 1000 {watch}; echo rc $?", "set -m; stty tostop; {watch} & wait $!; echo rc $?"],
    ids=["timeout", "job"],
)
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_watch_in_the_background_tells_the_state_in_lines(
    box: Box, shell: str, script: str
) -> None:
    started = box.start(*gated(box, ["wait", "a"], "--ranks", "1")[1:])
    wait_until(lambda: waiting(box))
    script = script.format(watch=f"{GPUSPOOL} status --watch S")
    terminal = Terminal(box, shell, "-c", script, columns=200)
    terminal.wait_for("running  ")
    open_gate(box)
    started.wait(0)
    terminal.wait(0)
    # A shell may tell of the end of its job, too.
    first, last, *_ = terminal.everything
    assert first.startswith("running  ")
    assert last.startswith("complete  100 %")
    assert "rc 0" in terminal.everything
    assert "\x1b" not in terminal.text


def test_a_watch_that_comes_from_the_background_draws_its_table_below_the_lines(box: Box) -> None:
    stage(box / "S", 2, "running")
    watching = f"{GPUSPOOL} status --watch S"
    script = f"set -m; {watching} & while [ ! -e front ]; do :; done; fg"
    terminal = Terminal(box, "bash", "-c", script, columns=200)
    terminal.wait_for("running  40 %")
    assert tables_in(terminal.everything) == 0
    (box / "front").touch()
    lines = terminal.wait_for("rank  ", " sum ")
    assert lines[0].startswith("running  40 %")
    terminal.press("\x03")
    terminal.wait()
    assert tables_in(terminal.everything) == 1


def test_a_watch_waits_for_a_spool_that_is_not_there_yet(box: Box) -> None:
    terminal, unnamed = watch(box, "spool-S"), watch(box)
    terminal.wait_for("spool-S is not there yet")
    unnamed.wait_for("no ./spool-* here yet")
    command = gated(box, ["wait", "a"], "--ranks", "1")
    command[command.index("S")] = "spool-S"
    started = box.start(*command[1:])
    for one in (terminal, unnamed):
        one.wait_for("rank  ")
    open_gate(box)
    started.wait(0)
    for one in (terminal, unnamed):
        one.wait(0)
        assert any("2 complete" in line for line in one.everything)


def test_a_watch_waits_for_a_planned_run_to_be_started(box: Box) -> None:
    command = gated(box, ["a", "b"], "--ranks", "1")
    box.run(*command[1:], "--time-limit", "0", code=75)
    for name in ("parents", "attempts", "events", "control", "beats"):
        for path in (box / "S" / name).iterdir():
            path.unlink()
    terminal = watch(box, "S")
    terminal.wait_for("0 complete")
    wait_until(lambda: terminal.count("0 complete") > 1)
    box.run("resume", "S")
    terminal.wait(0)


def test_what_is_there_and_is_no_spool_is_refused_at_once(box: Box) -> None:
    (box / "folder").mkdir()
    box.write("file", "")
    for name in ("folder", "file"):
        assert "is no" in box.run("status", "--watch", name, code=2).err


def test_a_spool_that_is_made_anew_is_told_and_watched_on(box: Box) -> None:
    command = gated(box, ["wait", "a"], "--ranks", "1")
    first = box.start(*command[1:])
    wait_until(lambda: waiting(box))
    terminal = watch(box, "S", columns=200)
    terminal.wait_for("of 2", "rank  ")
    first.signal(signal.SIGKILL)
    box.kill_all(terminal.process.pid)
    (box / "gate.waiting").unlink()
    again = box.start(*gated(box, ["wait", *"abcd"], "--ranks", "1", "--fresh")[1:])
    wait_until(lambda: waiting(box))
    terminal.wait_for("of 5", "another run is at S now")
    open_gate(box)
    again.wait(0)
    terminal.wait(0)
    assert "Traceback" not in terminal.text


def test_an_empty_folder_in_the_place_of_a_spool_is_no_run(box: Box) -> None:
    """As where a file system was unmounted. Once it is back the watch goes on."""
    stage(box / "S", 2, "running")
    terminal = watch(box, "S")
    terminal.wait_for("rank  ")
    os.rename(box / "S", box / "T")
    (box / "S").mkdir()
    terminal.wait_for("S is not there any more")
    os.rename(box / "T", box / "S")
    wait_for_frames(terminal, 1)
    assert terminal.process.poll() is None
    terminal.kill()
    assert "another run" not in "".join(terminal.everything)


def test_a_spool_that_is_moved_away_is_told(box: Box) -> None:
    stage(box / "S", 2, "running")
    terminal = watch(box, "S")
    terminal.wait_for("rank  ")
    os.rename(box / "S", box / "T")
    terminal.wait_for("S is not there any more")
    os.rename(box / "T", box / "S")
    wait_for_frames(terminal, 1)
    shutil.rmtree(box / "S")
    terminal.wait_until(lambda lines: "".join(lines).count("not there any more") == 2)
    terminal.kill()
    assert "Traceback" not in terminal.text


def test_off_a_terminal_a_watch_prints_a_line_when_the_state_changes(box: Box) -> None:
    started = box.start(*gated(box, ["wait", "a"], "--ranks", "1")[1:])
    wait_until(lambda: waiting(box))
    watching = box.start("status", "--watch", "S")
    out = box.home.parent / f"{box.home.name}-cli" / "1.out"
    wait_until(lambda: "running" in out.read_text())
    open_gate(box)
    started.wait(0)
    lines = watching.wait(0).out.splitlines()
    assert len(lines) <= 2, lines
    assert "complete" in lines[-1]
    assert "\x1b" not in "".join(lines)


def test_with_json_a_watch_prints_one_object_a_look(box: Box) -> None:
    started = box.start(*gated(box, ["wait", "a"], "--ranks", "1")[1:])
    wait_until(lambda: waiting(box))
    watching = box.start("status", "--watch", "--json", "S")
    out = box.home.parent / f"{box.home.name}-cli" / "1.out"
    wait_until(lambda: out.read_text().count("\n") >= 2)
    open_gate(box)
    started.wait(0)
    states = [json.loads(line)["state"] for line in watching.wait(0).out.splitlines()]
    assert states[0] == "running"
    assert states[-1] == "complete"
    assert set(states) == {"running", "complete"}


def test_a_file_system_in_trouble_is_given_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path / "S", 2, "running")
    clock = [1000.0]
    # From the first of these moments on every look fails, to the second one.
    trouble = [math.inf, math.inf]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def look(*args: Any, **more: Any) -> dict[str, Any]:
        if trouble[0] <= clock[0] < trouble[1]:
            raise OSError(errno.EIO, "Input/output error")
        return status(*args, **more)

    time = SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0], thread_time=lambda: 0.0)
    monkeypatch.setattr(watching, "time", time)
    monkeypatch.setattr(watching, "status", look)
    sights = watching.watch(str(tmp_path / "S"))
    assert isinstance(next(sights), dict)
    trouble[:] = [clock[0], clock[0] + 590.0]
    told = next(sights)
    assert isinstance(told, watching.News)
    assert "looking again for 10 minutes at most" in told.text
    assert isinstance(next(sights), dict), "it has healed"
    assert clock[0] >= trouble[1]
    trouble[:] = [clock[0], math.inf]
    assert isinstance(next(sights), watching.News)
    with pytest.raises(OSError, match="Input/output error"):
        next(sights)
    assert 600.0 < clock[0] - trouble[0] < 620.0


def test_a_watch_whose_terminal_is_gone_ends(box: Box) -> None:
    stage(box / "S", 2, "running")
    terminal = Terminal(box, "bash", "-c", f"trap '' HUP; exec {GPUSPOOL} status --watch S")
    terminal.wait_for("rank  ")
    terminal.hang_up()
    assert terminal.process.wait(PATIENCE_S) == 1


# Notebooks.


def test_the_html_of_a_table_is_text_alone() -> None:
    html = as_html([Line("<script>alert(1)</script>"), Line("& lost", is_trouble=True)])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "&amp; lost" in html


def test_the_html_of_a_report_is_text_alone(tmp_path: Path) -> None:
    counts = {"total": 3, "complete": 2, "failed": 1}
    report = Report(tmp_path / "<b>S", 3, counts, "2 of 3 <i>tasks</i> complete\nmore & more")
    html = report._repr_html_()
    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;i&gt;tasks" in html
    assert "more &amp; more" in html
    assert re.search(r"failed.*1", html)
