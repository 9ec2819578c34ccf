"""What `explain` tells of spools made by hand: what no real run shows at will."""

import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from spooling import (
    A0,
    A1,
    B0,
    admit,
    begin,
    dead_process,
    elsewhere,
    finish,
    intend,
    make_spool,
    say_ended,
    take,
    task,
)
from test_status import CRASH, beat, close_as, rows, stopped_process, touch_beat

from gpuspool.orchestrator.report.explain import explain_attempt, explain_rank, explain_task
from gpuspool.orchestrator.report.status import status
from gpuspool.orchestrator.report.story import Step, Story, in_order, story_json
from gpuspool.spool.codec import seal_pretty
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import publish_orphans, publish_ruling
from gpuspool.spool.parents import being_parent
from gpuspool.spool.publish import replace
from gpuspool.spool.records import Closing, Error, JournalLine, Ruling, TaskLine
from gpuspool.spool.states import AttemptState, ErrorKind, LineState, Phase, Reason
from gpuspool.spool.view import load_view, open_view


def of_rank(layout: Layout, rank: int) -> Story:
    return explain_rank(load_view(layout.root, reads_claims=False), rank)


def of_task(layout: Layout, word: str) -> Story:
    return explain_task(load_view(layout.root, reads_claims=False), word)


def texts(story: Story) -> list[str]:
    return [step.text for step in story.steps]


# A rank whose process ended.


@pytest.mark.parametrize(
    ("closings", "then"),
    [
        (
            [CRASH] * 2,
            "its parent starts another (--max-restarts allows 3 in vain, and this was number 2); ",
        ),
        ([CRASH] * 4, "its parent starts no other; other ranks do its tasks"),
        ([{"reason": Reason.RECYCLED}], "its parent starts another; other ranks"),
        ([{"reason": Reason.DRAINED}], "its parent starts another, unless it drains; other"),
        ([{"reason": Reason.HANDOVER}], "its parent decides who tries these tasks"),
        ([{"reason": Reason.FINISHED}], ""),
    ],
    ids=str,
)
def test_a_rank_whose_process_ended_is_called_as_status_calls_it(
    closings: list[dict[str, Any]], then: str, tmp_path: Path
) -> None:
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, myself())
    for number, more in enumerate(closings):
        attempt = f"rank-0000.a{number:02d}"
        intend(layout, attempt)
        begin(layout, attempt)
        close_as(layout, attempt, **more)
    with being_parent(layout, 0):
        [row] = rows(status(open_view(layout.root, reads_claims=False)))
        story = of_rank(layout, 0)
    assert story.state == row["state"]
    assert story.next.startswith(then)
    assert bool(story.next) is bool(then)


def test_a_rank_with_nothing_left_to_claim_is_not_restarting(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, myself())
    intend(layout, A0)
    begin(layout, A0)
    take(layout, A0, 9)
    close_as(layout, A0, Reason.RECYCLED)
    with being_parent(layout, 0):
        story = of_rank(layout, 0)
    assert story.state == "waiting"
    assert story.next == "its parent starts another, once there is something to do"


def test_restarts_that_do_not_count_are_not_counted(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, myself())
    for number in range(5):
        attempt = f"rank-0000.a{number:02d}"
        intend(layout, attempt)
        finish(begin(layout, attempt), number)
        close_as(layout, attempt, **CRASH)
    with being_parent(layout, 0):
        story = of_rank(layout, 0)
    assert story.next == "its parent starts another; other ranks do its tasks meanwhile"


def test_an_attempt_that_another_one_followed_is_told_so(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, myself())
    intend(layout, A0)
    begin(layout, A0)
    close_as(layout, A0, **CRASH)
    intend(layout, A1)
    begin(layout, A1)
    with being_parent(layout, 0):
        story = explain_attempt(load_view(layout.root, reads_claims=False), A0)
    assert (story.state, story.next) == ("failed", f"{A1} came after it")


def test_who_left_doubtful_tasks_is_not_said_to_have_failed_them(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0)
    finish(begin(layout, A0), 0)
    close_as(layout, A0, Reason.HANDOVER)
    [_, ended] = texts(of_rank(layout, 0))
    assert ended.startswith(f"{A0} ended: only doubtful tasks were left, which another process has")


def test_failures_without_a_verdict_are_told_apart_from_failed_tasks(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0)
    writer = begin(layout, A0)
    writer.append(held(time.time(), task(0)))
    finish(writer, 1, state="failed")
    close_as(layout, A0, Reason.FAILURES)
    [_, ended] = texts(of_rank(layout, 0))
    assert ended.endswith("; 0 tasks complete, 1 failed there, 1 failure there without a verdict")


# A rank that lives.


def test_a_rank_is_told_with_its_process_and_that_it_is_doubted(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intent = intend(layout, A0)
    replace(layout.intent(A0), seal_pretty(msgspec.structs.replace(intent, is_doubted=True)))
    writer = begin(layout, A0)
    beat(layout, A0, task=3, task_since=time.time(), in_hand=1)
    who = myself()
    story = of_rank(layout, 0)
    assert story.now.startswith(f"{A0} (pid {who.pid} on {who.host}): it runs t3 since ")
    assert story.facts["attempts"][0]["pid"] == who.pid
    assert "; it is doubted until it completes a task, since tasks failed in its place" in story.now
    finish(writer, 1)
    assert "doubted" not in of_rank(layout, 0).now


def test_what_is_stopped_is_told_with_what_wakes_it(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    with stopped_process() as who:
        admit(layout, 0, who)
        intend(layout, A0, parent=who)
        writer = start_journal(layout, A0, who)
        assert writer is not None
        take(layout, A0, 1)
        writer.append(JournalLine(task=0, round=0, state=LineState.STARTED, start=time.time()))
        beat(layout, A0, who, task=0, task_since=time.time(), in_hand=1)
        for story in (of_rank(layout, 0), of_task(layout, "t0")):
            assert f"its process is stopped, and `kill -CONT {who.pid}` wakes it" in story.now
        assert of_rank(layout, 0).next == (
            "what started the run is stopped, as by Ctrl-Z; `fg` in its shell or "
            f"`kill -CONT {who.pid}` wakes it"
        )


def test_workers_that_drain_without_a_parent_are_not_to_be_drained_again(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    gone = dead_process()
    admit(layout, 0, gone)
    intend(layout, A0, parent=gone)
    begin(layout, A0)
    beat(layout, A0, task=3, task_since=time.time())
    assert of_rank(layout, 0).next.startswith("what started the run is gone, and 1 worker goes on")
    (layout.control / "drain.0000").touch()
    then = of_rank(layout, 0).next
    assert then.startswith("what started the run is gone, and its workers drain: nobody ends one")
    assert then.endswith(" goes on")


@pytest.mark.parametrize("age_s", [None, 500.0])
def test_who_was_never_heard_is_told_apart_from_who_fell_silent(
    age_s: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0, parent=elsewhere())
    assert start_journal(layout, A0, elsewhere(1)) is not None
    beat(layout, A0, elsewhere(1), task=3, task_since=time.time())
    if age_s is not None:
        touch_beat(layout, A0, age_s, monkeypatch)
    told = "was never heard" if age_s is None else "was heard last 500 s ago"
    assert of_rank(layout, 0).now.endswith(f"; it {told}, and is not proved dead")


# What is in hand.


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PUBLISHING])
def test_a_task_that_is_finished_is_not_said_to_run(phase: Phase, tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0)
    writer = begin(layout, A0)
    take(layout, A0, 9)
    beat(layout, A0, task=3, task_since=1700000000.0, in_hand=4, state=phase)
    verb = "publishes the outputs of" if phase is Phase.PUBLISHING else "runs"
    assert f": it {verb} t3 +3 since " in of_rank(layout, 0).now
    assert "and is at task #3" in of_task(layout, "t8").now
    finish(writer, 3, 4, 5, 6)
    assert "it has finished t3 since it told what it is at, " in of_rank(layout, 0).now
    assert ", and has finished task #3 since it told, " in of_task(layout, "t8").now


# Tasks.


def test_a_call_without_a_limit_of_time_is_told_to_have_none(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0)
    writer = begin(layout, A0)
    take(layout, A0, 1)
    writer.append(JournalLine(task=0, round=0, state=LineState.STARTED, start=time.time()))
    then = of_task(layout, "t0").next
    assert then == "nothing ends its call if that hangs: it was started without --task-timeout"


@pytest.mark.parametrize("n_failed", [4, 60])
def test_of_many_attempts_in_which_a_task_failed_few_are_named(
    n_failed: int, tmp_path: Path
) -> None:
    layout = make_spool(tmp_path / "s", 1)
    intend(layout, A0)
    begin(layout, A0)
    take(layout, A0, 1)
    close_as(layout, A0, **CRASH)
    failed_in = tuple((f"rank-0000.a{number:02d}", "0") for number in range(n_failed))
    again = task(0, failed_in=failed_in + failed_in)
    assert publish_ruling(layout, "ruling-01", Ruling(epoch=0, at=time.time()), [again])
    story = of_task(layout, "t0")
    [ruled] = [text for text in texts(story) if "ruled" in text]
    for text in (ruled, story.now):
        assert f"rank-0000.a{n_failed - 1:02d}" in text
        assert len(re.findall(r"rank-0000\.a", text)) == min(n_failed, 4 if n_failed == 4 else 3)
        assert ("and 57 others" in text) is (n_failed == 60)
        assert "ruling-01" not in ruled


def test_a_task_that_is_not_done_did_not_ask_for_a_fresh_process(tmp_path: Path) -> None:
    """Another one of its attempt did, later."""
    layout = make_spool(tmp_path / "s", 2)
    intend(layout, A0)
    writer = begin(layout, A0)
    take(layout, A0, 2)
    for index in (0, 1):
        writer.append(JournalLine(task=index, round=0, state=LineState.DEFERRED, start=1.7e9))
    error = Error(kind=ErrorKind.RESTART, type="Restart", message="it leaks")
    closing = Closing(
        attempt=A0, state=AttemptState.STOPPED, reason=Reason.RECYCLED, by=A0, error=error
    )
    assert publish_orphans(layout, closing, [task(0), task(1, restarts=1)])
    asked = f"no verdict on {A0}: the job asked for a fresh process"
    assert asked not in texts(of_task(layout, "t0"))
    assert f"no verdict on {A0}: it is not done, or has to run alone, and is called again" in texts(
        of_task(layout, "t0")
    )
    assert asked in texts(of_task(layout, "t1"))


def test_a_run_without_tasks_is_told_so(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 0)
    with pytest.raises(Exception, match=r"has no task '#0'. It has no tasks\."):
        of_task(layout, "#0")
    admit(layout, 0, elsewhere())
    say_ended(layout, 0, "finished")
    story = of_rank(layout, 0)
    assert story.now == "no process of this rank was ever started; its own list is empty"
    assert story.next == ""


# The order of steps.


def held(at: float, line: TaskLine) -> JournalLine:
    error = Error(kind=ErrorKind.EXCEPTION, type="ValueError", message="bad")
    return JournalLine(
        task=0, round=0, state=LineState.HELD, start=at, seconds=1.0, error=error, line=line
    )


@pytest.mark.parametrize("skews_s", [(0, 0), (3600, 0), (-3600, 0), (0, -3600)], ids=str)
def test_steps_stand_in_order_whatever_the_clock_of_a_host_says(
    skews_s: tuple[int, int], tmp_path: Path
) -> None:
    """Two ranks fail a task one after the other. The clock of one of them is wrong."""
    layout = make_spool(tmp_path / "s", 1)
    now = time.time()
    for attempt in (A0, B0):
        intend(layout, attempt)
    first = begin(layout, A0)
    take(layout, A0, 1)
    first.append(held(now + skews_s[0], task(0)))
    again = task(0, failed_in=((A0, "0"),))
    assert publish_ruling(layout, "ruling-01", Ruling(epoch=0, at=now + 3), [again])
    second = begin(layout, B0)
    take(layout, B0, 1, "ruling-01")
    second.append(held(now + skews_s[1] + 4, again))
    story = of_task(layout, "t0")
    assert [step.what for step in story.steps] == [
        *("planned", "claimed", "held"),
        *("ruled", "claimed", "held"),
    ]


def test_of_steps_that_need_each_other_none_is_lost() -> None:
    one = Step(at=2.0, what="a", text="a", makes=("x",), needs=("y",))
    other = Step(at=1.0, what="b", text="b", makes=("y",), needs=("x",))
    last = Step(at=3.0, what="c", text="c", needs=("nothing that is made",))
    found = in_order([one, other, last])
    assert sorted(step.text for step in found) == ["a", "b", "c"]


def test_programs_are_not_told_why_steps_stand_in_their_order() -> None:
    step = Step(at=1.0, what="a", text="a", makes=("x",), needs=("y",))
    story = Story(name="t", state="s", facts={}, steps=[step], now="so")
    assert set(story_json(story, "S")["steps"][0]) == {"at", "what", "text", "attempt", "details"}
