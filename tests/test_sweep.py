"""Sweeping: stranded tasks are published again, once, and no other task is."""

from pathlib import Path

import pytest
from spooling import (
    A0,
    A1,
    B0,
    C0,
    begin,
    close,
    finish,
    indices,
    make_spool,
    orphans_left,
    race,
    say_idle,
    take,
    task,
    together,
    verdicts,
    view_of,
    write_claim,
)

from gpuspool.spool.closing import orphans_of, publish_closing
from gpuspool.spool.codec import decode
from gpuspool.spool.death import Told
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.publish import listdir
from gpuspool.spool.records import Claim, Closing
from gpuspool.spool.sweep import stranded_tasks, sweep

M = "rank-0000"


@pytest.fixture(params=[False, True], ids=["checked by lines", "checked as a whole"])
def layout(tmp_path: Path, request: pytest.FixtureRequest) -> Layout:
    return make_spool(tmp_path / "s", 12, has_checksums=request.param)


def sweep_together(root: Path) -> int:
    view = view_of(Layout(root))
    together()
    return sweep(view)


def lose_claim(layout: Layout, attempt: str, start: int, stop: int) -> None:
    """Close an attempt without this claim of its, which becomes visible afterwards."""
    close(view_of(layout), attempt)
    write_claim(layout, M, start, Claim(attempt=attempt, start=start, stop=stop, at=1.0))


def test_a_claim_that_was_invisible_at_the_close_is_swept_once(layout: Layout) -> None:
    writer = begin(layout, A0)
    take(layout, A0, 4)
    finish(writer, 0, 5)
    lose_claim(layout, A0, 4, 12)
    view = view_of(layout)
    assert indices(orphans_left(layout, A0)) == [1, 2, 3]
    assert sweep(view) == 7
    assert indices(view.manifests["sweep-01"].tasks()) == [4, 6, 7, 8, 9, 10, 11]
    assert sweep(view) == 0
    assert sweep(view_of(layout)) == 0
    assert view.next_numbered("sweep") == "sweep-02"


def test_the_tasks_of_a_claim_that_vanished_are_claimable_again_and_not_swept(
    layout: Layout,
) -> None:
    begin(layout, A0)
    for stop in (4, 8, 12):
        take(layout, A0, stop)
    layout.claim(M, 4).unlink()
    view = view_of(layout)
    close(view, A0)
    assert indices(orphans_left(layout, A0)) == [0, 1, 2, 3]
    assert view.unclaimed == 4 + 8
    assert sweep(view) == 0


@pytest.mark.parametrize("data", [b"", b'{"attempt":"rank-0000.a00","sta', b"\0" * 70])
def test_the_tasks_of_a_damaged_claim_are_swept_once(layout: Layout, data: bytes) -> None:
    writer = begin(layout, A0)
    for stop in (4, 8, 12):
        take(layout, A0, stop)
    write_claim(layout, M, 4, data)
    finish(writer, 0, 4)
    view = view_of(layout)
    assert sweep(view) == 3, "though the attempt lives: nobody holds an unreadable claim"
    assert indices(view.manifests["sweep-01"].tasks()) == [5, 6, 7]
    assert sweep(view) == 0


def test_a_damaged_last_claim_loses_no_task(layout: Layout) -> None:
    begin(layout, A0)
    take(layout, A0, 8)
    take(layout, A0, 10)
    write_claim(layout, M, 8, b"")
    view = view_of(layout)
    assert sweep(view) == 4, "it reaches to the end"
    assert view.unclaimed == 4
    assert sweep(view) == 0


def test_a_claim_of_an_attempt_that_never_began_holds_nothing(layout: Layout) -> None:
    """A flipped bit may make a claim name another attempt, which nobody will ever close."""
    begin(layout, A0)
    take(layout, A0, 8)
    take(layout, A0, 12)
    path = layout.claim(M, 8)
    path.write_bytes(path.read_bytes().replace(b"rank-0000", b"rank-0004"))
    view = view_of(layout)
    assert sweep(view) == 4
    assert indices(view.manifests["sweep-01"].tasks()) == [8, 9, 10, 11]
    assert sweep(view) == 0


def test_what_an_open_attempt_holds_or_nobody_claimed_is_not_swept(layout: Layout) -> None:
    begin(layout, A0)
    take(layout, A0, 5)
    view = view_of(layout)
    assert sweep(view) == 0
    assert listdir(layout.manifests) == ["rank-0000.jsonl"]


def test_an_idle_attempt_does_not_hold_what_it_claimed_before_it_said_so(layout: Layout) -> None:
    writer = begin(layout, A0)
    take(layout, A0, 5, number=1)
    finish(writer, 0, 1, 2)
    begin(layout, B0)
    take(layout, B0, 7, number=1)
    view = view_of(layout)
    assert sweep(view) == 0
    say_idle(writer, 1)
    assert sweep(view) == 2
    assert indices(view.manifests["sweep-01"].tasks()) == [3, 4]
    assert sweep(view) == 0


def test_what_an_attempt_claims_after_it_was_idle_is_its_own(layout: Layout) -> None:
    writer = begin(layout, A0)
    take(layout, A0, 2, number=1)
    say_idle(writer, 1)
    take(layout, A0, 5, number=2)
    assert indices(stranded_tasks(view_of(layout))) == [0, 1]


def test_an_open_attempt_holds_only_the_newest_round(layout: Layout) -> None:
    """It failed the task in round 0 and lives on; the task's round 1 was claimed and lost."""
    writer = begin(layout, A0)
    take(layout, A0, 12)
    finish(writer, *range(11))
    finish(writer, 11, state="failed")
    assert publish_manifest(layout, "retry-01", [task(11, round=1, kills=1)])
    write_claim(layout, "retry-01", 0, b"")
    view = view_of(layout)
    assert sweep(view) == 1
    assert list(view.manifests["sweep-01"].tasks()) == [task(11, round=1, kills=1)]


def test_a_swept_task_keeps_its_highest_round_and_where_it_failed(layout: Layout) -> None:
    known = [
        task(3, round=1),
        task(3, round=1, failed_in=((B0, ""),), careful=True),
        task(3, failed_in=((B0, ""), (C0, "")), kills=2),
    ]
    assert publish_manifest(layout, "retry-01", known)
    begin(layout, A0)
    take(layout, A0, 12)
    close(view_of(layout), A0)
    begin(layout, A1)
    take(layout, A1, 12, f"{A0}.orphans")
    take(layout, A1, 3, "retry-01")
    publish_closing(layout, Closing(attempt=A1, state="failed", reason="lost", by="test"), [])
    view = view_of(layout)
    assert sweep(view) == 12
    assert list(view.manifests["sweep-01"].tasks()) == [
        *map(task, range(3)),
        *map(task, range(4, 12)),
        known[1],
    ], "a doubtful task comes behind the others"


def test_numbers_of_sweeps_grow(layout: Layout) -> None:
    view, swept = view_of(layout), M
    for number in range(1, 4):
        attempt = attempt_name(0, number)
        begin(layout, attempt)
        take(layout, attempt, 12, swept)
        publish_closing(
            layout, Closing(attempt=attempt, state="failed", reason="lost", by="test"), []
        )
        assert sweep(view) == 12
        swept = f"sweep-{number:02d}"
        assert swept in view.manifests
    assert view.next_numbered("sweep") == "sweep-04"


def test_processes_that_sweep_at_once_publish_one_manifest(layout: Layout) -> None:
    begin(layout, A0)
    take(layout, A0, 12)
    publish_closing(layout, Closing(attempt=A0, state="failed", reason="lost", by="test"), [])
    assert 12 in race(sweep_together, *[(layout.root,)] * 3)
    view = view_of(layout)
    assert view.unclaimed == 12
    assert [name for name in view.manifests if name.startswith("sweep")] == ["sweep-01"]


def damage_line(layout: Layout, index: int) -> None:
    """Make the line of a task unreadable, in the only manifest that was planned."""
    path = layout.manifest(M)
    lines = path.read_bytes().split(b"\n")
    lines[index] = lines[index].replace(b'"cost"', b'"cast"')
    path.write_bytes(b"\n".join(lines))


def test_a_task_that_no_readable_line_describes_fails(layout: Layout) -> None:
    damage_line(layout, 3)
    writer = begin(layout, A0)
    take(layout, A0, 12)
    finish(writer, *(index for index in range(12) if index != 3))
    view = view_of(layout)
    assert verdicts(view) == "cccfcccccccc"
    assert sweep(view) == 0
    assert (view.ledger.n_failed, view.ledger.is_finished) == (1, True)
    assert [damage.path for damage in view.damage] == [str(layout.manifest(M))]


def test_an_unreadable_task_stays_failed_however_often_one_looks(layout: Layout) -> None:
    damage_line(layout, 3)
    begin(layout, A0)
    take(layout, A0, 12)
    view = view_of(layout)
    for _ in range(3):
        assert stranded_tasks(view.refresh()) == []
        assert verdicts(view) == "---f--------"
        assert [damage.path for damage in view.damage] == [str(layout.manifest(M))], "told once"


def test_a_task_is_not_unreadable_while_another_line_describes_it(layout: Layout) -> None:
    begin(layout, A0)
    take(layout, A0, 12)
    close(view_of(layout), A0)
    damage_line(layout, 3)
    view = view_of(layout)
    assert stranded_tasks(view) == []
    assert verdicts(view) == "-" * 12
    assert indices(orphans_of(view, A0)) == [index for index in range(12) if index != 3]


def test_a_damaged_closing_costs_its_own_words_and_no_task(layout: Layout) -> None:
    begin(layout, A0)
    take(layout, A0, 12)
    close(view_of(layout), A0, death=Told())
    path = layout.orphans(A0)
    path.write_bytes(b"\0" * 40 + path.read_bytes()[40:])
    view = view_of(layout)
    assert (view.closed[A0].state, view.closed[A0].by) == ("failed", "unreadable")
    assert view.unclaimed == 12
    assert sweep(view) == 0


def test_an_orphans_manifest_that_a_power_cut_emptied_strands_tasks_that_are_swept(
    layout: Layout,
) -> None:
    begin(layout, A0)
    take(layout, A0, 12)
    close(view_of(layout), A0)
    layout.orphans(A0).write_bytes(b"")
    view = view_of(layout)
    assert view.closed[A0].state == "failed"
    assert sweep(view) == 12
    assert decode(layout.status("failed", A0).read_bytes(), Closing).by == "test", (
        "the copy still tells"
    )
