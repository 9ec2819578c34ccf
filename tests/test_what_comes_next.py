"""What `status` and `explain` say of those that stand still, and what comes next, on spools made by
hand.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spooling import (
    A0,
    admit,
    begin,
    dead_process,
    finish,
    intend,
    make_spool,
    say_idle,
    take,
    view_of,
)
from test_status import beat, close_as, rows

import gpuspool
from gpuspool.orchestrator.report.status import status
from gpuspool.orchestrator.text.forecast import Outlook
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout
from gpuspool.spool.parents import being_parent
from gpuspool.spool.states import Reason


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """A spool of six tasks in two lists, with this process as the parent of epoch 0 at work."""
    made = make_spool(tmp_path / "s", 3, 3)
    admit(made, 0, myself())
    with being_parent(made, 0):
        yield made


def next_of(layout: Layout, **what: Any) -> str:
    return str(gpuspool.explain(layout.root, **what)["next"])


def test_a_rank_whose_process_is_gone_is_told_of_while_its_parent_is_at_work(
    layout: Layout,
) -> None:
    intend(layout, A0)
    assert start_journal(layout, A0, dead_process()) is not None
    [row] = rows(status(view_of(layout)))
    assert (row["state"], row["note"]) == ("lost", "its process is gone")
    assert next_of(layout, rank=0) == "its parent gives out again what it had"


def test_a_rank_that_tries_what_failed_elsewhere_is_doubted_until_it_completes_a_task(
    layout: Layout,
) -> None:
    intend(layout, A0, is_doubted=True)
    writer = begin(layout, A0)
    beat(layout, A0)
    assert rows(status(view_of(layout)))[0]["note"] == "doubted"
    take(layout, A0, 2)
    finish(writer, 0)
    assert rows(status(view_of(layout)))[0]["note"] == ""


def test_a_rank_that_was_never_started_leaves_its_list_to_others(layout: Layout) -> None:
    assert next_of(layout, rank=1) == "other ranks take what is in its list"


@pytest.mark.parametrize(
    ("reason", "is_on_condition"),
    [(Reason.LOAD, True), (Reason.CRASH, True), (Reason.DRAINED, True), (Reason.KILLED, True),
     (Reason.TIMEOUT, True), (Reason.RECYCLED, False)],
)  # fmt: skip
def test_of_a_rank_whose_process_ended_it_is_told_whether_another_one_comes(
    layout: Layout, reason: Reason, is_on_condition: bool
) -> None:
    intend(layout, A0)
    begin(layout, A0)
    close_as(layout, A0, reason)
    told = next_of(layout, rank=0)
    assert told.startswith("its parent starts another")
    assert told.endswith("; other ranks do its tasks meanwhile")
    assert ("unless it drains" in told) is (reason in (Reason.DRAINED, Reason.KILLED))
    assert (told.partition(";")[0] != "its parent starts another") is is_on_condition


def test_of_a_rank_whose_parent_is_gone_it_is_told_that_others_do_its_tasks(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 3)
    admit(layout, 0, dead_process())
    intend(layout, A0, parent=dead_process())
    begin(layout, A0)
    close_as(layout, A0, Reason.CRASH)
    assert "nobody is at work" in next_of(layout, rank=0)
    admit(layout, 1, myself())
    with being_parent(layout, 1):
        told = next_of(layout, rank=0)
    assert told == "its parent is gone; others have their own ranks and do its tasks"


def test_a_task_that_was_let_go_and_that_no_list_offers_is_given_out_by_whoever_looks(
    layout: Layout,
) -> None:
    intend(layout, A0)
    writer = begin(layout, A0)
    take(layout, A0, 3)
    finish(writer, 0, 1)
    say_idle(writer, 1)
    story = gpuspool.explain(layout.root, key="t2")
    assert story["state"] == "stranded"
    assert story["next"] == "the next look that finds nothing else to claim gives it out again"


def test_a_run_that_drains_has_no_time_left_and_no_rate(layout: Layout) -> None:
    outlook = Outlook(tasks_per_s=2.0, left_s=6.0)
    now = status(view_of(layout), outlook=lambda _: outlook)
    assert (now["left_s"], now["tasks_per_s"]) == (6.0, 2.0)
    (layout.control / "leave.0000").touch()
    now = status(view_of(layout), outlook=lambda _: outlook)
    assert (now["left_s"], now["tasks_per_s"]) == (None, None)
