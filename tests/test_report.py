"""What the readers tell of spools made by hand: which line is a task's result, what damage costs,
what a log says, and that all verbs give one verdict.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from spooling import (
    A0,
    A1,
    B0,
    C0,
    begin,
    close_dead,
    dead_process,
    finish,
    intend,
    make_spool,
    take,
    task,
    view_of,
)

import gpuspool
from gpuspool.orchestrator.report import places, ranges
from gpuspool.orchestrator.report.failures import failed_results
from gpuspool.orchestrator.report.logs import Logs, task_log_chunks
from gpuspool.orchestrator.report.ranges import read_chunks, read_ranges
from gpuspool.orchestrator.report.results import Result, Results, encode_result
from gpuspool.orchestrator.report.status import status
from gpuspool.orchestrator.report.verify import verify
from gpuspool.spool.codec import seal
from gpuspool.spool.errors import UsageError
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout, attempt_name, rank_name, rank_of
from gpuspool.spool.manifest import publish_manifest, publish_orphans
from gpuspool.spool.records import Closing, Error, JournalLine, TaskFailure
from gpuspool.spool.states import AttemptState, ErrorKind, LineState, Reason


def error(message: str, kind: ErrorKind = ErrorKind.EXCEPTION) -> Error:
    return Error(kind=kind, type="Odd", message=message)


def complete(writer: JournalWriter, index: int, value: int, **more: Any) -> None:
    """A complete line whose result is a number."""
    result = Raw(b"%d" % value)
    line = JournalLine(task=index, round=0, state=LineState.COMPLETE, result=result, **more)
    writer.append(line)


def fail(writer: JournalWriter, index: int, message: str, round_: int = 0) -> None:
    state = LineState.FAILED
    writer.append(JournalLine(task=index, round=round_, state=state, error=error(message)))


def fail_by_closing(layout: Layout, attempt: str, index: int, message: str, round_: int) -> None:
    failure = TaskFailure(task=index, round=round_, key=f"t{index}", error=error(message))
    closing = Closing(
        attempt=attempt,
        state=AttemptState.FAILED,
        reason=Reason.CRASH,
        by="test",
        failures=[failure],
    )
    assert publish_orphans(layout, closing, [])


def told(result: Result) -> Any:
    """What a result says, in one value: its number, the message of its error, or its state."""
    if result.state == "complete":
        return result.value()
    if result.error is not None:
        return result.error.message
    return str(result.state)


def all_told(layout: Layout) -> list[Any]:
    return [told(result) for result in Results(view_of(layout))]


# Which line is a task's result.


def test_of_complete_lines_the_first_by_attempt_and_offset_is_the_result(tmp_path: Path) -> None:
    """Whichever of them a view happens to read first."""
    layout = make_spool(tmp_path / "s", 3)
    second = begin(layout, B0)
    complete(second, 0, 20)
    complete(second, 1, 21)
    view = view_of(layout)
    intend(layout, A0)
    first = begin(layout, A0)
    complete(first, 1, 11)
    complete(first, 1, 12)
    results = list(Results(view.refresh()))
    assert [told(result) for result in results] == [20, 11, "missing"]
    assert [result.rank for result in results] == [1, 0, None]
    assert view.ledger.duplicates == 2


def test_attempts_are_in_the_order_of_their_numbers_and_not_of_their_names(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    for rank in (10_000, 9_999):
        complete(begin(layout, attempt_name(rank, 0)), 0, rank)
    assert all_told(layout) == [9_999]


def test_a_complete_line_counts_whatever_failed_before_or_after_it(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    writer = begin(layout, A0)
    fail(writer, 0, "round 0")
    complete(writer, 0, 5)
    fail(begin(layout, B0), 0, "round 3", 3)
    fail_by_closing(layout, C0, 0, "closing", 4)
    assert all_told(layout) == [5]


def test_else_the_failed_line_of_the_newest_round(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    writer = begin(layout, A0)
    fail(writer, 0, "of round 1", 1)
    fail(writer, 0, "of round 0", 0)
    fail(writer, 1, "first of round 0")
    fail(begin(layout, B0), 1, "last of round 0")
    assert all_told(layout) == ["of round 1", "last of round 0"]


@pytest.mark.parametrize(("journal", "closing"), [(1, 0), (0, 1), (1, 1)])
def test_a_closing_tells_of_a_failure_if_no_line_of_its_round_does(
    journal: int, closing: int, tmp_path: Path
) -> None:
    layout = make_spool(tmp_path / "s", 1)
    fail(begin(layout, A0), 0, "journal", journal)
    fail_by_closing(layout, B0, 0, "closing", closing)
    assert all_told(layout) == ["closing" if closing > journal else "journal"]


def test_of_closings_the_newest_round_tells(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    fail_by_closing(layout, A0, 0, "newer", 1)
    fail_by_closing(layout, B0, 0, "older", 0)
    (result,) = Results(view_of(layout))
    assert (told(result), result.rank, result.state) == ("newer", 0, "failed")


def test_a_task_that_a_retry_gave_another_round_is_missing_until_that_has_ended(
    tmp_path: Path,
) -> None:
    layout = make_spool(tmp_path / "s", 1)
    writer = begin(layout, A0)
    fail(writer, 0, "round 0")
    assert publish_manifest(layout, "retry-01", [task(0, round=1)])
    assert all_told(layout) == ["missing"]
    assert list(failed_results(view_of(layout))) == []
    fail(writer, 0, "round 1", 1)
    assert all_told(layout) == ["round 1"]
    assert [told(result) for result in failed_results(view_of(layout))] == ["round 1"]


def test_a_result_has_all_that_its_line_says(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    writer = begin(layout, C0)
    complete(writer, 1, 7, seconds=0.5, outputs=[("a", 1), ("b/c", 2)])
    finish(writer, 0)
    without, result = Results(view_of(layout))
    assert (result.index, result.key, result.value(), result.seconds) == (1, "t1", 7, 0.5)
    assert (result.outputs, result.rank, result.error) == (["a", "b/c"], 2, None)
    assert (without.value(), without.outputs, without.seconds) == (None, [], 0.25)


def test_started_and_deferred_lines_and_tasks_of_another_run_are_passed_over(
    tmp_path: Path,
) -> None:
    layout = make_spool(tmp_path / "s", 2)
    writer = begin(layout, A0)
    for state in (LineState.STARTED, LineState.DEFERRED):
        writer.append(JournalLine(task=0, round=0, state=state, error=error("not this")))
    for index in (-1, 2, 10**12):
        complete(writer, index, 5)
    complete(writer, 0, 6)
    assert all_told(layout) == [6, "missing"]


# Windows: how many lines are read together changes nothing.


@pytest.mark.parametrize("limits", [(1, 1), (2, 10**6), (7, 500), (10**6, 10**6)])
@pytest.mark.parametrize("gap", [0, 10**6])
def test_results_are_the_same_whatever_is_read_together(
    limits: tuple[int, int], gap: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_spool(tmp_path / "s", 60)
    writers = [begin(layout, attempt) for attempt in (A0, B0, C0)]
    order = list(range(60))
    random.Random(7).shuffle(order)
    for index in order[:50]:
        complete(writers[index % 3], index, 1000 + index)
        complete(writers[(index + 1) % 3], index, 2000)
    for index in order[50:55]:
        fail(writers[0], index, f"t{index} failed")
    monkeypatch.setattr(places, "WINDOW_TASKS", limits[0])
    monkeypatch.setattr(places, "WINDOW_BYTES", limits[1])
    monkeypatch.setattr(ranges, "GAP_BYTES", gap)
    view = view_of(layout)
    expected: dict[int, Any] = {index: 1000 + index for index in order[:50]}
    expected |= {index: 2000 for index in order[:50] if index % 3 == 2}
    expected |= {index: f"t{index} failed" for index in order[50:55]}
    found = list(Results(view))
    assert [result.index for result in found] == list(range(60))
    assert [told(result) for result in found] == [expected.get(i, "missing") for i in range(60)]
    assert [result.key for result in found] == [f"t{index}" for index in range(60)]
    assert list(Results(view).of([3, 1, 3])) == [found[3], found[1], found[3]]


def test_results_can_be_read_again_and_side_by_side(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    writer = begin(layout, A0)
    for index in range(9):
        complete(writer, index, index)
    results = Results(view_of(layout))
    pairs = list(zip(results, results, strict=True))
    assert all(one == other for one, other in pairs)
    assert [one.value() for one, _ in pairs] == list(range(9))


# Live runs and damage.


def test_what_a_live_run_adds_is_not_told_before_the_next_refresh(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 3)
    writer = begin(layout, A0)
    complete(writer, 0, 0)
    fail(writer, 1, "not yet")
    view = view_of(layout)
    complete(writer, 1, 1)
    results = Results(view)
    complete(writer, 2, 2)
    assert [told(result) for result in results] == [0, "not yet", "missing"]
    assert [told(result) for result in Results(view.refresh())] == [0, 1, 2]


def test_a_line_that_comes_after_the_refresh_replaces_none_that_was_there(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    writer = begin(layout, A0)
    fail(writer, 1, "known")
    complete(begin(layout, B0), 0, 20)
    view = view_of(layout)
    complete(writer, 0, 10)
    fail(writer, 1, "new")
    assert [told(result) for result in Results(view)] == [20, "known"]
    assert [told(result) for result in Results(view.refresh())] == [10, "new"]


@pytest.mark.parametrize("spoil", ["flip", "cut", "join"])
def test_a_damaged_line_costs_itself_alone(spoil: str, tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 5)
    writer = begin(layout, A0)
    for index in range(5):
        complete(writer, index, index)
    lines = layout.journal(A0).read_bytes().splitlines(keepends=True)
    damaged = lines[3]
    if spoil == "flip":
        lines[3] = damaged.replace(b'"result":2', b'"result":9')
    elif spoil == "cut":
        lines[3] = damaged[:9] + b"\n"
    else:
        lines[3] = b"\n" + bytes(9000) + b"\n\n"
    assert lines[3] != damaged
    layout.journal(A0).write_bytes(b"".join(lines))
    view = view_of(layout)
    assert [told(result) for result in Results(view)] == [0, 1, "missing", 3, 4]
    assert {damage.path for damage in view.damage} == {str(layout.journal(A0))}


def test_a_torn_tail_costs_nothing_else(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    complete(begin(layout, A0), 0, 0)
    with layout.journal(A0).open("ab") as journal:
        journal.write(seal(JournalLine(task=1, round=0, state=LineState.COMPLETE))[:-5])
    assert all_told(layout) == [0, "missing"]


def test_a_line_that_is_damaged_between_two_looks_keeps_its_verdict_and_is_reported(
    tmp_path: Path,
) -> None:
    """The verdict stands in the view, but nobody can tell the result any more: that is said."""
    layout = make_spool(tmp_path / "s", 4)
    writer = begin(layout, A0)
    for index in range(3):
        complete(writer, index, index)
    fail(writer, 3, "whole")
    view = view_of(layout)
    results = Results(view)
    data = layout.journal(A0).read_bytes()
    layout.journal(A0).write_bytes(data.replace(b'"result":1', b'"result":7'))
    assert [result.state for result in results] == ["complete"] * 3 + ["failed"]
    assert [result.value() for result in results] == [0, None, 2, None]
    assert [result.error and result.error.type for result in results] == [
        None,
        "LineUnreadable",
        None,
        "Odd",
    ]
    (damage,) = view.damage
    assert (damage.path, damage.offset) == (str(layout.journal(A0)), data.index(b'{"task":1'))
    layout.journal(A0).write_bytes(data[: data.index(b'{"task":2') + 20])
    assert [result.value() for result in results] == [0, 1, None, None]
    assert [result.error and result.error.kind for result in results.failed()] == ["unreadable"]
    layout.journal(A0).unlink()
    assert [result.state for result in results] == ["complete"] * 3 + ["failed"]


# Keys.


def test_the_key_of_a_damaged_planned_line_is_taken_from_another_manifest(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 3)
    destroy_line(layout, 1)
    assert [result.key for result in Results(view_of(layout))] == ["t0", None, "t2"]
    assert publish_manifest(layout, "sweep-01", [task(1)])
    assert [result.key for result in Results(view_of(layout))] == ["t0", "t1", "t2"]


def destroy_line(layout: Layout, index: int) -> None:
    """Make a task's line in the first manifest unreadable."""
    path = layout.manifest(rank_name(0))
    old, new = b'"key":"t%d"' % index, b'"kex":"t%d"' % index
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))


# All verbs tell the same.


def test_every_verb_gives_an_unreadable_task_the_same_verdict(box: Box) -> None:
    """A manifest line was destroyed before anybody ran its task; all others are complete."""
    layout = make_spool(box / "S", 4)
    gone = dead_process()
    intend(layout, A0, parent=gone)
    writer = begin(layout, A0)
    take(layout, A0, 4)
    finish(writer, 0, 1, 3)
    destroy_line(layout, 2)
    assert close_dead(view_of(layout), A0) is not None

    stand = box.run("status", "S", "--json").record()
    assert stand["next"] == "gpuspool failed S"
    assert stand == {**gpuspool.status(box / "S"), "next": stand["next"]}
    assert stand["state"] == "failed"
    assert (stand["tasks"]["complete"], stand["tasks"]["failed"]) == (3, 1)
    assert stand["tasks"]["waiting"] == 0
    assert "finished, 1 failed  100 %" in box.run("wait", "S", code=3).out
    results = box.run("results", "S").records()
    assert [result["state"] for result in results] == ["complete", "complete", "failed", "complete"]
    assert results[2]["error"]["kind"] == "unreadable"
    assert box.run("failed", "S", "--json").records() == [results[2]]
    assert "1 task: unreadable, TaskUnreadable" in box.run("failed", "S").out
    verified = box.run("verify", "S", code=5).out
    assert "1 task stands in no readable manifest line, the first is 2" in verified
    assert verified.splitlines()[-1].endswith("; 3 complete, 1 failed of 4")
    assert "resume sweeps" not in verified, "an unreadable task is not stranded"


@pytest.mark.parametrize("state", ["stranded", "held", "unclaimed"])
def test_every_verb_leaves_a_task_without_a_verdict_without_one(state: str, box: Box) -> None:
    layout = make_spool(box / "S", 3)
    intend(layout, A0)
    writer = begin(layout, A0)
    if state != "unclaimed":
        take(layout, A0, 3)
    finish(writer, 0)
    fail(writer, 2, "bad")
    if state == "stranded":
        publish_orphans(
            layout,
            Closing(attempt=A0, state=AttemptState.FAILED, reason=Reason.LOST, by="test"),
            [],
        )
    stand = box.run("status", "S", "--json").record()
    assert (stand["tasks"]["complete"], stand["tasks"]["failed"]) == (1, 1)
    results = box.run("results", "S").records()
    assert [result["state"] for result in results] == ["complete", "missing", "failed"]
    assert [found["index"] for found in box.run("failed", "S", "--json").records()] == [2]
    verified = box.run("verify", "S", code=None).out
    assert verified.splitlines()[-1].endswith("; 1 complete, 1 failed of 3")
    assert ("resume sweeps it" in verified) == (state == "stranded")
    if state == "stranded":
        assert "stopped  1 complete, 1 failed" in box.run("wait", "S", code=4).out


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Whatever is asked first, the others get the same answers, and no file is touched."""
    layout = make_spool(tmp_path / "s", 4)
    writer = begin(layout, A0)
    take(layout, A0, 3)
    finish(writer, 0)
    fail(writer, 1, "bad")
    destroy_line(layout, 3)
    before = {path: path.stat() for path in layout.root.rglob("*")}
    view = view_of(layout)
    answers = [(status(view)["tasks"], list(Results(view))) for _ in range(2)]
    problems = verify(view).problems
    answers.append((status(view)["tasks"], list(Results(view))))
    assert answers[0] == answers[1] == answers[2]
    assert problems == verify(view_of(layout)).problems
    after = {path: path.stat() for path in layout.root.rglob("*")}
    assert {path: stat.st_mtime_ns for path, stat in after.items()} == {
        path: stat.st_mtime_ns for path, stat in before.items()
    }


# Logs.


def write_log(layout: Layout, attempt: str, text: bytes) -> None:
    layout.log(attempt).write_bytes(text)


def told_of(layout: Layout) -> str:
    """The logs of a spool, of which only the first attempt's is shown."""
    logs = Logs(view_of(layout), rank_of(A0))
    return "".join([*logs.new_text(), *logs.rest()])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10**6])
def test_a_log_is_the_same_text_whatever_its_chunks_are(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters of one to four bytes, bytes that are none, all kinds of line ends, a cut end."""
    layout = make_spool(tmp_path / "s", 1)
    begin(layout, A0)
    begin(layout, B0)
    data = "a é 漢 🚀\r\n10 %\r20 %\r\rend\n".encode() + b"\xff\xc3(\r\n" + "🚀".encode()[:3]
    write_log(layout, A0, data)
    expected = layout.log(A0).read_text(encoding="utf-8", errors="replace")
    monkeypatch.setattr(ranges, "READ_BYTES", size)
    assert told_of(layout) == f"==> {A0} <==\n{expected}"
    write_log(layout, A0, data + b"\r")
    assert told_of(layout) == f"==> {A0} <==\n{expected}\n"


@pytest.mark.parametrize("size", [1, 3, 10**6])
def test_the_log_of_a_task_is_what_its_lines_point_to(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_spool(tmp_path / "s", 3)
    first, second = begin(layout, A0), begin(layout, A1)
    log = "before漢字between🚀after".encode()
    for attempt in (A0, A1):
        write_log(layout, attempt, log)
    start, stop = log.index("漢".encode()), log.index(b"between")
    for state, part in ((LineState.DEFERRED, (start, stop)), (LineState.FAILED, (stop, stop + 7))):
        first.append(JournalLine(task=1, round=0, state=state, log=part))
    first.append(JournalLine(task=2, round=0, state=LineState.COMPLETE, log=(0, 6)))
    first.append(JournalLine(task=0, round=0, state=LineState.COMPLETE))
    line = JournalLine(task=1, round=0, state=LineState.COMPLETE, log=(stop + 7, 10**9))
    second.append(line)
    monkeypatch.setattr(ranges, "READ_BYTES", size)
    view = view_of(layout)
    heads = [f"==> {attempt} <==\n" for attempt in (A0, A0, A1)]
    expected = f"{heads[0]}漢字\n{heads[1]}between\n{heads[2]}🚀after"
    assert "".join(task_log_chunks(view, "t1")) == expected
    assert "".join(task_log_chunks(view, "t0")) == ""
    with pytest.raises(UsageError, match="no task with the key 't9'"):
        task_log_chunks(view, "t9")


# Ranges of files.

pieces = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12)


@settings(max_examples=200)
@given(pieces, st.integers(0, 200), st.integers(0, 40), st.integers(1, 100))
def test_ranges_are_the_bytes_that_they_name(
    tmp_path_factory: pytest.TempPathFactory,
    gaps_and_sizes: list[tuple[int, int]],
    length: int,
    gap: int,
    most: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "ranges"
    data = random.Random(length).randbytes(length)
    path.write_bytes(data)
    wanted: list[tuple[int, int]] = []
    at = 0
    for before, size in gaps_and_sizes:
        wanted.append((at + before, at + before + size))
        at += before + size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "GAP_BYTES", gap)
        patch.setattr(ranges, "READ_BYTES", most)
        found = read_ranges(path, wanted)
        chunks = [list(read_chunks(path, start, stop)) for start, stop in wanted]
        whole = b"".join(read_chunks(path))
    assert found == [data[start:stop] if stop <= length else b"" for start, stop in wanted]
    assert [b"".join(some) for some in chunks] == [data[start:stop] for start, stop in wanted]
    assert all(len(chunk) <= most for some in chunks for chunk in some)
    assert whole == data


def test_ranges_of_what_is_no_file_are_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    assert read_ranges(tmp_path / "file", [(0, 1), (4, 6)]) == [b"0", b"45"]
    for name in ("link", "folder", "fifo", "none", "file/below"):
        assert read_ranges(tmp_path / name, [(0, 1), (4, 6)]) == [b"", b""], name
        assert list(read_chunks(tmp_path / name)) == [], name


def test_json_of_a_result_has_every_field(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    (result,) = Results(view_of(layout))
    assert json.loads(encode_result(result)) == {
        "index": 0,
        "key": "t0",
        "state": "missing",
        "result": None,
        "error": None,
        "seconds": None,
        "rank": None,
        "attempt": None,
        "code": None,
        "outputs": [],
    }
