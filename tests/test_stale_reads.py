"""A spool that is read through a mount which shows files as they were some time ago.

The mount is a FUSE file system of our own (`torture/stale.py`) that keeps attributes and what it
did not find for some seconds, as NFS does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import (
    Box,
    count_lines,
    ran,
    start_gated,
    wait_until,
    wait_until_told_to_drain,
    waiting,
)
from spooling import (
    A0,
    B0,
    begin,
    close,
    finish,
    indices,
    intend,
    make_spool,
    say_idle,
    take,
    verdicts,
)
from torture import mounts, stale

from gpuspool.spool.closing import publish_closing
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Closing
from gpuspool.spool.states import AttemptState, Reason
from gpuspool.spool.sweep import stranded_tasks
from gpuspool.spool.view import View, load_run

# For so long the mount may show an older state: long enough that a busy machine does not outlive
# it between two steps of a test, where a test needs that.
VALID_S = 4.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for spools, which is seen as it was some time ago at `<folder>-seen`."""
    why = stale.why_not() or mounts.why_not()
    if why:
        pytest.skip(why)
    folder = tmp_path / "real"
    folder.mkdir()
    with stale.stale(folder, tmp_path / "real-seen", VALID_S):
        yield folder


def seen(path: Path) -> Path:
    """The same spool through the mount."""
    return path.parent.with_name("real-seen") / path.name


def view_through(layout: Layout) -> View:
    there = Layout(seen(layout.root))
    return View(there, load_run(there))


def close_itself(layout: Layout, attempt: str, journal: JournalWriter) -> None:
    closing = Closing(
        attempt=attempt,
        state=AttemptState.STOPPED,
        reason=Reason.DRAINED,
        by=attempt,
        journal_bytes=journal.n_bytes,
    )
    assert publish_closing(layout, closing, [])


def old_look_at_a_closed_attempt(layout: Layout) -> View:
    """A view that saw the closing of an attempt, and yet its journal as it was before."""
    intend(layout, A0)
    journal = begin(layout, A0)
    take(layout, A0, 80, number=1)
    finish(journal, 0, 1, 2)
    view = view_through(layout)
    while True:
        # The kernel knows the journal's size anew once it has forgotten it; then it has the whole
        # time to be out of date.
        before = view.refresh().ledger.n_complete
        finish(journal, *range(before, before + 1))
        if view.refresh().ledger.n_complete == before:
            break
    finish(journal, *range(before + 1, 80))
    close_itself(layout, A0, journal)
    return view


def test_a_closed_journal_that_is_shorter_than_its_closing_says_is_read_again(place: Path) -> None:
    layout = make_spool(place / "s", 80)
    view = old_look_at_a_closed_attempt(layout)
    assert view.refresh().closed.keys() == {A0}
    wait_until(lambda: view.refresh().ledger.is_finished)
    assert verdicts(view) == "c" * 80
    assert view.unsettled == frozenset()


def test_what_a_closed_journal_may_tell_yet_is_not_given_out_again(place: Path) -> None:
    layout = make_spool(place / "s", 80)
    view = old_look_at_a_closed_attempt(layout)
    stranded: set[int] = set()

    def is_finished() -> bool:
        view.refresh()
        stranded.update(indices(stranded_tasks(view)))
        return view.ledger.is_finished

    wait_until(is_finished)
    assert stranded == set()


def test_a_second_view_waits_no_longer_than_the_first_has(place: Path) -> None:
    """Else whoever looks again before a sweep would never sweep what a disk has really lost."""
    layout = make_spool(place / "s", 4)
    journal = begin(layout, A0)
    take(layout, A0, 4, number=1)
    close_itself(layout, A0, journal)
    path = layout.journal(A0)
    path.write_bytes(b"")
    view = view_through(layout).refresh()
    assert view.unsettled == {A0}
    view._closed_at[A0] -= view.staleness_s
    assert view.refresh().unsettled == frozenset()
    assert indices(stranded_tasks(view)) == [0, 1, 2, 3]
    assert indices(stranded_tasks(view.again())) == [0, 1, 2, 3]


def test_wait_does_not_end_before_all_verdicts_are_visible(box: Box, place: Path) -> None:
    """Most tasks were finished and not seen, and `wait` said that the run had stopped."""
    spool = place / "S"
    started, _ = start_gated(box, ["go"] * 3 + ["wait"] * 16, spool=str(spool))
    wait_until(lambda: len(waiting(box)) == 1 and count_lines(spool) == 4)
    waiter = box.start("wait", seen(spool))
    wait_until(lambda: count_lines(seen(spool)) == 4)
    (box / "gate").touch()
    started.wait(0)
    assert len(ran(box)) == 19
    waiter.wait(0)


def test_wait_on_a_run_that_was_drained_takes_the_summary_for_a_second_opinion(
    box: Box, place: Path
) -> None:
    """It ends as soon as it sees as many verdicts as the orchestrator counted."""
    spool = place / "S"
    started, _ = start_gated(box, ["go"] * 3 + ["wait"] * 5, spool=str(spool))
    wait_until(lambda: len(waiting(box)) == 1 and count_lines(spool) == 4)
    waiter = box.start("wait", seen(spool))
    box.run("drain", spool)
    wait_until_told_to_drain(spool)
    (box / "gate").touch()
    started.wait(4)
    waiter.wait(4)
    assert view_through(Layout(spool)).refresh().ledger.n_complete == 4


def test_a_closing_by_somebody_else_says_how_far_it_read(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 4)
    intend(layout, B0)
    journal = begin(layout, B0)
    take(layout, B0, 4)
    finish(journal, 0, 1)
    view = View(layout, load_run(layout)).refresh()
    closing = close(view, B0)
    assert closing.journal_bytes == layout.journal(B0).stat().st_size
    say_idle(journal, 1)
    finish(journal, 2)
    assert verdicts(view.refresh()) == "ccc-", "what a zombie writes later counts as well"
