"""What `explain` tells of spools made by hand: what no real run shows at will."""

import time
from pathlib import Path
from typing import Any

import pytest
from spooling import (
    A0,
    A1,
    B0,
    admit,
    begin,
    elsewhere,
    finish,
    intend,
    make_spool,
    say_ended,
    take,
    task,
)
from test_status import CRASH, beat, close_as, rows

from gpuspool.orchestrator.report.explain import explain_attempt, explain_rank, explain_task
from gpuspool.orchestrator.report.status import status
from gpuspool.orchestrator.report.story import Step, Story, in_order, story_json
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import publish_orphans, publish_ruling
from gpuspool.spool.parents import being_parent
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
        ([CRASH], "its parent starts another, as far as --max-restarts 3 allows; other ranks"),
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
    assert story.state == "stopped"
    assert story.next == "its parent starts another, once there is something to do"


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
