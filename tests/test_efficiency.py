"""What a start tells of its ranks at its end: the shares of their time, the slowest tasks, and in
how many lines.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import JOBS, Box
from spooling import begin, intend, make_spool, task, view_of

from gpuspool.orchestrator.api import epoch
from gpuspool.orchestrator.report import efficiency
from gpuspool.orchestrator.report.efficiency import (
    COLUMNS,
    Slow,
    efficiency_text,
    slowest_tasks,
    time_of_ranks,
)
from gpuspool.orchestrator.text.cells import width
from gpuspool.orchestrator.text.words import quoted_path
from gpuspool.spool.codec import encode
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.manifest import publish_orphans
from gpuspool.spool.records import Closing, JournalLine, Stats, Usage
from gpuspool.spool.states import AttemptState, LineState, Reason

PYTHON = sys.executable


def attempt(
    layout: Layout,
    rank: int,
    number: int = 0,
    epoch: int = 0,
    busy_s: float = 0.0,
    tasks: dict[int, float] | None = None,
    is_killed: bool = False,
    **idle_s: float,
) -> str:
    """An attempt that has ended, and took so many seconds over these tasks."""
    name = attempt_name(rank, number)
    intend(layout, name, epoch=epoch)
    writer = begin(layout, name)
    for index, seconds in (tasks or {}).items():
        writer.append(
            JournalLine(task=index, round=0, state=LineState.COMPLETE, start=1.0, seconds=seconds)
        )
    if is_killed:
        usage = Usage(at=1.0, busy_s=busy_s, idle_s=idle_s)
        layout.usage(name).write_bytes(encode(usage))
    stats = None if is_killed else Stats(busy_s=busy_s, idle_s=idle_s)
    state = AttemptState.FAILED if is_killed else AttemptState.COMPLETE
    reason = Reason.CRASH if is_killed else Reason.FINISHED
    publish_orphans(
        layout, Closing(attempt=name, state=state, reason=reason, by="test", stats=stats), []
    )
    return name


def test_the_time_of_a_rank_is_that_of_the_start_whatever_its_attempts_were(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    names = [
        attempt(layout, 0, busy_s=40, is_killed=True, start=2, load=3, inputs=5, publish=1, work=9),
        attempt(layout, 0, 1, busy_s=20, start=1, load=1, inputs=2, close=3),
        attempt(layout, 1, busy_s=90, start=2, load=2, work=6),
    ]
    ranks = time_of_ranks(view_of(layout), names, 100.0)
    assert ranks[0] == {"busy": 60, "inputs": 7, "publish": 1, "load": 10, "wait": 22}
    assert ranks[1] == {"busy": 90, "inputs": 0, "publish": 0, "load": 4, "wait": 6}


def test_only_the_ranks_of_this_start_are_told(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 3)
    attempt(layout, 0, epoch=0, busy_s=1, tasks={0: 99.0})
    attempt(layout, 0, 1, epoch=1, busy_s=50, tasks={1: 5.0})
    attempt(layout, 1, epoch=2, busy_s=1, tasks={2: 99.0})
    text = efficiency_text(view_of(layout), 1, 100.0)
    assert text.splitlines() == [
        "gpuspool: 1 rank of this start in 1:40:",
        "             busy   inputs  publish     load     wait",
        "  rank 0     50 %      0 %      0 %      0 %     50 %",
        "  slowest     5.0 s  rank 0  t1",
        f"  next: gpuspool report {quoted_path(layout.root)}",
    ]


def test_a_start_that_finished_nothing_tells_nothing(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    attempt(layout, 0, busy_s=1)
    assert efficiency_text(view_of(layout), 0, 100.0) == ""


def test_the_slowest_tasks_are_those_with_the_longest_times_each_once(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 8)
    names = [
        attempt(layout, 0, tasks={0: 1.0, 1: 9.0, 2: 3.0, 3: 0.0}),
        attempt(layout, 1, tasks={4: 2.0, 1: 8.0, 5: 7.0, 6: 7.0, 7: 0.5}),
    ]
    found = slowest_tasks(view_of(layout), names)
    assert found == [Slow(9.0, 1, 0), Slow(7.0, 6, 1), Slow(7.0, 5, 1)]


def test_a_damaged_line_is_no_slow_task(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    name = attempt(layout, 0, tasks={0: 1.0, 1: 2.0})
    path = layout.journal(name)
    path.write_bytes(path.read_bytes().replace(b'"seconds":1.0', b'"seconds":9.0'))
    assert slowest_tasks(view_of(layout), [name]) == [Slow(2.0, 1, 0)]


def test_whatever_goes_wrong_with_these_lines_the_run_has_gone_as_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OverflowError

    view = view_of(make_spool(tmp_path / "s", 1))
    monkeypatch.setattr(efficiency, "efficiency_text", fail)
    assert epoch._efficiency(view, 0, 1.0) == ""


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 5, 64])
def test_it_is_short_and_fits_however_many_ranks_and_however_long_keys_are(
    tmp_path: Path, n_ranks: int
) -> None:
    keys = ["d/" + "x" * 300, "日本" * 80, "evil\x1b[31m" + "y" * 90]
    tasks_of: list[Any] = [task(at, key=key) for at, key in enumerate(keys)]
    layout = make_spool(tmp_path / "s", tasks_of)
    for rank in range(n_ranks):
        tasks = {0: 1000.0, 1: 3.0, 2: 2.0} if rank == 0 else {}
        attempt(layout, rank, busy_s=10 + (rank * 7) % 64, tasks=tasks, inputs=1.0)
    text = efficiency_text(view_of(layout), 0, 100.0)
    *lines, last = text.splitlines()
    assert all(width(line) <= COLUMNS for line in lines), text
    # A command is not cut.
    assert last == f"  next: gpuspool report {quoted_path(layout.root)}"
    assert "\x1b" not in text
    assert len(text.splitlines()) <= 11
    told = [int(rank) for rank in re.findall(r"^  rank (\d+) ", text, re.MULTILINE)]
    if n_ranks <= efficiency.MOST_RANKS:
        assert told == list(range(n_ranks))
    else:
        busy = {rank: 10 + (rank * 7) % 64 for rank in range(n_ranks)}
        assert told == sorted(busy, key=lambda rank: (busy[rank], rank))[: efficiency.WORST]
        mean = round(sum(busy.values()) / n_ranks)
        assert f"all {n_ranks} " in text
        assert re.search(rf"^  all {n_ranks} +{mean} %", text, re.MULTILINE)


def test_the_next_command_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_spool(tmp_path / "my spool", 1)
    attempt(layout, 0, busy_s=1, tasks={0: 1.0})
    monkeypatch.chdir(tmp_path)
    last = efficiency_text(view_of(layout), 0, 100.0).splitlines()[-1]
    assert last == "  next: gpuspool report 'my spool'"


# Runs the command line as if every start were long enough.
LONG_ENOUGH = """
import sys
from gpuspool.orchestrator.api import epoch
from gpuspool.orchestrator.cli.main import main
epoch.EFFICIENCY_FROM_S = 0.0
if __name__ == "__main__":
    main(sys.argv[1:])
"""


def test_each_verb_that_starts_workers_tells_it_before_its_last_line(box: Box) -> None:
    box.write("main.py", LONG_ENOUGH)
    box.job("plain.py")
    run = ("main.py", "run", "plain.py:double", "--lines", box.lines(4), "--spool", "S")

    def told(*words: str) -> bool:
        lines = box.run(*words, program=(PYTHON,)).err.splitlines()
        assert "of 4 tasks complete" in lines[-1]
        is_told = any("of this start in" in line for line in lines[:-1])
        assert is_told == any(line.startswith("  slowest") for line in lines)
        return is_told

    assert told(*run)
    assert not told(*run), "nothing was left to do"
    assert told("main.py", "redo", "S", "t1")
    assert not told("main.py", "redo", "S", "t1", "--quiet")
    assert not told("main.py", "join", "S")


def test_json_and_short_starts_leave_it_out(box: Box) -> None:
    box.write("main.py", LONG_ENOUGH)
    run = ("run", f"{JOBS}/plain.py:double", "--lines", box.lines(4), "--spool")
    done = box.run("main.py", *run, "S", "--json", program=(PYTHON,))
    assert "of this start" not in done.err
    assert done.record()["exit_code"] == 0
    assert "of this start" not in box.run(*run, "T").err


def test_a_report_has_it_for_python(box: Box) -> None:
    box.write("main.py", LONG_ENOUGH)
    box.lines(4)
    source = (
        "import main, gpuspool\n"
        "if __name__ == '__main__':\n"
        f"    report = gpuspool.run({str(JOBS / 'plain.py:double')!r}, lines='lines', spool='S')\n"
        "    assert 'of this start' in report.efficiency, report\n"
        "    assert report.efficiency in repr(report)\n"
        "    assert 'of this start' in report._repr_html_()\n"
    )
    box.python(source)
