"""Which rank a slot's attempts are: a number that nobody else has, and that nobody waits for."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from spooling import (
    A0,
    A1,
    B0,
    C0,
    admit,
    begin,
    close,
    dead_process,
    elsewhere,
    intend,
    living_process,
    make_spool,
    say_ended,
    view_of,
)

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.ranks import Ranks
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.records import Identity
from gpuspool.spool.states import Life
from gpuspool.spool.view import View

OURS = 5
FIRST, SECOND = Slot(0), Slot(1)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 4)


@pytest.fixture
def living() -> Iterator[Identity]:
    with living_process() as who:
        yield who


def ranks_of(layout: Layout) -> Ranks:
    return ranks_in(view_of(layout))


def ranks_in(view: View) -> Ranks:
    return Ranks(view, FailureDetector(view), OURS)


def first_of(ranks: Ranks, slot: Slot = FIRST, count: int = 1) -> list[int]:
    """The ranks that a slot tries first."""
    return list(itertools.islice(ranks.candidates(slot), count))


def launch(layout: Layout, attempt: str, parent: Identity, epoch: int) -> None:
    """Let there be an attempt of a parent."""
    if not layout.parent(epoch).exists():
        admit(layout, epoch, parent)
    intend(layout, attempt, epoch=epoch, parent=parent)
    begin(layout, attempt)


def test_in_a_new_run_the_slots_get_the_lowest_numbers(layout: Layout) -> None:
    ranks = ranks_of(layout)
    assert first_of(ranks, count=3) == [0, 1, 2]
    ranks.take(FIRST, 0)
    assert first_of(ranks, SECOND) == [1]
    ranks.take(SECOND, 1)
    assert first_of(ranks, FIRST) == [0], "a slot keeps its own"
    assert first_of(ranks, SECOND) == [1]


def test_a_slot_keeps_its_number_and_takes_another_only_where_that_is_taken(layout: Layout) -> None:
    ranks = ranks_of(layout)
    ranks.take(FIRST, 3)
    ranks.take(SECOND, 0)
    assert first_of(ranks, count=3) == [3, 1, 2]
    ranks.take(FIRST, 1)
    assert first_of(ranks) == [1]


def test_a_number_whose_attempt_is_open_is_not_taken(layout: Layout, living: Identity) -> None:
    """Whether it lives or not: whoever may, closes it first."""
    launch(layout, A0, dead_process(), 0)
    launch(layout, B0, living, 1)
    assert first_of(ranks_of(layout)) == [2]


@pytest.mark.parametrize("how", ["dead", "ended"])
def test_a_number_whose_attempts_are_closed_is_taken_once_its_parent_is_gone(
    layout: Layout, living: Identity, how: str
) -> None:
    launch(layout, A0, dead_process() if how == "dead" else living, 0)
    launch(layout, B0, living, 1)
    view = view_of(layout)
    close(view, A0)
    close(view, B0)
    if how == "ended":
        say_ended(layout, 0)
    assert first_of(ranks_of(layout), count=2) == [0, 2], "a living parent may go on with its own"


def test_the_last_attempt_of_a_number_tells_whose_it_is(layout: Layout, living: Identity) -> None:
    launch(layout, A0, dead_process(), 0)
    close(view_of(layout), A0)
    launch(layout, A1, living, 1)
    close(view_of(layout), A1)
    assert first_of(ranks_of(layout)) == [1]
    say_ended(layout, 1)
    assert first_of(ranks_of(layout)) == [0]


def test_nobody_waits_for_the_number_of_somebody_elsewhere(layout: Layout) -> None:
    """Nothing is proved of that one yet, and to wait for a proof would leave devices idle."""
    launch(layout, A0, elsewhere(), 0)
    launch(layout, B0, elsewhere(1), 1)
    close(view_of(layout), B0)
    assert first_of(ranks_of(layout)) == [2]


def test_of_its_own_numbers_a_parent_takes_those_that_no_slot_has(layout: Layout) -> None:
    with living_process() as other:
        launch(layout, A0, other, OURS)
        launch(layout, B0, other, OURS)
        view = view_of(layout)
        close(view, A0)
        close(view, B0)
        ranks = ranks_of(layout)
        ranks.take(SECOND, 0)
        assert first_of(ranks, FIRST) == [1]


def test_an_intent_that_cannot_be_read_keeps_its_number_until_a_lease_is_over(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(layout, A0, dead_process(), 0)
    layout.intent(A0).write_bytes(b"damaged")
    close(view_of(layout), A0)
    ranks = ranks_of(layout)
    assert first_of(ranks) == [1]
    monkeypatch.setattr(FailureDetector, "parent_life", lambda *_: Life.DEAD)
    assert first_of(ranks) == [0]


def test_whoever_finds_a_number_taken_looks_at_the_attempts_again(
    layout: Layout, living: Identity
) -> None:
    view = view_of(layout)
    candidates = ranks_in(view).candidates(FIRST)
    assert next(candidates) == 0
    launch(layout, A0, living, 0)
    launch(layout, B0, living, 0)
    assert next(candidates) == 2, "it knows of both by now"
    launch(layout, C0, living, 0)
    launch(layout, attempt_name(4, 0), living, 0)
    assert [next(candidates), next(candidates)] == [3, 5]


def test_numbers_may_have_gaps_and_these_are_filled(layout: Layout, living: Identity) -> None:
    launch(layout, attempt_name(7, 0), living, 0)
    assert first_of(ranks_of(layout), count=8) == [0, 1, 2, 3, 4, 5, 6, 8]
