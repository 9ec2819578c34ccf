"""Blame: what a death does to the tasks that were in hand. No innocent task ever fails."""

import json
from pathlib import Path

import msgspec
import pytest
from spooling import (
    A0,
    B0,
    begin,
    close,
    finish,
    make_spool,
    orphans_left,
    take,
    task,
    verdicts,
    view_of,
    watch_opens,
)

from gpuspool.spool.blame import LINE_KEPT, TAIL_BYTES, TAIL_LINES, read_tail
from gpuspool.spool.codec import encode
from gpuspool.spool.death import MAX_KILLS, Crashed, Death, TimedOut, Witness
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import replace
from gpuspool.spool.records import Closing, Heartbeat, JournalLine, TaskLine
from gpuspool.spool.view import View

SEGV = Witness(-11, max_crashes=2)
KILL = Witness(-9, max_crashes=2)


def crash(
    root: Path, left: list[TaskLine], witness: Witness | None, started: int | None = None
) -> tuple[Closing, list[TaskLine], View]:
    """An attempt claims these tasks, finishes none of them and dies.

    started: the task that its last `started` line names. Returns its closing, its orphans and the
    view after it.
    """
    layout = make_spool(root / "s", left)
    writer = begin(layout, A0)
    take(layout, A0, len(left))
    if started is not None:
        writer.append(JournalLine(task=started, round=0, state="started", start=1.0))
    view = view_of(layout)
    closing = close(view, A0, witness=witness)
    return closing, orphans_left(layout, A0), view


def test_a_crash_with_one_task_in_hand_is_held_against_it(tmp_path: Path) -> None:
    closing, left, view = crash(tmp_path, [task(0, careful=True)], SEGV, started=0)
    assert left == [], "it is held back until the orchestrator rules"
    assert (closing.failures, closing.suspects, closing.exit_code) == ([], 1, -11)
    [opinion] = closing.held
    assert (opinion.task, opinion.line) == (0, task(0, careful=True))
    assert view.unruled() == [(0, 0)]
    assert verdicts(view) == "-"


def test_where_one_crash_is_enough_the_task_alone_in_hand_fails(tmp_path: Path) -> None:
    once = Witness(-11, max_crashes=1)
    closing, left, view = crash(tmp_path, [task(0, careful=True)], once, started=0)
    assert left == []
    [failure] = closing.failures
    error = failure.error
    assert (failure.task, error.kind, error.type) == (0, "lost", "WorkerLost")
    assert error.exit_code == -11
    assert "the worker died with this task in hand: killed by SIGSEGV" in error.message
    assert "SIGSEGV" in error.message
    assert A0 in error.message
    assert verdicts(view) == "f"
    assert json.loads(view.layout.failed_task("t0").read_bytes())["error"]["type"] == "WorkerLost"


def test_a_crash_with_a_batch_in_hand_makes_all_careful_and_counts_against_none(
    tmp_path: Path,
) -> None:
    closing, left, view = crash(tmp_path, [task(0), task(1), task(2)], SEGV)
    assert left == [task(index, careful=True) for index in range(3)]
    assert (closing.failures, closing.held, closing.suspects) == ([], [], 3)
    assert verdicts(view) == "---"


def test_a_crash_counts_against_the_started_task_alone(tmp_path: Path) -> None:
    tasks = [task(index, careful=True) for index in range(4)]
    closing, left, view = crash(tmp_path, tasks, SEGV, started=2)
    assert left == [tasks[0], tasks[1], tasks[3]]
    assert [opinion.task for opinion in closing.held] == [2]
    assert closing.suspects == 1
    assert verdicts(view) == "----"


def test_a_crash_between_careful_tasks_has_no_suspect(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", [task(index, careful=True) for index in range(3)])
    writer = begin(layout, A0)
    take(layout, A0, 3)
    writer.append(JournalLine(task=0, round=0, state="started"))
    finish(writer, 0)
    closing = close(view_of(layout), A0, witness=SEGV)
    assert (closing.suspects, closing.failures) == (0, [])
    assert orphans_left(layout, A0) == [task(1, careful=True), task(2, careful=True)]


def test_a_first_crash_fails_nobody_whatever_was_left(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", [task(0, careful=True), task(1)])
    writer = begin(layout, A0)
    take(layout, A0, 2)
    writer.append(JournalLine(task=0, round=0, state="started"))
    finish(writer, 0)
    closing = close(view_of(layout), A0, witness=SEGV)
    assert (closing.failures, closing.suspects) == ([], 1)
    assert [opinion.task for opinion in closing.held] == [1]
    assert orphans_left(layout, A0) == []


def test_sigkills_are_counted_and_believed_at_last(tmp_path: Path) -> None:
    for kills in range(MAX_KILLS - 1):
        closing, left, _ = crash(tmp_path / f"{kills}", [task(0, kills=kills)], KILL, started=0)
        assert left == [task(0, kills=kills + 1, careful=True)]
        assert (closing.failures, closing.held, closing.killed) == ([], [], 0)
    closing, left, _ = crash(tmp_path / "last", [task(0, kills=MAX_KILLS - 1)], KILL, started=0)
    assert left == []
    assert "SIGKILL" in closing.failures[0].error.message
    closing, left, _ = crash(tmp_path / "segv", [task(0, kills=MAX_KILLS - 1)], SEGV, started=0)
    assert (left, closing.failures) == ([], [])
    assert [opinion.task for opinion in closing.held] == [0]


def test_without_a_witness_nobody_is_blamed(tmp_path: Path) -> None:
    tasks = [task(0, kills=4, careful=True, failed_in=((A0, "cpu"),))]
    closing, left, _ = crash(tmp_path, tasks, None, started=0)
    assert left == tasks
    assert (closing.failures, closing.suspects, closing.exit_code) == ([], 0, None)


def test_a_limit_that_was_lowered_fails_no_task_that_was_not_in_hand(tmp_path: Path) -> None:
    tasks = [task(index, careful=True) for index in range(3)]
    closing, left, _ = crash(tmp_path, tasks, Witness(-11, max_crashes=1), started=2)
    assert [failure.task for failure in closing.failures] == [2]
    assert left == tasks[:2]


# When the call of a task began that is lost.


def heartbeat(layout: Layout, index: int, since: float) -> None:
    """The attempt told last that it has had this task in hand since then."""
    record = Heartbeat(
        **msgspec.structs.asdict(myself()),
        attempt=A0,
        beat=1,
        parent="1",
        device="",
        state="running",
        at=since,
        task=index,
        key=f"t{index}",
        task_since=since,
        in_hand=1,
    )
    replace(layout.heartbeat(A0), encode(record))


def lost_at(
    root: Path, by: str, death: Death, started: float | None, told: tuple[int, float] | None
) -> Closing:
    """The closing of an attempt with one task in hand.

    started: what a `started` line says of its call. told: the task and the time in its heartbeat.
    """
    layout = make_spool(root / "s", [task(0), task(1)])
    writer = begin(layout, A0)
    take(layout, A0, 2)
    finish(writer, 0)
    if started is not None:
        writer.append(JournalLine(task=1, round=0, state="started", start=started))
    if told is not None:
        heartbeat(layout, *told)
    return close(view_of(layout), A0, by=by, death=death)


DEATHS = {
    "held": Crashed(SEGV),
    "timeout": TimedOut("stacks"),
    "failed": Crashed(Witness(-11, max_crashes=1)),
    "killed": Crashed(KILL),
}


@pytest.mark.parametrize("by", ["parent", "resume", B0])
@pytest.mark.parametrize("how", DEATHS)
def test_whoever_closes_tells_when_the_call_of_a_lost_task_began(
    tmp_path: Path, by: str, how: str
) -> None:
    closing = lost_at(tmp_path, by, DEATHS[how], 1700000000.5, (1, 1700000001.5))
    assert closing.by == by
    if how == "killed":
        assert (closing.killed, closing.killed_start) == (1, 1700000000.5)
        return
    [lost] = closing.failures if how == "failed" else closing.held
    assert (lost.task, lost.start) == (1, 1700000000.5)


@pytest.mark.parametrize(
    ("told", "start"), [((1, 1700000001.5), 1700000001.5), ((0, 1700000001.5), 0.0), (None, 0.0)]
)
def test_without_a_started_line_the_heartbeat_tells_if_it_is_of_that_task(
    tmp_path: Path, told: tuple[int, float] | None, start: float
) -> None:
    [lost] = lost_at(tmp_path, "parent", Crashed(SEGV), None, told).held
    assert (lost.task, lost.start) == (1, start)
    killed = lost_at(tmp_path / "killed", "parent", Crashed(KILL), None, told)
    assert killed.killed_start == start


def test_no_heartbeat_is_read_where_no_task_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_spool(tmp_path / "s", [task(0), task(1)])
    take(layout, A0, 2)
    begin(layout, A0)
    heartbeat(layout, 1, 1.5)
    view = view_of(layout)
    opened = watch_opens(monkeypatch)
    close(view, A0)
    assert str(layout.heartbeat(A0)) not in opened


def tail_of(layout: Layout, log: str) -> list[str]:
    layout.log(A0).write_text(log)
    return read_tail(layout, A0).split("\n")


def crash_log(stack: str, others: str = "", after: str = "") -> str:
    head = "Fatal Python error: Segmentation fault\n\n"
    return f"{head}{others}Current thread 0x1 (most recent call first):\n{stack}\n{after}"


def frames(count: int, folder: str = "/a") -> str:
    return "".join(f'  File "{folder}/net.py", line {n} in forward\n' for n in range(count))


def test_of_a_log_its_last_lines_are_kept(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    assert tail_of(layout, "".join(f"{n}\n" for n in range(99))) == [str(n) for n in range(59, 99)]
    assert tail_of(layout, "x" * 500 + "\nlast") == ["x" * (LINE_KEPT - 1) + "…", "last"]
    long = tail_of(layout, "".join(f"{n:300}\n" for n in range(99)))
    assert long == [f"{n:300}" for n in range(99 - TAIL_BYTES // 301, 99)]
    assert tail_of(layout, "") == [""]


def test_a_long_line_behind_the_stacks_of_a_crash_does_not_displace_them(tmp_path: Path) -> None:
    """A job that has imported torch or scipy leaves one of some thousand characters there."""
    modules = f"Extension modules: {', '.join(f'scipy.part{n}' for n in range(900))}\n"
    kept = tail_of(make_spool(tmp_path / "s", 1), crash_log(frames(2), after=modules))
    assert kept[0] == "Fatal Python error: Segmentation fault"
    assert kept[3:5] == frames(2).splitlines()


@pytest.mark.parametrize("folder", ["/a", f"/{'b' * 200}"])
@pytest.mark.parametrize("is_before", [True, False])
def test_of_a_crash_with_long_stacks_the_thread_that_crashed_is_kept(
    tmp_path: Path, folder: str, is_before: bool
) -> None:
    other = f"Thread 0x2 (most recent call first):\n{frames(60)}\n"
    log = crash_log(frames(60, folder), *([other] if is_before else ["", other]))
    kept = tail_of(make_spool(tmp_path / "s", 1), f"said\n{log}")
    assert kept[:2] == [
        "Fatal Python error: Segmentation fault",
        "Current thread 0x1 (most recent call first):",
    ]
    assert kept[2:12] == frames(60, folder).splitlines()[:10]
    assert len(kept) <= TAIL_LINES
    assert len("\n".join(kept).encode()) <= TAIL_BYTES
