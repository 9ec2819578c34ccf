"""Closing and sweeping: of an attempt that dies nothing is lost, nothing is handed out twice, no
innocent is blamed.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spooling import (
    A0,
    A1,
    B0,
    C0,
    begin,
    close_dead,
    finish,
    hidden_files,
    indices,
    intend,
    make_spool,
    race,
    read_journal,
    take,
    task,
    together,
    verdicts,
    view_of,
    write_claim,
)

from gpuspool.spool.claims import ChainEnd, ClaimChain
from gpuspool.spool.closing import orphans_of, publish_closing, publish_copies
from gpuspool.spool.codec import decode
from gpuspool.spool.death import MAX_KILLS, Told, Witness
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.manifest import load_manifest, publish_manifest
from gpuspool.spool.mending import mend_claims
from gpuspool.spool.publish import listdir
from gpuspool.spool.records import Claim, Closing, JournalLine, TaskLine
from gpuspool.spool.sweep import stranded_tasks, sweep
from gpuspool.spool.view import View

M = "rank-0000"
SEGV, KILL = Witness(-11, max_crashes=2), Witness(-9, max_crashes=2)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 12)


def orphans(layout: Layout, attempt: str) -> list[TaskLine]:
    """The tasks that closing an attempt left for others."""
    manifest = load_manifest(layout, f"{attempt}.orphans", pytest.fail)
    assert manifest is not None
    return list(manifest.tasks())


def close(view: View, attempt: str, by: str = "test", **more: object) -> Closing:
    closing = close_dead(view, attempt, by=by, **more)  # type: ignore[arg-type]
    assert closing is not None
    return closing


def crash(
    root: Path, left: list[TaskLine], witness: Witness | None, started: int | None = None
) -> tuple[Closing, list[TaskLine], View]:
    """An attempt claims these tasks, finishes none and ends: (its closing, its orphans, the view
    after it).
    """
    layout = make_spool(root / "s", left)
    writer = begin(layout, A0)
    take(layout, A0, len(left))
    if started is not None:
        writer.append(JournalLine(task=started, round=0, state="started", start=1.0))
    view = view_of(layout)
    closing = close(view, A0, witness=witness)
    return closing, orphans(layout, A0), view


def close_many(root: Path, who: str, attempts: int) -> list[str]:
    """Close attempts in step with other processes; returns whose word stands, for each."""
    view, words = view_of(Layout(root)), []
    for number in range(attempts):
        together()
        closing = close_dead(view, attempt_name(0, number), by=who)
        words.append("?" if closing is None else closing.by)
    return words


def sweep_together(root: Path) -> int:
    view = view_of(Layout(root))
    together()
    return sweep(view)


# Closing.


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_orphans_are_exactly_what_was_claimed_and_not_finished(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    layout = make_spool(tmp_path_factory.mktemp("t") / "s", 12)
    writers = {A0: begin(layout, A0), B0: begin(layout, B0)}
    stops = sorted(data.draw(st.sets(st.integers(1, 12), min_size=1)))
    held: dict[str, set[int]] = {A0: set(), B0: set()}
    for start, stop in zip([0, *stops], stops, strict=False):
        who = data.draw(st.sampled_from([A0, B0]))
        take(layout, who, stop)
        held[who] |= set(range(start, stop))
    done = data.draw(st.sets(st.integers(0, 11)))
    for index in done:
        finish(
            writers[data.draw(st.sampled_from([A0, B0]))],
            index,
            state=data.draw(st.sampled_from(["complete", "failed"])),
        )
    closing = close(view_of(layout), A0)
    assert set(indices(orphans(layout, A0))) == held[A0] - done
    assert len(orphans(layout, A0)) == len(held[A0] - done)
    assert (closing.state, closing.reason, closing.failures) == ("failed", "lost", [])
    assert not layout.orphans(B0).exists()


def test_orphans_keep_their_round_and_their_history(layout: Layout) -> None:
    left = [task(3, round=1, crashes=1, kills=3, careful=True), task(4, round=2)]
    assert publish_manifest(layout, "retry-01", left)
    begin(layout, A0)
    take(layout, A0, 2, "retry-01")
    close(view_of(layout), A0)
    assert orphans(layout, A0) == left


def test_a_task_that_failed_in_an_earlier_round_is_an_orphan_of_this_one(layout: Layout) -> None:
    first = begin(layout, A0)
    take(layout, A0, 12)
    finish(first, 3, 4, state="failed")
    assert publish_manifest(layout, "retry-01", [task(3, round=1), task(4, round=1)])
    second = begin(layout, A1)
    take(layout, A1, 2, "retry-01")
    finish(second, 4, round_=1, state="failed")
    close(view_of(layout), A1)
    assert orphans(layout, A1) == [task(3, round=1)]


def test_orphans_can_be_claimed_and_orphaned_again(layout: Layout) -> None:
    for number in range(3):
        attempt = attempt_name(0, number)
        writer = begin(layout, attempt)
        take(
            layout,
            attempt,
            12 - number,
            M if number == 0 else f"{attempt_name(0, number - 1)}.orphans",
        )
        finish(writer, number)
        close(view_of(layout), attempt)
        assert indices(orphans(layout, attempt)) == list(range(number + 1, 12))
    view = view_of(layout)
    assert (view.unclaimed, verdicts(view)) == (9, "ccc---------")
    assert stranded_tasks(view) == []


def test_an_attempt_that_claimed_nothing_is_closed_too(layout: Layout) -> None:
    begin(layout, A0)
    close(view_of(layout), A0)
    assert orphans(layout, A0) == []
    assert view_of(layout).open_attempts == []


def test_a_torn_last_line_is_an_orphan(layout: Layout) -> None:
    writer = begin(layout, A0)
    take(layout, A0, 2)
    finish(writer, 0, 1)
    data = layout.journal(A0).read_bytes()
    layout.journal(A0).write_bytes(data[:-1])
    view = view_of(layout)
    close(view, A0)
    assert indices(orphans(layout, A0)) == [1]
    assert [damage.reason[:9] for damage in view.damage] == ["torn line"]


def test_the_status_record_is_a_copy_that_anybody_may_make_again(layout: Layout) -> None:
    begin(layout, A0)
    view = view_of(layout)
    closing = close(view, A0, death=Told())
    path = layout.status("stopped", A0)
    assert decode(path.read_bytes(), Closing) == closing
    before = path.read_bytes()
    path.unlink()
    publish_copies(layout, closing)
    publish_copies(layout, closing)
    assert path.read_bytes() == before
    assert hidden_files(layout.root) == []


def test_who_closes_second_adopts_the_first_word(layout: Layout) -> None:
    begin(layout, A0)
    take(layout, A0, 3)
    first, second = view_of(layout), view_of(layout)
    word = close(first, A0, by="first", death=Told())
    data = layout.orphans(A0).read_bytes()
    assert close(second, A0, by="second", witness=SEGV) == word
    assert not publish_closing(
        layout, Closing(attempt=A0, state="complete", reason="finished", by=A0), []
    )
    assert layout.orphans(A0).read_bytes() == data
    assert [listdir(layout.subdir(state)) for state in ("complete", "failed", "stopped")] == [
        [],
        [],
        [f"{A0}.json"],
    ]


def test_of_processes_that_close_the_same_attempts_one_closes_each(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 30)
    for number in range(10):
        begin(layout, attempt_name(0, number))
        take(layout, attempt_name(0, number), 3 * number + 3)
    words = race(close_many, *((layout.root, who, 10) for who in ("w0", "w1", "w2")))
    assert words[0] == words[1] == words[2]
    assert set(words[0]) <= {"w0", "w1", "w2"}
    view = view_of(layout)
    assert view.open_attempts == []
    assert view.unclaimed == 30
    assert stranded_tasks(view) == []


def test_an_attempt_closed_before_it_began_finds_its_journal_taken(layout: Layout) -> None:
    intend(layout, A0)
    view = view_of(layout)
    assert view.open_attempts == [A0]
    assert close(view, A0).reason == "lost"
    assert start_journal(layout, A0, myself()) is None
    assert orphans(layout, A0) == []
    assert view_of(layout).damage == []


def test_an_attempt_that_began_meanwhile_is_to_be_judged_again(layout: Layout) -> None:
    intend(layout, A0)
    view = view_of(layout)
    writer = begin(layout, A0)
    take(layout, A0, 2)
    assert close_dead(view, A0, by="test") is None
    assert not layout.orphans(A0).exists()
    finish(writer, 0)
    close(view, A0)
    assert indices(orphans(layout, A0)) == [1]
    assert read_journal(layout, A0)[1] == []


def test_an_attempt_kept_from_beginning_by_a_closer_that_died_can_be_closed(layout: Layout) -> None:
    intend(layout, A0)
    layout.journal(A0).touch()
    assert close(view_of(layout), A0).reason == "lost"
    assert view_of(layout).open_attempts == []


# Crash rules.


def test_a_crash_with_one_task_in_hand_counts_against_it(tmp_path: Path) -> None:
    closing, left, view = crash(tmp_path, [task(0, careful=True)], SEGV, started=0)
    assert left == [task(0, crashes=1, careful=True, crashed_in=(A0,))]
    assert (closing.failures, closing.suspects, closing.exit_code) == ([], 1, -11)
    assert verdicts(view) == "-"


def test_a_task_alone_in_hand_at_the_limit_of_crashes_is_lost(tmp_path: Path) -> None:
    closing, left, view = crash(tmp_path, [task(0, crashes=1, careful=True)], SEGV, started=0)
    assert left == []
    assert [
        (lost.task, lost.error.kind, lost.error.type, lost.error.exit_code)
        for lost in closing.failures
    ] == [(0, "lost", "WorkerLost", -11)]
    assert "died 2 times" in closing.failures[0].error.message
    assert "SIGSEGV" in closing.failures[0].error.message
    assert A0 in closing.failures[0].error.message
    assert verdicts(view) == "f"
    assert json.loads(view.layout.failed_task("t0").read_bytes())["error"]["type"] == "WorkerLost"


def test_a_crash_with_a_batch_in_hand_makes_all_careful_and_counts_against_none(
    tmp_path: Path,
) -> None:
    closing, left, view = crash(tmp_path, [task(0), task(1, crashes=1), task(2)], SEGV)
    assert left == [task(0, careful=True), task(1, crashes=1, careful=True), task(2, careful=True)]
    assert (closing.failures, closing.suspects) == ([], 3)
    assert verdicts(view) == "---"


def test_a_crash_counts_against_the_started_task_alone(tmp_path: Path) -> None:
    tasks = [task(index, crashes=1, careful=True) for index in range(4)]
    closing, left, view = crash(tmp_path, tasks, SEGV, started=2)
    assert left == [tasks[0], tasks[1], tasks[3]]
    assert [lost.task for lost in closing.failures] == [2]
    assert closing.suspects == 1
    assert verdicts(view) == "--f-"


def test_a_crash_between_careful_tasks_has_no_suspect(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", [task(index, careful=True) for index in range(3)])
    writer = begin(layout, A0)
    take(layout, A0, 3)
    writer.append(JournalLine(task=0, round=0, state="started"))
    finish(writer, 0)
    closing = close(view_of(layout), A0, witness=SEGV)
    assert (closing.suspects, closing.failures) == (0, [])
    assert orphans(layout, A0) == [task(1, careful=True), task(2, careful=True)]


def test_a_first_crash_fails_nobody_whatever_was_left(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", [task(0, careful=True), task(1)])
    writer = begin(layout, A0)
    take(layout, A0, 2)
    writer.append(JournalLine(task=0, round=0, state="started"))
    finish(writer, 0)
    closing = close(view_of(layout), A0, witness=SEGV)
    assert (closing.failures, closing.suspects) == ([], 1)
    assert [(line.task, line.careful) for line in orphans(layout, A0)] == [(1, True)]


def test_sigkills_count_apart_and_with_more_patience(tmp_path: Path) -> None:
    for kills in range(MAX_KILLS - 1):
        closing, left, _ = crash(
            tmp_path / f"{kills}", [task(0, crashes=1, kills=kills)], KILL, started=0
        )
        assert left == [task(0, crashes=1, kills=kills + 1, careful=True, crashed_in=(A0,))]
        assert (closing.failures, closing.suspects) == ([], 1)
    closing, left, _ = crash(tmp_path / "last", [task(0, kills=MAX_KILLS - 1)], KILL, started=0)
    assert left == []
    assert "SIGKILL" in closing.failures[0].error.message
    closing, left, _ = crash(tmp_path / "segv", [task(0, kills=MAX_KILLS - 1)], SEGV, started=0)
    assert left == [task(0, crashes=1, kills=MAX_KILLS - 1, careful=True, crashed_in=(A0,))]


def test_without_a_witness_nobody_is_blamed(tmp_path: Path) -> None:
    tasks = [task(0, crashes=1, kills=4, careful=True)]
    closing, left, _ = crash(tmp_path, tasks, None, started=0)
    assert left == tasks
    assert (closing.failures, closing.suspects, closing.exit_code) == ([], 0, None)


def test_a_limit_that_was_lowered_fails_no_task_that_was_not_in_hand(tmp_path: Path) -> None:
    tasks = [
        task(0, crashes=1, careful=True),
        task(1, crashes=1, careful=True),
        task(2, careful=True),
    ]
    closing, left, _ = crash(tmp_path, tasks, Witness(-11, max_crashes=1), started=2)
    assert [lost.task for lost in closing.failures] == [2]
    assert left == tasks[:2]


def test_a_bad_task_among_many_is_named_by_crashes_and_costs_no_other(tmp_path: Path) -> None:
    """The whole story: task 5 kills every worker that runs it; each attempt runs what it can and
    crashes.
    """
    layout = make_spool(tmp_path / "s", 12)
    view = view_of(layout)
    number = 0
    while not view.refresh().ledger.is_finished:
        attempt = attempt_name(0, number)
        writer = begin(layout, attempt)
        name = next(name for name, chain in view.chains.items() if chain.unclaimed)
        take(layout, attempt, len(view.manifests[name]), name)
        for line in view.refresh().manifests[name].tasks():
            if line.careful:
                writer.append(JournalLine(task=line.task, round=0, state="started"))
            if line.task == 5:
                break
            finish(writer, line.task)
        close(view, attempt, witness=SEGV)
        number += 1
        assert number < 10
    assert verdicts(view) == "cccccfcccccc"
    assert number == 4, "one crash to be careful, two to be sure, one attempt for the rest"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "exit code 3"),
        (-11, "killed by SIGSEGV"),
        (-9, "killed by SIGKILL"),
        (-99, "killed by signal 99"),
    ],
)
def test_an_exit_is_told_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words


# Sweeping.


def lose_claim(layout: Layout, attempt: str, start: int, stop: int) -> None:
    """The attempt is closed by somebody who cannot see this claim, which then becomes visible."""
    close(view_of(layout), attempt)
    write_claim(layout, M, start, Claim(attempt=attempt, start=start, stop=stop, at=1.0))


def test_a_claim_that_was_invisible_at_the_close_is_swept_once(layout: Layout) -> None:
    writer = begin(layout, A0)
    take(layout, A0, 4)
    finish(writer, 0, 5)
    lose_claim(layout, A0, 4, 12)
    view = view_of(layout)
    assert indices(orphans(layout, A0)) == [1, 2, 3]
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
    assert indices(orphans(layout, A0)) == [0, 1, 2, 3]
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
    """A flipped bit in a claim may name another attempt, which nobody will ever close."""
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


def test_an_idle_attempt_does_not_hold_its_own_claims(layout: Layout) -> None:
    """It says that it has nothing in hand: what it claimed and did not finish was lost on the way."""
    writer = begin(layout, A0)
    take(layout, A0, 5)
    finish(writer, 0, 1, 2)
    begin(layout, B0)
    take(layout, B0, 7)
    view = view_of(layout)
    assert sweep(view, idle=C0) == 0
    assert sweep(view, idle=A0) == 2
    assert indices(view.manifests["sweep-01"].tasks()) == [3, 4]
    assert sweep(view, idle=A0) == 0


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
    """Whoever reads every claim and whoever skips then come to the same end, behind all that is
    done.
    """
    layout = make_spool(tmp_path_factory.mktemp("s") / "s", 90)
    writer = begin(layout, A0)
    for stop in sorted(stops):
        take(layout, A0, stop)
    finish(writer, *(index for index in done if index < max(stops)))
    assert close_dead(view_of(layout), A0, by="resume") is not None
    starts = [0, *sorted(stops)[:-1]]
    for start in [starts[place % len(starts)] for place in lost] + starts[-3:] * are_last_lost:
        layout.claim(M, start).unlink(missing_ok=True)
    mend_claims(view_of(layout))
    end = ClaimChain(layout, M, 90).advance().next
    assert ChainEnd(layout, M, 90).look().next == end
    assert all(index < end for index in done if index < max(stops))
    assert mend_claims(view_of(layout)) == 0


def test_an_open_attempt_holds_only_the_newest_round(layout: Layout) -> None:
    """It failed the task in round 0 and lives on; the task's round 1 was claimed and lost."""
    writer = begin(layout, A0)
    take(layout, A0, 12)
    finish(writer, *range(11))
    finish(writer, 11, state="failed")
    assert publish_manifest(layout, "retry-01", [task(11, round=1, crashes=1)])
    write_claim(layout, "retry-01", 0, b"")
    view = view_of(layout)
    assert sweep(view) == 1
    assert list(view.manifests["sweep-01"].tasks()) == [task(11, round=1, crashes=1)]


def test_a_swept_task_keeps_its_highest_round_and_crashes(layout: Layout) -> None:
    known = [
        task(3, round=1),
        task(3, round=1, crashes=1, careful=True),
        task(3, crashes=2, kills=2),
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
        known[1],
        *map(task, range(4, 12)),
    ]


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


def test_the_word_of_a_damaged_closing_is_lost_and_no_task_is(layout: Layout) -> None:
    begin(layout, A0)
    take(layout, A0, 12)
    close(view_of(layout), A0, death=Told())
    path = layout.orphans(A0)
    path.write_bytes(b"\0" * 40 + path.read_bytes()[40:])
    view = view_of(layout)
    assert (view.closed[A0].state, view.closed[A0].by) == ("failed", "unreadable")
    assert view.unclaimed == 12
    assert sweep(view) == 0


def test_orphans_that_a_power_cut_emptied_are_swept(layout: Layout) -> None:
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
