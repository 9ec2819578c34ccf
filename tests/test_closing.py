"""Closing: of an attempt that dies nothing is lost, and nothing is handed out twice."""

from collections import Counter
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
    close,
    close_dead,
    finish,
    hidden_files,
    indices,
    intend,
    make_spool,
    orphans_left,
    race,
    read_journal,
    take,
    task,
    together,
    verdicts,
    view_of,
)

from gpuspool.spool import closing as closing_module
from gpuspool.spool import manifest as manifest_module
from gpuspool.spool.closing import close_attempts, publish_closing, publish_copies
from gpuspool.spool.codec import decode
from gpuspool.spool.death import (
    CannotClose,
    Crashed,
    Death,
    Lost,
    NeverStarted,
    TimedOut,
    Told,
    Witness,
)
from gpuspool.spool.errors import EXIT_CANNOT_CLOSE
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.publish import listdir
from gpuspool.spool.records import Closing, JournalLine, TaskLine
from gpuspool.spool.sweep import stranded_tasks
from gpuspool.spool.view import View

M = "rank-0000"
SEGV = Witness(-11, max_crashes=2)


@pytest.fixture(params=[False, True], ids=["checked by lines", "checked as a whole"])
def layout(tmp_path: Path, request: pytest.FixtureRequest) -> Layout:
    return make_spool(tmp_path / "s", 12, has_checksums=request.param)


def status_records(layout: Layout) -> dict[str, str]:
    """attempt -> the name of the folder in which its status record stands."""
    return {
        name.removesuffix(".json"): state
        for state in ("complete", "failed", "stopped")
        for name in listdir(layout.subdir(state))
    }


def close_many(root: Path, who: str, attempts: int) -> list[str]:
    """Close attempts in step with other processes; returns whose word stands, for each."""
    view = view_of(Layout(root))
    words = []
    for number in range(attempts):
        together()
        closing = close_dead(view, attempt_name(0, number), by=who)
        words.append("?" if closing is None else closing.by)
    return words


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
        who = data.draw(st.sampled_from([A0, B0]))
        state = data.draw(st.sampled_from(["complete", "failed"]))
        finish(writers[who], index, state=state)
    closing = close(view_of(layout), A0)
    assert set(indices(orphans_left(layout, A0))) == held[A0] - done
    assert len(orphans_left(layout, A0)) == len(held[A0] - done)
    assert (closing.state, closing.reason, closing.failures) == ("failed", "lost", [])
    assert not layout.orphans(B0).exists()


def test_orphans_keep_their_round_and_their_history(layout: Layout) -> None:
    doubtful = task(3, round=1, kills=3, careful=True, failed_in=((B0, "cpu"),))
    left = [task(4, round=2), doubtful]
    assert publish_manifest(layout, "retry-01", left)
    begin(layout, A0)
    take(layout, A0, 2, "retry-01")
    close(view_of(layout), A0)
    assert orphans_left(layout, A0) == left


def test_a_task_that_failed_in_an_earlier_round_is_an_orphan_of_this_one(layout: Layout) -> None:
    first = begin(layout, A0)
    take(layout, A0, 12)
    finish(first, 3, 4, state="failed")
    assert publish_manifest(layout, "retry-01", [task(3, round=1), task(4, round=1)])
    second = begin(layout, A1)
    take(layout, A1, 2, "retry-01")
    finish(second, 4, round_=1, state="failed")
    close(view_of(layout), A1)
    assert orphans_left(layout, A1) == [task(3, round=1)]


def test_orphans_can_be_claimed_and_orphaned_again(layout: Layout) -> None:
    manifest = M
    for number in range(3):
        attempt = attempt_name(0, number)
        writer = begin(layout, attempt)
        take(layout, attempt, 12 - number, manifest)
        finish(writer, number)
        close(view_of(layout), attempt)
        assert indices(orphans_left(layout, attempt)) == list(range(number + 1, 12))
        manifest = f"{attempt}.orphans"
    view = view_of(layout)
    assert (view.unclaimed, verdicts(view)) == (9, "ccc---------")
    assert stranded_tasks(view) == []


def test_an_attempt_that_claimed_nothing_is_closed_too(layout: Layout) -> None:
    begin(layout, A0)
    close(view_of(layout), A0)
    assert orphans_left(layout, A0) == []
    assert view_of(layout).open_attempts == []


def test_a_torn_last_line_is_an_orphan(layout: Layout) -> None:
    writer = begin(layout, A0)
    take(layout, A0, 2)
    finish(writer, 0, 1)
    data = layout.journal(A0).read_bytes()
    layout.journal(A0).write_bytes(data[:-1])
    view = view_of(layout)
    close(view, A0)
    assert indices(orphans_left(layout, A0)) == [1]
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
    assert status_records(layout) == {A0: "stopped"}


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
    assert orphans_left(layout, A0) == []
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
    assert indices(orphans_left(layout, A0)) == [1]
    assert read_journal(layout, A0)[1] == []


def test_an_attempt_kept_from_beginning_by_a_closer_that_died_can_be_closed(layout: Layout) -> None:
    intend(layout, A0)
    layout.journal(A0).touch()
    assert close(view_of(layout), A0).reason == "lost"
    assert view_of(layout).open_attempts == []


# Several attempts in one call.


def begin_many(layout: Layout, count: int) -> list[str]:
    """Begin attempts of one rank, of which each claims one task; returns their names."""
    attempts = [attempt_name(0, number) for number in range(count)]
    for number, attempt in enumerate(attempts):
        begin(layout, attempt)
        take(layout, attempt, number + 1)
    return attempts


def all_lost(attempts: list[str]) -> dict[str, Death]:
    return dict.fromkeys(attempts, Lost())


@pytest.mark.parametrize("count", [1, 2, 12])
def test_attempts_are_closed_over_one_refresh_whatever_their_number(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """One to read what they left; one more reads back the closings that count."""
    attempts = begin_many(layout, count)
    view = view_of(layout)
    refreshed_with = []
    refresh = View.refresh

    def counting(self: View) -> View:
        refreshed_with.append(len(listdir(layout.manifests)))
        return refresh(self)

    monkeypatch.setattr(View, "refresh", counting)
    assert list(close_attempts(view, all_lost(attempts), "test")) == attempts
    assert refreshed_with == [1, 1 + count], "before the first link, and after the last"
    assert view.open_attempts == []


def test_no_attempts_are_closed_without_harm(layout: Layout) -> None:
    assert close_attempts(view_of(layout), {}, "test") == {}
    assert listdir(layout.manifests) == [f"{M}.jsonl"]


def test_attempts_that_died_in_different_ways_are_closed_together_each_by_its_own(
    tmp_path: Path,
) -> None:
    layout = make_spool(tmp_path / "s", 14)
    deaths: dict[str, Death] = {
        attempt_name(0, 0): TimedOut("stacks"),
        attempt_name(1, 0): Told(),
        attempt_name(2, 0): Lost(),
        attempt_name(3, 0): CannotClose(),
        attempt_name(4, 0): Lost(),
        attempt_name(5, 0): Crashed(Witness(-11, max_crashes=1)),
        attempt_name(6, 0): Crashed(Witness(EXIT_CANNOT_CLOSE + 1, max_crashes=2)),
        attempt_name(7, 0): NeverStarted(),
    }
    unborn = attempt_name(7, 0)
    for number, attempt in enumerate(deaths):
        intend(layout, attempt)
        if attempt == unborn:
            continue
        writer = begin(layout, attempt)
        take(layout, attempt, 2 * number + 2)
        finish(writer, 2 * number)
        writer.append(JournalLine(task=2 * number + 1, round=0, state="started"))
    closings = close_attempts(view_of(layout), deaths, "parent")
    told = {
        attempt: (closing.state, closing.reason, closing.exit_code)
        for attempt, closing in closings.items()
    }
    assert list(told.values()) == [
        ("failed", "timeout", None),
        ("stopped", "killed", None),
        ("failed", "lost", None),
        ("failed", "io", None),
        ("failed", "lost", None),
        ("failed", "crash", -11),
        ("failed", "crash", EXIT_CANNOT_CLOSE + 1),
        ("failed", "io", None),
    ]
    assert {closing.by for closing in closings.values()} == {"parent"}
    view = view_of(layout)
    assert view.closed == closings
    assert status_records(layout) == {name: told[name][0] for name in deaths}
    # The task that was in hand fails where one crash is enough. A time-out, or a crash where it
    # takes two, is one opinion.
    assert verdicts(view) == "c-c-c-c-c-cfc-"
    assert sorted(view.unruled()) == [(1, 0), (13, 0)]
    left = [orphans_left(layout, attempt) for attempt in deaths]
    assert [indices(tasks) for tasks in left] == [[], [3], [5], [7], [9], [], [], []]
    assert all(tasks == [task(tasks[0].task)] for tasks in left[1:5]), "nobody else is blamed"
    error = closings[attempt_name(0, 0)].error
    assert error is not None
    assert error.traceback == "stacks"


def test_an_attempt_that_began_meanwhile_is_left_out_and_the_others_are_closed(
    layout: Layout,
) -> None:
    begin(layout, A0)
    take(layout, A0, 3)
    intend(layout, B0)
    begin(layout, C0)
    take(layout, C0, 6)
    view = view_of(layout)
    writer = begin(layout, B0)
    take(layout, B0, 9)
    assert list(close_attempts(view, all_lost([A0, B0, C0]), "test")) == [A0, C0]
    assert view.open_attempts == [B0]
    assert not layout.orphans(B0).exists()
    finish(writer, 6)
    assert list(close_attempts(view, all_lost([B0]), "test")) == [B0]
    assert indices(orphans_left(layout, B0)) == [7, 8]


def test_of_attempts_closed_together_the_one_that_somebody_else_closed_keeps_that_word(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else is faster with the second, just before its turn comes."""
    attempts = begin_many(layout, 3)
    other = Closing(attempt=attempts[1], state="stopped", reason="drained", by="other", at=1.0)

    def with_another(layout: Layout, closing: Closing, orphans: list[TaskLine]) -> bool:
        if closing.attempt == attempts[1]:
            assert publish_closing(layout, other, orphans)
        return publish_closing(layout, closing, orphans)

    monkeypatch.setattr(closing_module, "publish_closing", with_another)
    view = view_of(layout)
    closings = close_attempts(view, all_lost(attempts), "test")
    assert list(closings) == attempts
    assert [closing.by for closing in closings.values()] == ["test", "other", "test"]
    assert closings[attempts[1]] == view.closed[attempts[1]] == other
    assert status_records(layout) == dict(
        zip(attempts, ["failed", "stopped", "failed"], strict=True)
    )
    assert Counter(indices(line for name in attempts for line in orphans_left(layout, name))) == {
        0: 1,
        1: 1,
        2: 1,
    }


class Killed(BaseException):
    """What stands for the death of a closer in the middle of its work."""


@pytest.mark.parametrize("links", [0, 1, 2])
def test_of_a_closer_killed_between_two_links_the_rest_stays_open_until_somebody_comes(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, links: int
) -> None:
    attempts = begin_many(layout, 3)
    linked: list[Path] = []
    publish = manifest_module.publish

    def publish_until_killed(path: Path, data: bytes) -> bool:
        if len(linked) == links:
            raise Killed
        linked.append(path)
        return publish(path, data)

    monkeypatch.setattr(manifest_module, "publish", publish_until_killed)
    with pytest.raises(Killed):
        close_attempts(view_of(layout), all_lost(attempts), "first")
    monkeypatch.undo()

    view = view_of(layout)
    assert view.open_attempts == attempts[links:]
    assert stranded_tasks(view) == [], "those that are open hold theirs, the others are offered"
    closings = close_attempts(view, all_lost(attempts), "second")
    assert [closing.by for closing in closings.values()] == (
        ["first"] * links + ["second"] * (3 - links)
    )
    assert view.open_attempts == []
    assert [indices(orphans_left(layout, attempt)) for attempt in attempts] == [[0], [1], [2]]
    assert hidden_files(layout.root) == []


def test_a_task_that_one_closing_holds_back_is_given_out_by_no_other_of_the_same_pass(
    layout: Layout,
) -> None:
    """Two dead attempts hold it, as after a claim was lost and its task swept."""
    for attempt, manifest in ((A0, M), (A1, "sweep-01")):
        if manifest != M:
            assert publish_manifest(layout, manifest, [task(0, careful=True)])
        writer = begin(layout, attempt)
        take(layout, attempt, 1, manifest)
        writer.append(JournalLine(task=0, round=0, state="started", start=1.0))
    deaths = {A1: Crashed(SEGV), A0: Lost()}
    closings = close_attempts(view_of(layout), deaths, by="test")
    assert [opinion.task for opinion in closings[A1].held] == [0]
    assert orphans_left(layout, A0) == orphans_left(layout, A1) == []
