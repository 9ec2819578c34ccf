"""What the journal is told of the tasks in hand: when lines wait, what is announced, who fails."""

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import journal_lines, names, wait_until
from spooling import A0, begin, indices, make_spool, read_journal, task

from gpuspool.spool.closing import publish_closing
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Closing, Error, JournalLine, Options
from gpuspool.spool.states import AttemptState, ErrorKind, LineState, Reason
from gpuspool.worker.backlog import Backlog
from gpuspool.worker.clocks import Span
from gpuspool.worker.context import Task
from gpuspool.worker.doing import Doing
from gpuspool.worker.drain import Drain
from gpuspool.worker.scratch import Scratch
from gpuspool.worker.settle import MOST_WAITING, TINY_S, Settler
from gpuspool.worker.standing import Standing
from gpuspool.worker.supply import Supply
from gpuspool.worker.timer import Timer

ERROR = Error(kind=ErrorKind.EXCEPTION, type="ValueError", message="no")


class Scene:
    """A settler of a real attempt, with tasks 0-9 in hand."""

    def __init__(
        self, root: Path, patience: int = 6, is_believing: bool = True, **options: Any
    ) -> None:
        self.layout = make_spool(root / "s", 10)
        self.journal = begin(self.layout, A0)
        self.standing = Standing(self.layout, A0, lease_s=120.0)
        supply = Supply(self.layout, 0, A0, pytest.fail)
        self.backlog = Backlog(supply, self.journal.flush, self.standing.is_still_open)
        self.doing = Doing()
        self.drain = Drain()
        wanted = Options(**options)
        self.settler = Settler(
            self.layout,
            A0,
            wanted,
            patience,
            False,
            self.journal,
            self.backlog,
            self.standing,
            Timer(self.layout, A0, wanted, lambda: True),
            self.doing,
            self.drain,
            is_believing,
            Scratch(self.layout, lambda: None),
        )
        self.settler.take_in_hand([task(index) for index in range(10)])

    def complete(self, index: int) -> None:
        verdict = JournalLine(task=index, round=0, state=LineState.COMPLETE)
        self.settler.settle(task(index), verdict)

    def fail(self, index: int, error: Error = ERROR) -> None:
        verdict = JournalLine(task=index, round=0, state=LineState.FAILED, error=error)
        self.settler.settle(task(index), verdict)

    def judge(self) -> None:
        """Settle the failures that are held, once their moment is over."""
        wait_until(lambda: (self.settler.waits_for_s() or 0.0) <= 0.0)
        self.settler.judge_waiting()

    def written(self) -> list[int]:
        return [line["task"] for line in journal_lines(self.layout.root)]


def lines_of(layout: Layout) -> list[bytes]:
    """The lines of the attempt's journal, whatever they say."""
    return [line for _, line in read_journal(layout, A0)[0]]


def test_lines_wait_for_others_only_after_tiny_calls(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.complete(0)
    assert scene.written() == [0], "nothing is known of the calls yet"
    scene.settler.end_stretch(0.5 * TINY_S, calls=1)
    scene.complete(1)
    scene.complete(2)
    assert scene.written() == [0]
    scene.journal.flush()
    assert scene.written() == [0, 1, 2]
    scene.settler.end_stretch(2 * TINY_S, calls=1)
    scene.complete(3)
    assert scene.written() == [0, 1, 2, 3]


def test_the_lines_of_one_call_are_written_together_and_wait_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)
    writes: list[int] = []
    write = os.write

    def count(fd: int, data: memoryview) -> int:
        writes.append(bytes(data).count(b"\n"))
        return write(fd, data)

    monkeypatch.setattr(os, "write", count)
    good = [JournalLine(task=index, round=0, state=LineState.COMPLETE) for index in range(4)]
    bad = JournalLine(task=4, round=0, state=LineState.FAILED, error=ERROR)
    scene.settler.settle_call([(task(line.task), line) for line in [*good, bad]])
    assert writes == [4]
    assert scene.written() == [0, 1, 2, 3]


def test_no_line_waits_where_calls_are_announced(tmp_path: Path) -> None:
    scene = Scene(tmp_path, task_timeout_s=100.0)
    scene.settler.end_stretch(0.0, calls=100)
    scene.complete(0)
    assert scene.written() == [0]


def test_a_task_is_durably_complete_before_what_it_kept_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)
    folder = scene.settler.scratch.of(Task(1, "t1", None, 1.0))
    scene.settler.end_stretch(0.0, calls=100)
    fdatasync = os.fdatasync
    synced = []

    def watch(fd: int) -> None:
        fdatasync(fd)
        synced.append((scene.written(), folder.is_dir()))

    monkeypatch.setattr(os, "fdatasync", watch)
    scene.complete(0)
    scene.complete(1)
    assert synced == [([0, 1], True)]
    assert not folder.exists()
    scene.complete(2)
    assert len(synced) == 1, "of a task that kept nothing nobody waits"


def test_a_failure_takes_the_lines_that_wait_along(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.settler.end_stretch(0.0, calls=100)
    scene.complete(0)
    scene.fail(1)
    scene.judge()
    assert scene.written() == [0, 1]
    assert names(scene.layout.failed_tasks) == ["t1.json"]
    assert (scene.doing.complete, scene.doing.failed) == (1, 1)


def test_what_was_not_settled_is_released(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.complete(3)
    scene.fail(0)
    assert indices(scene.settler.release()) == [1, 2, 4, 5, 6, 7, 8, 9]
    assert scene.settler.release() == []


def test_a_task_that_is_tried_again_has_no_verdict_and_calls_are_announced(tmp_path: Path) -> None:
    scene = Scene(tmp_path, retries=1)
    scene.settler.end_stretch(0.0, calls=100)
    assert not scene.settler.is_announcing
    before = time.monotonic()
    scene.fail(4)
    assert scene.settler.is_announcing
    assert scene.written() == []
    assert b'"deferred"' in lines_of(scene.layout)[0]
    due_in_s = scene.backlog.due_in_s()
    assert due_in_s is not None
    assert due_in_s < 1.5
    assert time.monotonic() + due_in_s - before > 0.5
    assert 4 not in indices(scene.settler.release())
    assert indices(scene.backlog.release()) == [4]
    scene.settler.take_in_hand([task(4)])
    scene.fail(4)
    scene.judge()
    assert scene.written() == [4], "its second failure is its last"


def test_a_disk_in_trouble_uses_no_try_up_and_ends_no_process_that_works(tmp_path: Path) -> None:
    trouble = Error(kind=ErrorKind.IO, type="OSError", message="nothing is mounted there")
    scene = Scene(tmp_path, patience=2, is_believing=False, retries=1)
    scene.fail(0, trouble)
    scene.judge()
    assert b'"state":"held"' in lines_of(scene.layout)[-1]
    scene.fail(1, trouble)
    scene.judge()
    assert scene.settler.is_out_of_patience, "nobody knows yet whether this process works"
    scene.complete(2)
    for index in (3, 4, 5):
        scene.fail(index, trouble)
        scene.judge()
    assert not scene.settler.is_out_of_patience


def test_an_announcement_names_all_that_is_in_hand(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.settler.announce([task(2), task(3)], loading=[7, 8])
    [line] = lines_of(scene.layout)
    assert b'"started"' in line
    assert b'"task":2' in line
    assert b'"batch":[3,7,8]' in line


def test_no_task_fails_once_the_attempt_was_closed_by_another(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    closing = Closing(attempt=A0, state=AttemptState.FAILED, reason=Reason.LOST, by="test")
    assert publish_closing(scene.layout, closing, [])
    scene.fail(0)
    scene.judge()
    assert scene.written() == []
    assert scene.standing.was_closed_meanwhile()


@pytest.mark.parametrize(("exit_code", "left"), [(None, 1), (7, 7)])
def test_the_exit_code_is_that_of_the_last_task(
    tmp_path: Path, exit_code: int | None, left: int
) -> None:
    scene = Scene(tmp_path)
    assert scene.settler.exit_code == 1
    scene.complete(0)
    assert scene.settler.exit_code == 0
    error = Error(kind=ErrorKind.EXIT, type="CommandFailed", message="", exit_code=exit_code)
    scene.settler.settle(task(1), JournalLine(task=1, round=0, state=LineState.FAILED, error=error))
    scene.judge()
    assert scene.settler.exit_code == left


def test_a_failure_is_held_and_its_task_is_given_back_where_a_stop_is_told_in_time(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path)
    scene.fail(0)
    scene.settler.judge_waiting()
    assert scene.written() == []
    assert 0 not in indices(scene.settler.release())
    scene.drain.request()
    wait_until(lambda: (scene.settler.waits_for_s() or 0.0) <= 0.0)
    scene.settler.judge_waiting()
    assert scene.written() == []
    assert indices(scene.settler.release_waiting()) == [0]
    assert scene.settler.release_waiting() == []


def test_a_task_that_fails_during_a_drain_stays_in_hand(tmp_path: Path) -> None:
    scene = Scene(tmp_path, retries=1)
    scene.drain.request()
    scene.fail(0)
    scene.complete(1)
    assert scene.written() == [1]
    assert indices(scene.settler.release()) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert scene.backlog.due_in_s() is None, "no try was counted"


def test_no_more_is_run_while_many_failures_are_held(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for _ in range(MOST_WAITING - 1):
        scene.settler.take_in_hand([task(0)])
        scene.fail(0)
    assert not scene.settler.is_full
    scene.settler.take_in_hand([task(0)])
    scene.fail(0)
    assert scene.settler.is_full


def deferred(scene: Scene) -> list[Any]:
    """What the journal says of calls that gave no verdict."""
    found = [msgspec.json.decode(line) for line in lines_of(scene.layout)]
    return [line for line in found if line["state"] == "deferred"]


@pytest.mark.parametrize("kind", [ErrorKind.EXCEPTION, ErrorKind.NOT_DONE, ErrorKind.RESTART])
def test_of_a_call_without_a_verdict_the_journal_tells_when_it_was(
    tmp_path: Path, kind: ErrorKind
) -> None:
    scene = Scene(tmp_path, retries=1)
    # A fresh process is given to whom has used the one that he has.
    scene.complete(0)
    error = Error(kind=kind, type="ValueError", message="")
    failed = LineState.FAILED
    verdict = JournalLine(
        task=4, round=0, state=failed, error=error, start=1700000000.5, seconds=2.5
    )
    scene.settler.settle(task(4), verdict)
    [line] = deferred(scene)
    assert (line["task"], line["start"], line["seconds"]) == (4, 1700000000.5, 2.5)
    assert ("error" in line) == (kind is ErrorKind.EXCEPTION)


def test_of_a_batch_that_is_split_and_a_task_that_waits_the_journal_tells_when_they_were(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path)
    scene.settler.note_split([task(1), task(2)], ERROR, Span(1700000000.5, 1.25))
    scene.settler.is_announcing = True
    scene.settler.pause(task(3), Span(1700000009.5, 4.0))
    split, paused = deferred(scene)
    assert (split["task"], split["batch"]) == (1, [2])
    assert (split["start"], split["seconds"]) == (1700000000.5, 1.25)
    assert split["error"]["type"] == "ValueError"
    assert (paused["task"], paused["start"], paused["seconds"]) == (3, 1700000009.5, 4.0)
