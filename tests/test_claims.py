"""Claims: each position of a manifest is taken once, whoever wants it; the chain tells by whom."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spooling import A0, A1, B0, C0, cuts, hidden_files, make_spool, race, watch_opens, write_claim

from gpuspool.spool.claims import (
    FEW,
    FEW_FRACTION,
    LEFT_FRACTION,
    LONG_FRACTION,
    NOBODY,
    RECENT,
    TARGET_S,
    ChainEnd,
    ClaimChain,
    claim_of,
    claim_size,
    parse_start,
    read_claim,
)
from gpuspool.spool.codec import encode
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.records import Claim

M = "rank-0000"


def chain_of(layout: Layout, end: int) -> ClaimChain:
    return ClaimChain(layout, M, end).advance()


def spans(chain: ClaimChain) -> list[tuple[str, int, int]]:
    return [(claim.attempt, claim.start, claim.stop) for claim in chain.claims]


def hammer(root: Path, rank: int, end: int) -> list[tuple[str, int, int]]:
    """Claim pieces of any size until nothing is left; returns what this process got."""
    chain = ClaimChain(Layout(root), M, end)
    attempt = attempt_name(rank, 0)
    got = []
    sizes = random.Random(rank)
    while chain.advance().unclaimed:
        claim = chain.take(attempt, min(chain.next + sizes.randint(1, 5), end))
        if claim is not None:
            got.append((claim.attempt, claim.start, claim.stop))
    return got


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 20)


def test_eight_processes_that_hammer_one_manifest_get_each_task_once(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 400)
    got = race(hammer, *((layout.root, rank, 400) for rank in range(8)))
    everything = sorted((claim for part in got for claim in part), key=lambda claim: claim[1])
    positions = [position for _, start, stop in everything for position in range(start, stop)]
    assert positions == list(range(400))
    assert spans(chain_of(layout, 400)) == everything, "a chain read afresh tells the same"
    assert sum(bool(part) for part in got) > 1
    assert hidden_files(layout.root) == []


def test_a_claim_starts_where_the_last_one_stops(layout: Layout) -> None:
    chain = chain_of(layout, 20)
    assert (chain.next, chain.unclaimed) == (0, 20)
    for stop in (4, 5, 20):
        claim = chain.take(A0, stop)
        assert claim is not None
        assert (claim.attempt, claim.stop) == (A0, stop)
    assert (chain.next, chain.unclaimed) == (20, 0)
    assert spans(chain_of(layout, 20)) == [(A0, 0, 4), (A0, 4, 5), (A0, 5, 20)]


def test_who_comes_second_gets_nothing_and_reads_on(layout: Layout) -> None:
    first = chain_of(layout, 20)
    second = chain_of(layout, 20)
    assert first.take(A0, 8) is not None
    assert second.take(B0, 3) is None
    assert spans(second) == [(A0, 0, 8)]
    assert second.take(B0, 10) is not None
    assert spans(first.advance()) == [(A0, 0, 8), (B0, 8, 10)]


def test_the_folder_of_claims_is_made_when_it_is_needed(layout: Layout) -> None:
    assert chain_of(layout, 20).take(A0, 1) is not None
    assert read_claim(layout, M, 0, 20) is not None


def test_a_claim_cut_at_any_byte_is_whole_or_nobodys(layout: Layout) -> None:
    claim = Claim(attempt=A0, start=0, stop=8, at=1700000000.5)
    write_claim(layout, M, 8, Claim(attempt=B0, start=8, stop=20, at=1.0))
    data = encode(claim)
    for cut in cuts(data):
        write_claim(layout, M, 0, cut)
        found = read_claim(layout, M, 0, 20)
        if cut + b"\n" == data:
            assert found == claim
        else:
            assert found is not None
            assert (found.attempt, found.start, found.stop) == (NOBODY, 0, 8)
        assert spans(chain_of(layout, 20))[1:] == [(B0, 8, 20)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        Claim(attempt="somebody", start=4, stop=8, at=1.0),
        Claim(attempt=A0, start=5, stop=8, at=1.0),
        Claim(attempt=A0, start=4, stop=4, at=1.0),
        Claim(attempt=A0, start=4, stop=3, at=1.0),
        Claim(attempt=A0, start=4, stop=21, at=1.0),
    ],
    ids=[
        "empty",
        "zeroed",
        "no attempt",
        "another start",
        "no position",
        "backwards",
        "beyond the end",
    ],
)
def test_an_unreadable_claim_is_nobodys_and_reaches_to_the_next_listed_start(
    layout: Layout, data: bytes | Claim
) -> None:
    write_claim(layout, M, 0, Claim(attempt=A0, start=0, stop=4, at=1.0))
    write_claim(layout, M, 4, data)
    write_claim(layout, M, 12, Claim(attempt=A0, start=12, stop=14, at=1.0))
    write_claim(layout, M, 10, Claim(attempt=B0, start=10, stop=12, at=1.0))
    assert spans(chain_of(layout, 20)) == [(A0, 0, 4), (NOBODY, 4, 10), (B0, 10, 12), (A0, 12, 14)]


def test_an_unreadable_last_claim_reaches_to_the_end_until_a_later_one_is_listed(
    layout: Layout,
) -> None:
    """Nobody claims its positions again in this manifest; the sweep finds their tasks."""
    write_claim(layout, M, 0, Claim(attempt=A0, start=0, stop=4, at=1.0))
    write_claim(layout, M, 4, b"")
    chain = chain_of(layout, 20)
    assert spans(chain) == [(A0, 0, 4), (NOBODY, 4, 20)]
    assert chain.unclaimed == 0
    write_claim(layout, M, 9, Claim(attempt=B0, start=9, stop=11, at=1.0))
    assert spans(chain.advance()) == [(A0, 0, 4), (NOBODY, 4, 9), (B0, 9, 11)]
    assert chain.unclaimed == 9


def test_a_claim_that_vanished_opens_its_positions_again(layout: Layout) -> None:
    for start, stop in ((0, 4), (4, 8), (8, 20)):
        write_claim(layout, M, start, Claim(attempt=A0, start=start, stop=stop, at=1.0))
    layout.claim(M, 4).unlink()
    chain = chain_of(layout, 20)
    assert (chain.next, chain.unclaimed) == (4, 16)
    assert chain.take(B0, 8) is not None
    assert spans(chain.advance()) == [(A0, 0, 4), (B0, 4, 8), (A0, 8, 20)]


def test_foreign_names_among_claims_are_ignored(layout: Layout) -> None:
    write_claim(layout, M, 0, b"")
    folder = layout.claims(M)
    for name in (".nfs0000000123", ".000000002.17.0.ab", "notes.txt", "000000003.bak", "³", "-1"):
        (folder / name).write_bytes(b"?")
    (folder / "folder").mkdir()
    assert spans(chain_of(layout, 20)) == [(NOBODY, 0, 20)]
    assert parse_start("000000120") == 120
    assert {parse_start(name) for name in ("³", "-1", "", "12a")} == {None}


positive = st.floats(1e-12, 1e12)


@given(left=st.integers(1, 10**6), batch=st.integers(1, 5000))
def test_one_batch_is_claimed_while_the_rate_is_unknown(left: int, batch: int) -> None:
    assert claim_size(left, batch, None) == min(batch, left)


@given(
    left=st.integers(1, 10**6),
    batch=st.integers(1, 5000),
    longest=positive | st.just(0.0),
    part=st.floats(0, 1),
    claimers=st.integers(1, 1024),
)
def test_a_claim_is_whole_batches_of_at_most_a_fraction_and_a_target_of_time(
    left: int, batch: int, longest: float, part: float, claimers: int
) -> None:
    shortest = longest * part
    size = claim_size(left, batch, (longest, shortest), claimers)
    assert 1 <= size <= left
    assert size % batch == 0 or size == left
    assert size >= min(batch, left)
    if size > batch:
        assert size * claimers <= left / LEFT_FRACTION
        if left <= FEW * claimers:
            assert size * claimers <= left / FEW_FRACTION
        target = max(TARGET_S[0], left * shortest / (LONG_FRACTION * claimers))
        assert size * longest <= min(target, TARGET_S[1]) * 1.000001


def size_of(left: int, batch: int, seconds: float, claimers: int = 1) -> int:
    return claim_size(left, batch, (seconds, seconds), claimers)


def test_fast_tasks_are_claimed_by_the_fraction_and_slow_ones_singly() -> None:
    assert size_of(8000, 1, 1e-6) == 2000
    assert size_of(8000, 32, 1e-6) == 1984
    assert size_of(800, 1, 0.01) == 50
    assert size_of(256, 1, 1e-6) == 16
    assert size_of(8000, 1, 30.0) == 1
    assert size_of(8000, 32, 30.0) == 32
    assert size_of(5, 32, 30.0) == 5
    assert size_of(3, 1, 1e-6) == 1


def test_of_few_tasks_each_is_claimed_alone() -> None:
    """Whatever is claimed waits for what was claimed before, which may take unexpectedly long."""
    assert [size_of(left, 1, 1e-6) for left in (31, 20, 1)] == [1, 1, 1]


def test_the_more_claimers_a_manifest_has_the_less_each_takes() -> None:
    sizes = [size_of(8000, 1, 1e-6, claimers) for claimers in (1, 2, 10, 4000)]
    assert sizes == [2000, 1000, 200, 1]


def test_in_a_long_run_claims_are_longer() -> None:
    """Fewer claims are made where each is still a small part of what is left."""
    assert [size_of(left, 1, 0.1) for left in (100, 1000, 6400, 10**6)] == [5, 15, 100, 100]
    assert claim_size(6400, 1, (0.1, 0.001)) == 5, "by the shortest: most may be as short"


@given(stops=st.sets(st.integers(1, 199), max_size=90), read=st.integers(0, 90))
def test_who_skips_comes_to_the_same_end_as_who_reads_every_claim(
    tmp_path_factory: pytest.TempPathFactory, stops: set[int], read: int
) -> None:
    layout = make_spool(tmp_path_factory.mktemp("s") / "s", 200)
    skipping = ChainEnd(layout, M, 200)
    for number, stop in enumerate(sorted(stops)):
        assert chain_of(layout, 200).take(attempt_name(number % 9, 0), stop) is not None
        if number == read:
            assert skipping.look().next == stop
    assert skipping.look().next == chain_of(layout, 200).next
    assert len(skipping._recent) <= 2 * RECENT
    assert skipping.claimers("rank-0099.a00") <= 10


def test_who_skips_passes_over_a_lost_claim(layout: Layout) -> None:
    chain = chain_of(layout, 20)
    for stop in range(1, 13):
        assert chain.take(A0, stop) is not None
    layout.claim(M, 6).unlink()
    assert ChainEnd(layout, M, 20).look().next == 12
    assert chain_of(layout, 20).next == 6


def test_who_skips_does_not_fall_back_to_a_claim_that_another_covers(layout: Layout) -> None:
    """A power cut took one claim, whose positions were claimed again together with later ones. One
    of the claims behind it is still there, and the last one cannot be read.
    """
    for start, stop in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 9), (6, 7)):
        write_claim(layout, M, start, Claim(attempt=A0, start=start, stop=stop, at=0.0))
    assert ChainEnd(layout, M, 10).look().next == 9
    write_claim(layout, M, 9, b'{"attempt":"rank')
    skipping = ChainEnd(layout, M, 10)
    assert [skipping.look().next for _ in range(3)] == [10, 10, 10]


def test_the_claimers_of_a_manifest_are_told_by_its_last_claims(layout: Layout) -> None:
    chain = ChainEnd(layout, M, 20)
    assert chain.claimers(A0) == 1
    for stop, attempt in enumerate([A0, B0, B0, A0, C0, B0, C0], 1):
        assert chain.take(attempt, stop) is not None
    assert [chain.claimers(attempt) for attempt in (A0, B0, C0, A1)] == [3, 2, 1, 4]


def test_the_claim_on_a_position_is_found_by_names_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = M
    layout = make_spool(tmp_path / "s", 100)
    assert claim_of(layout, name, 0, 100) == (None, 0)
    chain = ClaimChain(layout, name, 100)
    for stop in range(4, 44, 4):
        chain.take(A0, stop)
    opened = watch_opens(monkeypatch)
    for position in (0, 3, 4, 17, 39):
        claim, stop = claim_of(layout, name, position, 100)
        assert claim == chain.claims[position // 4]
        assert stop == claim.stop
    assert claim_of(layout, name, 40, 100) == (None, 40)
    assert claim_of(layout, name, 99, 100) == (None, 40)
    read = [path for path in opened if Path(path).name.isdigit()]
    assert len(read) == 7, "one claim each"


def test_a_position_of_a_claim_that_cannot_be_read_belongs_to_nobody(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 20)
    write_claim(layout, "rank-0000", 0, b"")
    write_claim(layout, "rank-0000", 8, Claim(attempt=A0, start=8, stop=9, at=0.0))
    claim, stop = claim_of(layout, "rank-0000", 5, 20)
    assert claim is not None
    assert (claim.attempt, stop) == (NOBODY, 8)
