"""Mending: after a power cut no chain of claims offers again what was claimed before."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spooling import A0, B0, begin, close, finish, make_spool, take, view_of, write_claim

from gpuspool.spool.claims import ChainEnd, ClaimChain
from gpuspool.spool.layout import Layout
from gpuspool.spool.mending import mend_claims
from gpuspool.spool.publish import listdir
from gpuspool.spool.records import Claim
from gpuspool.spool.sweep import sweep

M = "rank-0000"


@pytest.fixture(params=[False, True], ids=["checked by lines", "checked as a whole"])
def layout(tmp_path: Path, request: pytest.FixtureRequest) -> Layout:
    return make_spool(tmp_path / "s", 12, has_checksums=request.param)


def chain_of(layout: Layout, end: int = 12) -> ClaimChain:
    return ClaimChain(layout, M, end).advance()


def test_a_whole_chain_needs_no_mending(layout: Layout) -> None:
    writer = begin(layout, A0)
    take(layout, A0, 4)
    take(layout, A0, 8)
    finish(writer, *range(8))
    close(view_of(layout), A0)
    before = listdir(layout.claims(M))
    assert mend_claims(view_of(layout)) == 0
    assert listdir(layout.claims(M)) == before


def test_nothing_is_mended_before_any_attempt_is_closed(layout: Layout) -> None:
    """All that claimed anything are still open, and hold what they claimed."""
    writer = begin(layout, A0)
    take(layout, A0, 4)
    finish(writer, 2)
    layout.claim(M, 0).unlink()
    assert mend_claims(view_of(layout)) == 0


def test_what_was_claimed_behind_a_chain_that_was_cut_is_not_offered_again(layout: Layout) -> None:
    """Task 6 is finished; 4, 5 and 7 were given back, so the orphans manifest offers them."""
    writer = begin(layout, A0)
    take(layout, A0, 4)
    take(layout, A0, 8)
    finish(writer, 0, 1, 2, 3, 6)
    close(view_of(layout), A0)
    layout.claim(M, 4).unlink()
    assert chain_of(layout).next == 4
    view = view_of(layout)
    assert mend_claims(view) == 2
    spans = [(claim.start, claim.stop) for claim in chain_of(layout).claims]
    assert spans == [(0, 4), (4, 7), (7, 8)], "the last position stands in a claim of its own"
    assert view.refresh().unclaimed == 4 + 3
    assert sweep(view) == 0


def test_tasks_of_an_open_attempt_that_lost_its_claim_are_not_offered_again(layout: Layout) -> None:
    """It claimed them once more in another manifest, which is known; nobody else may run them."""
    begin(layout, A0)
    take(layout, A0, 6)
    close(view_of(layout), A0)
    begin(layout, B0)
    take(layout, B0, 6, f"{A0}.orphans")
    layout.claim(M, 0).unlink()
    assert mend_claims(view_of(layout)) == 2
    assert chain_of(layout).next == 6


def test_a_claim_that_the_chain_does_not_reach_any_more_is_reached_again(layout: Layout) -> None:
    begin(layout, A0)
    close(view_of(layout), A0)
    write_claim(layout, M, 5, Claim(attempt=B0, start=5, stop=9, at=1.0))
    assert mend_claims(view_of(layout)) == 2
    assert chain_of(layout).next == ChainEnd(layout, M, 12).look().next == 9


@settings(max_examples=40, deadline=None)
@given(
    stops=st.sets(st.integers(1, 80), min_size=1, max_size=60),
    lost=st.sets(st.integers(0, 59), max_size=8),
    are_last_lost=st.booleans(),
    done=st.sets(st.integers(0, 79), min_size=1, max_size=60),
)
def test_claims_that_a_power_cut_took_are_mended_so_that_nothing_done_is_claimed_again(
    tmp_path_factory: pytest.TempPathFactory,
    stops: set[int],
    lost: set[int],
    are_last_lost: bool,
    done: set[int],
) -> None:
    """Who reads every claim and who skips some then find the same end, behind all that is done."""
    layout = make_spool(tmp_path_factory.mktemp("s") / "s", 90)
    writer = begin(layout, A0)
    for stop in sorted(stops):
        take(layout, A0, stop)
    finish(writer, *(index for index in done if index < max(stops)))
    close(view_of(layout), A0, by="resume")
    starts = [0, *sorted(stops)[:-1]]
    gone = [starts[number % len(starts)] for number in lost]
    if are_last_lost:
        gone += starts[-3:]
    for start in gone:
        layout.claim(M, start).unlink(missing_ok=True)
    mend_claims(view_of(layout))
    end = ClaimChain(layout, M, 90).advance().next
    assert ChainEnd(layout, M, 90).look().next == end
    assert all(index < end for index in done if index < max(stops))
    assert mend_claims(view_of(layout)) == 0
